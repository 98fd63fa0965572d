"""The model of a job on the fake device: loaded, wrapped, prepared for checkpointing, with its optimizer."""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from estimators.methods import get_method
from estimators.methods.scalar_head import SCALAR_TASKS
from estimators.regime import Regime
from estimators.simulate.adapters import cast_adapters, peft_type, wrap
from estimators.simulate.ddp import allocate_buckets
from estimators.simulate.fsdp import join_group, shard_fsdp2
from estimators.simulate.imports import skip_other_methods
from estimators.simulate.job import Job
from estimators.simulate.liger import patch_layers
from estimators.simulate.load import DEVICE, layer_index, load
from estimators.simulate.tracker import Tracker
from estimators.simulate.unsloth import patch_unsloth
from estimators.tasks import holds_reference
from profiles.errors import InvalidModelError, UnsupportedError
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan
from profiles.scheme import DTYPE_BYTES

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Built:
    """A model ready to train. `layers` is the dotted name of its list of layers in the unwrapped model; `buffers` are
    held as long as it; `reference`, the second model of a task that has one."""

    model: Any
    parameters: tuple[torch.nn.Parameter, ...]
    layers: str
    buffers: tuple[torch.Tensor, ...] = ()
    reference: Any = None

    def trainable(self, num_layers: int) -> int:
        """Trainable elements if the model had `num_layers` layers like its last one."""
        by_layer = Counter[int | None]()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                by_layer[layer_index(name, self.layers)] += parameter.numel()
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        here = len(base.get_submodule(self.layers))
        return sum(by_layer.values()) + (num_layers - here) * by_layer[here - 1]


def build(job: Job, regime: Regime, tracker: Tracker, *, num_layers: int) -> Built:
    """Build a model of `num_layers` layers as the plan's platform would."""
    plan, spec = job.plan, job.model
    model = empty_model(plan, spec, regime, num_layers=num_layers)
    if (kind := peft_type(plan)) is not None:
        skip_other_methods(kind)
        import peft  # noqa: F401
    gc.freeze()  # nothing holds a storage yet: what is there need not be looked at
    layers = find_layers(model)
    compute_dtype = DTYPES[regime.compute_dtype]
    quantized = plan.quantization in QUANTIZED
    load(
        model,
        tracker,
        quantization=plan.quantization,
        compute_dtype=compute_dtype,
        layers=layers,
        num_layers=spec.num_hidden_layers,
        moved=not quantized and (job.load == "to" or plan.sharding == "fsdp2"),
        device="cpu" if plan.sharding == "fsdp2" and not quantized else DEVICE,
        storage=compute_dtype if plan.sharding == "fsdp2" else torch.uint8,
    )
    model = _checkpointing(_kbit(model, plan), plan, regime)
    model = wrap(model, plan, spec, regime)
    model.train()
    _name_parameters(model, plan, layers, tracker)
    cast_adapters(model, plan, regime)
    if regime.checkpointing and (plan.platform != "llamafactory" or hasattr(model, "get_base_model")):
        model.enable_input_require_grads()  # transformers 5.23 with checkpointing; LLaMA-Factory leaves it to PEFT
    mixed = plan.mixed_precision is not False and regime.compute < 4
    if plan.sharding in ("zero1", "zero2") and mixed:
        for parameter in model.parameters():  # DeepSpeed's engine casts the whole module (runtime/engine.py)
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(compute_dtype)
    if plan.sharding == "fsdp2":
        model = shard_fsdp2(model, plan, join_group(plan.n_gpus, tracker), mixed=compute_dtype if mixed else None)
    _name_parameters(model, plan, layers, tracker)
    trained = tuple(p for p in model.parameters() if p.requires_grad)
    if not trained:
        raise UnsupportedError(f"{plan.method} trains no parameter of {spec.name}")
    if regime.fused_kernels:
        patch_unsloth(model, plan, spec, regime)
    if regime.fused_ops:
        patch_layers(model, regime)
    _mark_layers(model, layers, tracker)
    buffers = allocate_buckets(model, layers, tracker) if plan.sharding == "ddp" else []
    reference = _reference(plan, spec, regime, tracker, num_layers) if holds_reference(plan) else None
    return Built(model, trained, layers, tuple(buffers), reference)


def _reference(plan: Plan, spec: ModelSpec, regime: Regime, tracker: Tracker, num_layers: int) -> Any:
    """The model once more, as it is stored, to be run without gradients."""
    size = DTYPE_BYTES.get(plan.quantization, regime.base)
    model = empty_model(plan, spec, replace(regime, base=size, trained=size), num_layers=num_layers)
    layers = find_layers(model)
    load(
        model,
        tracker,
        quantization=plan.quantization,
        compute_dtype=DTYPES[regime.compute_dtype],
        layers=layers,
        num_layers=spec.num_hidden_layers,
        moved=False,
        device=DEVICE,
        storage=torch.uint8,
    )
    _name_parameters(model, plan, layers, tracker)
    return model.eval()


def empty_model(plan: Plan, spec: ModelSpec, regime: Regime, *, num_layers: int) -> Any:
    """The transformers class on the meta device.

    Raises:
        InvalidModelError: transformers does not know the model type, or refuses its config.
    """
    import transformers
    from transformers.initialization import no_init_weights

    settings = {k: v for k, v in spec.config.items() if k not in ("model_type", "quantization_config", "dtype")}
    try:
        config = transformers.AutoConfig.for_model(spec.model_type, **settings)
        shorten(config, num_layers)
        family = {
            "encoder": transformers.AutoModelForMaskedLM,
            "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
        }.get(spec.kind, transformers.AutoModelForCausalLM)
        if plan.task in SCALAR_TASKS:
            family = transformers.AutoModelForSequenceClassification
            config.pad_token_id = config.pad_token_id or 0
        size = (
            regime.compute if regime.quantized else regime.base
        )  # k-bit preparation widens what was loaded in 16 bits
        dtype = {2: DTYPES[regime.compute_dtype if regime.compute < 4 else "bf16"], 4: torch.float32}[size]
        capped = spec.layers[0].block.attention.logit_softcap  # transformers has no SDPA for Gemma 2
        attention = "eager" if regime.kernel == "eager" or capped else "sdpa"
        with torch.device("meta"), no_init_weights():
            model = family.from_config(config, dtype=dtype, attn_implementation=attention)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModelError(spec.name, f"transformers cannot build it: {error}") from error
    model.config._name_or_path = spec.name
    return model


def shorten(config: Any, num_layers: int) -> None:
    """Cut a config to its first `num_layers` layers."""
    text = config.get_text_config()
    text.num_hidden_layers = num_layers
    for name in ("layer_types", "mlp_layer_types"):
        kinds = getattr(text, name, None)
        if kinds:
            setattr(text, name, list(kinds)[:num_layers])


def find_layers(model: Any) -> str:
    """Dotted name of the longest list of equal modules: the layers.

    Raises:
        InvalidModelError: there is none.
    """
    found = ""
    longest = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) > longest and len({type(m) for m in module}) == 1:
            size = sum(p.numel() for p in module.parameters())
            if size:
                found, longest = name, len(module)
    if not found:
        raise InvalidModelError(type(model).__name__, "it has no list of layers")
    return found


def _kbit(model: Any, plan: Plan) -> Any:
    """PEFT's preparation of a quantised base: what is not quantised becomes fp32."""
    if not (plan.kbit_prepared and plan.quantization in QUANTIZED):
        return model
    import peft

    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _checkpointing(model: Any, plan: Plan, regime: Regime) -> Any:
    """Gradient checkpointing of the kind that the platform asks for."""
    if regime.checkpointing and plan.platform == "llamafactory":
        checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=regime.reentrant)
        model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=trained_only(checkpoint))
    elif regime.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": regime.reentrant})
    return model


def trained_only(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """LLaMA-Factory 0.9.5 model_utils/checkpointing.py get_custom_gradient_checkpointing_func: a layer that holds
    nothing trained runs plainly; of the others the first float argument is made to require a gradient."""

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(p.requires_grad for p in function.args[0].parameters()):  # partial(forward, layer, ...)
            return function(*args, **kwargs)
        for x in args:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                x.requires_grad_(True)
                break
        return checkpoint(function, *args, **kwargs)

    return call


def _name_parameters(model: Any, plan: Plan, layers: str, tracker: Tracker) -> None:
    method = get_method(plan.method)
    base_trains = method.trains_base or method.trains_layers
    for name, parameter in model.named_parameters():
        label = "adapter_weights" if parameter.requires_grad and not base_trains else "base_weights"
        index = layer_index(name, layers)
        layer = -1 if index is None else index
        tracker.name([parameter, *_quantization_state(parameter)], label, layer)
    tracker.name(model.buffers(), "base_weights")


def _quantization_state(parameter: Any) -> list[torch.Tensor | None]:
    state = getattr(parameter, "quant_state", None)
    tensors: list[torch.Tensor | None] = [getattr(parameter, "SCB", None)]
    while state is not None:
        tensors += [getattr(state, name, None) for name in ("absmax", "code", "offset")]
        state = getattr(state, "state2", None)
    return [t for t in tensors if isinstance(t, torch.Tensor)]


def _mark_layers(model: Any, layers: str, tracker: Tracker) -> None:
    """Tell the tracker when a layer starts and ends, forward and backward.

    Its call is wrapped from outside, so that a checkpointed layer's second forward stays part of its backward. The
    gradient of a layer's output arrives just before the layer's own backward begins.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    _follow_modules(model, tracker)
    stack = base.get_submodule(layers)
    for index, layer in enumerate(stack):
        _mark_layer(layer, index, tracker, last=index == len(stack) - 1)


def _follow_modules(model: Any, tracker: Tracker) -> None:
    """Keep the name of the module that is running; during the backward's own operations there is none."""
    names = {id(module): name for name, module in model.named_modules()}
    running: list[str] = []

    def enter(module: torch.nn.Module, _: Any) -> None:
        running.append(tracker.module)
        tracker.module = names.get(id(module), "")

    def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
        if running:
            tracker.module = running.pop()

    torch.nn.modules.module.register_module_forward_pre_hook(enter)
    torch.nn.modules.module.register_module_forward_hook(leave, always_call=True)


def _mark_layer(layer: Any, index: int, tracker: Tracker, *, last: bool) -> None:
    kind = type(layer)

    class Marked(kind):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            tracker.enter("forward", index)
            out = super().__call__(*args, **kwargs)
            if last:
                tracker.enter("loss")  # what happens between two layers counts to the first of them
            hidden = out[0] if isinstance(out, tuple) else out
            if hidden.requires_grad:
                hidden.register_hook(lambda _: tracker.enter("backward", index))
            return out

    def mark_backward(_: Any, __: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        if hidden.requires_grad:
            hidden.register_hook(lambda _: tracker.enter("backward", index))

    Marked.__name__, Marked.__qualname__, Marked.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    layer.__class__ = Marked
    layer.register_forward_hook(mark_backward, prepend=True)  # before FSDP's own, which gathers the layer

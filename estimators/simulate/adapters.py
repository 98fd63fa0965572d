"""PEFT's wrapper for a plan: the configuration it would be given, and the casts that the platform makes afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from estimators.methods import get_method
from estimators.methods.adalora import initial_rank
from estimators.methods.base import SAVED_WITH_CLASSIFIER, matches
from estimators.methods.full import Full
from estimators.methods.scalar_head import SCALAR_TASKS
from estimators.methods.some_layers import SomeLayers
from estimators.regime import Regime
from profiles.errors import InvalidInputError, UnsupportedError
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan

TASK_TYPES = {"causal-lm": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}
LORA_VARIANTS: dict[str, dict[str, Any]] = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
PROMPTS = frozenset({"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"})
OWN_TARGETS = frozenset({"IA3", "LN_TUNING"})  # PEFT chooses by model type
WITH_RANK = frozenset({"LORA", "LOHA", "LOKR", "VERA", "MISS"})
DROPOUT = {"LORA": "lora_dropout", "ADALORA": "lora_dropout", "VERA": "vera_dropout", "MISS": "miss_dropout"}


def wrap(model: Any, plan: Plan, spec: ModelSpec, regime: Regime) -> Any:
    """Return the model with what `plan.method` trains, and nothing else, requiring gradients."""
    method = get_method(plan.method)
    if isinstance(method, Full) and "peft_type" not in plan.method_options:
        return model
    if plan.method == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
        return model
    if isinstance(method, SomeLayers):
        return _some_layers(model, method, plan, spec, regime)
    import peft

    config = peft_config(plan, spec)
    in_fp32 = regime.adapter == 4 or plan.quantization in QUANTIZED
    converted = plan.platform != "llamafactory" and spec.has_fused_experts
    with nullcontext() if converted else _without_conversion():
        return peft.get_peft_model(model, config, autocast_adapter_dtype=in_fp32)


@contextmanager
def _without_conversion() -> Iterator[None]:
    """PEFT turns the names of experts' modules into their fused tensors, LLaMA-Factory's 0.18.1 does not. Where there
    are none, only transformers' table of 500 conversions is left out: compiling it takes a tenth of a second."""
    from peft.utils import transformers_weight_conversion as conversion

    kept = conversion.convert_peft_config_for_transformers, conversion.get_model_conversion_mapping
    conversion.convert_peft_config_for_transformers = lambda *args, **kwargs: None
    conversion.get_model_conversion_mapping = lambda *args, **kwargs: []
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers, conversion.get_model_conversion_mapping = kept


def cast_adapters(model: Any, plan: Plan, regime: Regime) -> None:
    """TRL 1.16 (sft_trainer.py) casts the adapters of a quantised base to 16 bits after PEFT made them in fp32."""
    if regime.adapter == 4 or plan.quantization not in QUANTIZED:
        return
    dtype = torch.float16 if regime.compute_dtype == "fp16" else torch.bfloat16
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)


def peft_config(plan: Plan, spec: ModelSpec) -> Any:
    """The PEFT configuration of a plan; `method_options` goes to it by its own names.

    Raises:
        UnsupportedError: PEFT knows no such method.
        InvalidInputError: PEFT does not take these options.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    options = dict(plan.method_options)
    explicit = options.pop("peft_type", None)
    name = peft_type(plan)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(name)
    if kind is None:
        raise UnsupportedError(
            f"this PEFT has no method {name!r}", f"it has {', '.join(map(str, PEFT_TYPE_TO_CONFIG_MAPPING))}"
        )
    task = "SEQ_CLS" if plan.task in SCALAR_TASKS else TASK_TYPES.get(spec.kind)
    return _make(kind, {"task_type": task} | ({} if explicit else _settings(name, plan, spec)) | options)


def peft_type(plan: Plan) -> str | None:
    """PEFT's name of the plan's method; None where PEFT has no part in it."""
    given = plan.method_options.get("peft_type")
    return get_method(plan.method).peft_type if given is None else str(given)


def _linear_names(spec: ModelSpec) -> list[str]:
    """LLaMA-Factory's "all" (model_utils/misc.py find_all_linear_modules): the names of the linears that it finds."""
    linears = (x for g in spec.layers for x in g.block.linears)
    return sorted({x.name.rsplit(".", 1)[-1] for x in linears if x.kind != "parameter"})


def _settings(name: str | None, plan: Plan, spec: ModelSpec) -> dict[str, Any]:
    """What the plan's own fields say, under PEFT's names."""
    if name in PROMPTS:
        settings: dict[str, Any] = {"num_virtual_tokens": plan.num_virtual_tokens}
        if name == "PREFIX_TUNING":
            settings["prefix_projection"] = plan.prefix_projection
        if name == "P_TUNING" or settings.get("prefix_projection"):
            width = spec.hidden_size if name == "PREFIX_TUNING" else spec.embeddings[0].width
            settings["encoder_hidden_size"] = plan.encoder_hidden_size or width
        return settings
    everywhere = "all-linear" in plan.target_modules
    settings = {"target_modules": "all-linear" if everywhere else list(plan.target_modules)}
    if everywhere and plan.platform == "llamafactory" and name == "LORA":
        settings["target_modules"] = _linear_names(spec)
    if everywhere and name in OWN_TARGETS:
        del settings["target_modules"]
    if everywhere and plan.task in SCALAR_TASKS and spec.model_type in SAVED_WITH_CLASSIFIER:
        settings["exclude_modules"] = [SAVED_WITH_CLASSIFIER[spec.model_type]]
    if name in WITH_RANK:
        settings["r"] = plan.lora_rank
    if name in ("LORA", "ADALORA"):
        settings["lora_alpha"] = plan.lora_alpha or 2 * plan.lora_rank
    if name in DROPOUT:
        settings[DROPOUT[name]] = plan.lora_dropout
    if name == "IA3" and not everywhere:
        down = [x.name for g in spec.layers for x in g.block.linears if x.role == "down"]
        settings["feedforward_modules"] = [t for t in plan.target_modules if any(matches(t, x) for x in down)]
    if name == "ADALORA":
        settings |= {"init_r": initial_rank(plan), "target_r": plan.lora_rank, "total_step": plan.max_steps or 1000}
    return settings | LORA_VARIANTS.get(plan.method, {})


def _make(kind: Any, options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise InvalidInputError("method_options", f"{kind.__name__} does not take them: {error}") from error


def _some_layers(model: Any, method: SomeLayers, plan: Plan, spec: ModelSpec, regime: Regime) -> Any:
    """Only some layers are trained; LLaMA-Factory casts those to fp32 (model/adapter.py _setup_freeze_tuning)."""
    trained = [is_trained for count, _, is_trained in method.split_layers(spec, plan) for _ in range(count)]
    for name, parameter in model.named_parameters():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        parameter.requires_grad_(bool(numbers) and trained[numbers[0]])
        if parameter.requires_grad and regime.trained > regime.base:
            parameter.data = parameter.data.to(torch.float32)
    return model

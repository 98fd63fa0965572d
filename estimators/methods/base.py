"""Method: what a fine-tuning method trains, what it adds to the model, and what it cannot be combined with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from estimators.methods.scalar_head import copied_dense, is_scalar, scalar_head, task_model
from estimators.optimizer_states import state_bytes, step_temporary_bytes
from profiles.errors import InvalidInputError
from profiles.model import Linear, ModelSpec, Norm
from profiles.plan import QUANTIZED, Plan
from profiles.scheme import OptimizerSpec

# PEFT keeps a full copy of every module whose name ends in "classifier", and fails where that has an adapter
SAVED_WITH_CLASSIFIER = {"distilbert": "pre_classifier"}
# The eight that advice weighs against each other; the others can be estimated.
FRAMEWORK = ("adalora", "bitfit", "full", "lora", "prefix", "prompt", "ptuning", "qlora")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTensors:
    """`tensors` equal parameters of `elements` each. `in_base`: they are the base model's own, in its dtype.
    `embedding`: a lookup table, whose states some optimizers keep in fp32. `is_copy`: they stand beside frozen ones.
    `columns`: of a weight matrix inside the layers (0: no such matrix). `rank`: what its gradient is projected to (0:
    it is not)."""

    elements: int
    tensors: int
    in_base: bool = False
    embedding: bool = False
    is_copy: bool = False
    columns: int = 0
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedLinear:
    """A matmul weight with an adapter of rank `rank` beside it, in `layers` equal layers."""

    linear: Linear
    layers: int
    rank: int


class Method:
    """One fine-tuning method. Subclasses stand in one file each and override what differs.

    `trains_base`: base weights get gradients. `adds_tokens`: virtual tokens run through every layer with the input;
    `adds_keys`: they stand in the attention's keys and values only. `trains_layers`: some layers, whole
    (methods/some_layers.py). `in_half`: its own weights stay in the base's dtype on every platform.
    """

    id: str
    title: str
    peft_type: str | None = None
    trains_base = False
    trains_layers = False
    in_half = False
    needs_quantized_base = False
    adds_tokens = False
    adds_keys = False
    uses_rank = False

    @property
    def framework(self) -> bool:
        """Whether advice weighs this method against others."""
        return self.id in FRAMEWORK

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """Yield everything that gets a gradient and optimizer states."""
        raise NotImplementedError

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """Return the linears that carry an adapter; empty for methods without any."""
        return ()

    def adapter(self, plan: Plan) -> str:
        """Name what stands around an adapted linear: a key of estimators/adapters.py."""
        return "lora"

    def frozen_elements(self, model: ModelSpec, plan: Plan) -> int:
        """Count what the method adds in the adapter's dtype but does not train."""
        return 0

    def penalty_elements(self, model: ModelSpec, plan: Plan) -> tuple[int, int]:
        """Count what a penalty on the method's own weights keeps for backward: the weights (each read twice), and the
        tensors made of them."""
        return 0, 0

    def has_encoder(self, plan: Plan) -> bool:
        """Whether what is trained are linears outside the layers, which run in each forward."""
        return False

    def trains_norm(self, norm: Norm, model: ModelSpec, plan: Plan) -> bool:
        """Whether this norm is trained though the weights beside it are not."""
        return False

    def extended(self, model: ModelSpec, plan: Plan) -> ModelSpec:
        """The model that is loaded: `model` itself, unless the method adds layers to it."""
        return model

    def state_bytes(self, t: TrainedTensors, optimizer: OptimizerSpec, itemsize: int) -> float:
        """Bytes that the optimizer keeps for `t`, whose elements take `itemsize` bytes."""
        return state_bytes(
            optimizer,
            elements=t.elements,
            tensors=t.tensors,
            itemsize=itemsize,
            embedding=t.embedding,
            columns=t.columns,
        )

    def step_temporary_bytes(self, trained: Sequence[tuple[TrainedTensors, int]], optimizer: OptimizerSpec) -> float:
        """What the optimizer's step makes beside gradients and states. `trained`: tensors and bytes an element."""
        return step_temporary_bytes(
            optimizer,
            trained_bytes=sum(float(t.elements * t.tensors * itemsize) for t, itemsize in trained),
            sizes=[(t.elements, t.tensors, itemsize, t.columns) for t, itemsize in trained],
        )

    def trained_for(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """`trained`, and the scores that the task puts in the vocabulary's place."""
        model = task_model(plan, model)
        yield from self.trained(model, plan)
        if not is_scalar(plan) or self.trains_layers:
            return
        copied = copied_dense(model) if self.peft_type else None
        for linear in (scalar_head(model, plan), *((copied,) if copied else ())):
            sizes = (linear.weight_parameters * (self.id != "bitfit"), linear.bias_parameters)
            for elements in sizes:
                if elements:
                    yield TrainedTensors(elements=elements, tensors=1, in_base=True, is_copy=bool(self.peft_type))

    def trainable_parameters(self, model: ModelSpec, plan: Plan) -> int:
        """Elements of all trained tensors."""
        return sum(t.elements * t.tensors for t in self.trained_for(model, plan))

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """Say why this method cannot be used so, or None. Platform support is not this function's concern."""
        if self.needs_quantized_base and plan.quantization not in QUANTIZED:
            return f"{self.title} means adapters on a 4-bit base; on a {plan.quantization} base it is plain LoRA"
        return None


def target_linears(model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
    """Resolve `target_modules` as PEFT does: 'all-linear' is every nn.Linear and Conv1D but the head. LLaMA-Factory's
    projects name the layers' alone.

    Raises:
        InvalidInputError: a name matches no module of this model, or its head or embedding.
    """
    wanted = set(plan.target_modules)
    found: list[AdaptedLinear] = []
    seen = {"all-linear"}
    linears = [(x, g.count) for g in model.layers for x in g.block.linears]
    if plan.platform != "llamafactory" and model.model_type not in SAVED_WITH_CLASSIFIER:
        linears += [(x, 1) for x in model.extra_linears]
    for linear, count in linears:
        if linear.kind == "parameter":
            continue
        hits = {name for name in wanted if matches(name, linear.name)}
        seen |= hits
        if hits or "all-linear" in wanted:
            found.append(AdaptedLinear(linear=linear, layers=count * linear.copies, rank=plan.lora_rank))
    missing = wanted - seen
    outside = [name for name in missing if _is_outside(name, model)]
    if outside:
        raise InvalidInputError(
            "target_modules",
            f"{outside[0]} of {model.name} takes no adapter here: TRL refuses the head, embeddings are not modelled",
            'train a full copy of it: method_options {"modules_to_save": ["' + outside[0] + '"]}',
        )
    if missing:
        names = sorted({x.name.rsplit(".", 1)[-1] for g in model.layers for x in g.block.linears})
        raise InvalidInputError(
            "target_modules",
            f"{model.name} has no module {', '.join(sorted(missing))}",
            f"its modules are {', '.join(names)}; 'all-linear' takes them all",
        )
    return tuple(found)


def _is_outside(name: str, model: ModelSpec) -> bool:
    head = [model.head.name] if model.head is not None else []
    return any(matches(name, other) for other in [*head, *(e.name for e in model.embeddings)])


def matches(target: str, name: str) -> bool:
    """PEFT matches a module's whole name or its end, at a dot (tuners/tuners_utils.py check_target_module_exists)."""
    return name == target or name.endswith(f".{target}")

"""Loading, for the replay: what `from_pretrained` and PEFT allocate, in their order."""

from estimators.layer_ops import FP32
from estimators.memory import MemoryModel
from estimators.regime import Regime
from estimators.replay_tape import ReplayTape
from estimators.setup import LayerRun
from estimators.weights import is_quantized, linear_bytes
from profiles.model import Linear, ModelSpec, Norm
from profiles.plan import Plan
from profiles.units import MIB

DDP_BUCKET = 25 * MIB

Stored = list[tuple[int, float]]  # key and elements of each tensor


def unrolled(memory: MemoryModel) -> list[LayerRun]:
    """Every layer by itself."""
    return [run for run in memory.runs for _ in range(run.count)]


def load_model(tape: ReplayTape, plan: Plan, memory: MemoryModel, *, moved: bool) -> None:
    """Weights as `from_pretrained` brings them, what is widened then, adapters, DDP's buckets.

    transformers 5.23 (core_model_loading.py, modeling_utils.py) warms the cache up with one allocation of all weights,
    then takes parameters in the order of their names. moved: `.to(device)` of a model in 16 bits, in the order of its
    modules.
    """
    regime = memory.regime
    prepared = bool(plan.kbit_prepared and regime.quantized)
    itemsize = regime.compute if prepared else regime.base
    whole, trained = _load_weights(tape, memory, itemsize, moved=moved and not regime.quantized)
    for key, elements in whole if prepared else ():
        tape.take(elements * FP32)
        tape.give(key)
    for key, elements in trained:
        tape.take(elements * regime.trained)
        tape.give(key)
    _load_adapters(tape, memory)
    if plan.sharding == "ddp":
        _take_buckets(tape, memory)


def _load_weights(tape: ReplayTape, memory: MemoryModel, itemsize: int, *, moved: bool) -> tuple[Stored, Stored]:
    """What is not quantised, and what of it is widened because it is trained."""
    regime, model, layers = memory.regime, memory.model, unrolled(memory)
    whole: Stored = []
    trained: Stored = []

    def keep(elements: float) -> None:
        whole.append((tape.take(elements * itemsize), elements))

    if not moved:
        tape.give(tape.take(_warm_up_bytes(model, layers, regime, itemsize)))
    head = model.head if model.head is not None and not model.tie_word_embeddings else None
    if head is not None and not moved:  # "lm_head" comes before "model"
        keep(head.weight_parameters)
    for embedding in model.embeddings:
        keep(embedding.parameters)
    for run in layers:
        first = len(whole)
        parts: list[Linear | Norm] = [*run.block.linears, *run.block.norms]
        for part in parts if moved else sorted(parts, key=lambda x: x.name):
            if isinstance(part, Linear) and is_quantized(part, regime):
                _load_quantized(tape, part, regime)
            elif isinstance(part, Linear):
                copies = 1 if part.kind == "parameter" else part.copies
                for _ in range(copies):
                    keep(part.weight_parameters / copies)
                if part.bias:
                    keep(part.bias_parameters)
            else:
                keep(part.parameters)
        if run.setup.trains_weights and regime.trained > regime.base:
            trained += whole[first:]
    for norm in model.extra_norms:
        keep(norm.parameters)
    if head is not None and moved:
        keep(head.weight_parameters)
    return whole, trained


def _warm_up_bytes(model: ModelSpec, layers: list[LayerRun], regime: Regime, itemsize: float) -> float:
    """All weights; quantised ones by their bits alone."""
    bits = {0: 0.0, 4: 0.5, 8: 1.0}[regime.quantized]
    linears = [x for run in layers for x in run.block.linears if is_quantized(x, regime)]
    quantized = sum(x.weight_parameters for x in linears)
    return (model.parameters - quantized) * itemsize + quantized * bits


def _load_quantized(tape: ReplayTape, linear: Linear, regime: Regime) -> None:
    """A weight that is quantised comes in 16 bits first; the absmax of 4 bits in fp32 before they are nested."""
    for _ in range(linear.copies):
        weights = linear.weight_parameters / linear.copies
        if regime.quantized != 4:
            tape.take(linear_bytes(linear, regime) / linear.copies)
            continue
        full = tape.take(weights * regime.compute)
        tape.take(weights / 2)
        absmax = tape.take(weights / 16)
        if regime.nested:
            centred = tape.take(weights / 16)
            tape.take(weights / 64)
            tape.give(centred, absmax)
        tape.give(full)


def _load_adapters(tape: ReplayTape, memory: MemoryModel) -> None:
    """PEFT makes adapters in the base's dtype, and widens them one after another when all stand."""
    regime = memory.regime
    elements = [t.elements for t in memory.trained if not t.in_base for _ in range(t.tensors)]
    narrow = min(regime.adapter, regime.compute)
    made = [tape.take(n * narrow) for n in elements]
    if narrow < regime.adapter:
        for key, n in zip(made, elements, strict=True):
            tape.take(n * regime.adapter)
            tape.give(key)


def _take_buckets(tape: ReplayTape, memory: MemoryModel) -> None:
    """DDP keeps all gradients once more, in flat tensors of 25 MiB (reducer.cpp, initialize_buckets)."""
    left = sum(memory.trained_bytes())
    while left > 0:
        tape.take(min(left, DDP_BUCKET))
        left -= DDP_BUCKET

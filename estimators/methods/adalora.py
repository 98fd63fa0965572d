"""AdaLoRA: W x + P Lambda Q x, ranks pruned from init_r to target_r while training (arXiv 2303.10512).

PEFT (tuners/adalora/layer.py) holds A (init_r, in), E (init_r, 1) and B (out, init_r) for the whole run: pruning
zeroes entries of E, it frees nothing. So memory follows init_r.
"""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors, target_linears
from estimators.methods.linear_adapter import LinearAdapter
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan
from profiles.scheme import OptimizerSpec

SCORES = 3  # tuners/adalora/layer.py RankAllocator: importance, and the running means of it and of its uncertainty
INIT_OVER_TARGET = 1.5  # PEFT's defaults: init_r 12, target_r 8 (tuners/adalora/config.py)


def initial_rank(plan: Plan) -> int:
    """init_r: as given, else 1.5 times the wanted rank, as PEFT's own defaults stand."""
    given = plan.method_options.get("init_r")
    return int(given) if given is not None else max(1, round(plan.lora_rank * INIT_OVER_TARGET))


def trains_ranknum(plan: Plan) -> bool:
    """PEFT 0.21.2 moves or upcasts the rank's counter with the adapters, and as a new parameter it asks for a gradient.

    `_move_adapter_to_device_of_base_layer` and cast_adapter_dtype (tuners_utils.py) put a Tensor into a ParameterDict:
    where the base stands on the card already, as a quantised one does, or where the adapters stood in 16 bits.
    """
    if plan.quantization in QUANTIZED:
        return True
    return plan.quantization in ("bf16", "fp16") and plan.adapter_dtype in (None, "fp32")


class AdaLora(LinearAdapter):
    """SVD-shaped adapters; `lora_rank` is the target rank. Runs on a quantised base too (SVDLinear4bit, 8bitLt)."""

    id = "adalora"
    title = "AdaLoRA"
    peft_type = "ADALORA"

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """The targets, at the initial rank."""
        rank = initial_rank(plan)
        return tuple(AdaptedLinear(linear=x.linear, layers=x.layers, rank=rank) for x in target_linears(model, plan))

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """A, B, the singular values E and, by accident, the counter."""
        yield TrainedTensors(elements=x.rank * x.linear.in_features, tensors=x.layers)
        yield TrainedTensors(elements=x.rank * x.linear.out_features, tensors=x.layers)
        yield TrainedTensors(elements=x.rank, tensors=x.layers)
        if trains_ranknum(plan):
            yield TrainedTensors(elements=1, tensors=x.layers)

    def state_bytes(self, t: TrainedTensors, optimizer: OptimizerSpec, itemsize: int) -> float:
        """The optimizer's, and the rank allocator's (RankAllocator.update_ipt)."""
        return super().state_bytes(t, optimizer, itemsize) + SCORES * t.elements * t.tensors * itemsize

    def penalty_elements(self, model: ModelSpec, plan: Plan) -> tuple[int, int]:
        """|A A^T - 1| + |B^T B - 1|, added to the model's own loss (tuners/adalora/model.py)."""
        adapted = self.adapted(model, plan)
        weights = sum(x.layers * x.rank * (x.linear.in_features + x.linear.out_features) for x in adapted)
        return weights, sum(2 * x.layers * x.rank * x.rank for x in adapted)

    def adapter(self, plan: Plan) -> str:
        """Three factors, multiplied without modules."""
        return "svd"


METHOD = AdaLora()

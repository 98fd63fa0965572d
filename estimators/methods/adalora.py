"""AdaLoRA: W x + P Lambda Q x, ranks pruned from init_r to target_r while training (arXiv 2303.10512).

PEFT (tuners/adalora/layer.py) holds A (init_r, in), E (init_r, 1) and B (out, init_r) for the whole run: pruning
zeroes entries of E, it frees nothing. So memory follows init_r.
"""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors, target_linears
from estimators.methods.lora import Lora
from profiles.model import ModelSpec
from profiles.plan import Plan

INIT_OVER_TARGET = 1.5  # PEFT's defaults: init_r 12, target_r 8 (tuners/adalora/config.py)


def initial_rank(plan: Plan) -> int:
    """init_r: as given, else 1.5 times the wanted rank, as PEFT's own defaults stand."""
    given = plan.method_options.get("init_r")
    return int(given) if given is not None else max(1, round(plan.lora_rank * INIT_OVER_TARGET))


class AdaLora(Lora):
    """SVD-shaped adapters; `lora_rank` is the target rank."""

    id = "adalora"
    title = "AdaLoRA"
    peft_type = "ADALORA"

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """The targets, at the initial rank."""
        rank = initial_rank(plan)
        return tuple(AdaptedLinear(linear=x.linear, layers=x.layers, rank=rank) for x in target_linears(model, plan))

    def adapter(self, plan: Plan) -> str:
        """Three factors, multiplied without modules."""
        return "svd"

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """A, B and the singular values E."""
        yield from super().trained(model, plan)
        for x in self.adapted(model, plan):
            yield TrainedTensors(elements=x.rank, tensors=x.layers)

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """Runs on a quantised base too (SVDLinear4bit, SVDLinear8bitLt)."""
        return None


METHOD = AdaLora()

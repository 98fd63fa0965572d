"""OFT: the input's blocks turned by trained orthogonal matrices (Qiu et al. 2023, arXiv 2306.07280)."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors, target_linears
from estimators.methods.linear_adapter import LinearAdapter
from profiles.model import ModelSpec
from profiles.plan import Plan

BLOCK_SIZE = 32  # tuners/oft/config.py oft_block_size


def block_size(in_features: int, plan: Plan) -> int:
    """Features of one block: oft_block_size, or what `r` blocks leave, moved to the nearest divisor."""
    r = int(plan.method_options.get("r", 0))
    if r:
        return in_features // nearest_divisor(in_features, r)
    return nearest_divisor(in_features, int(plan.method_options.get("oft_block_size", BLOCK_SIZE)))


def nearest_divisor(n: int, wanted: int) -> int:
    """The divisor of n that is nearest to `wanted`, the lower of two (tuners/oft/layer.py adjust_oft_parameters)."""
    if wanted >= n:
        return n
    higher = next(k for k in range(wanted, n + 1) if n % k == 0)
    lower = next(k for k in range(wanted, 0, -1) if n % k == 0)
    return lower if wanted - lower <= higher - wanted else higher


class Oft(LinearAdapter):
    """A skew matrix a block, of which the upper triangle is trained."""

    id = "oft"
    title = "OFT"
    peft_type = "OFT"
    uses_rank = False
    takes_conv1d = False

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """The targets; the rank is the block's size."""
        return tuple(
            AdaptedLinear(linear=x.linear, layers=x.layers, rank=block_size(x.linear.in_features, plan))
            for x in target_linears(model, plan)
        )

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """Upper triangles of all blocks, or of one that they share."""
        blocks = 1 if plan.method_options.get("block_share") else x.linear.in_features // x.rank
        yield TrainedTensors(elements=blocks * x.rank * (x.rank - 1) // 2, tensors=x.layers)

    def adapter(self, plan: Plan) -> str:
        """A rotation in front of the linear."""
        return "oft"


METHOD = Oft()

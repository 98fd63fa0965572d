"""LoKr: the update is a Kronecker product of a small and a larger, perhaps low-rank, matrix (LyCORIS, 2309.14859)."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors, target_linears
from estimators.methods.linear_adapter import LinearAdapter
from profiles.model import Linear, ModelSpec
from profiles.plan import Plan


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """Two factors of `dimension`, the smaller first: as given, or the pair nearest to the square root whose first is
    not above `factor` (-1: no bound). As tuners/lokr/layer.py chooses them: it stops where the sum grows."""
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    bound = dimension if factor == -1 else factor
    m, n = 1, dimension
    while m < n:
        larger = next(k for k in range(m + 1, dimension + 1) if dimension % k == 0)
        if larger + dimension // larger > m + n or larger > bound:
            break
        m, n = larger, dimension // larger
    return min(m, n), max(m, n)


def factors(linear: Linear, rank: int, plan: Plan) -> Iterator[int]:
    """Elements of each trained matrix."""
    bound = int(plan.method_options.get("decompose_factor", -1))
    (out_small, out_large), (in_small, in_large) = (
        factorization(n, bound) for n in (linear.out_features, linear.in_features)
    )
    if plan.method_options.get("decompose_both") and rank < max(out_small, in_small) / 2:
        yield from (out_small * rank, rank * in_small)
    else:
        yield out_small * in_small
    if rank < max(out_large, in_large) / 2:
        yield from (out_large * rank, rank * in_large)
    else:
        yield out_large * in_large


class Lokr(LinearAdapter):
    """Few parameters; the dense update is kept for backward."""

    id = "lokr"
    title = "LoKr"
    peft_type = "LOKR"
    needs_dense_weight = True
    takes_conv1d = False

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """The Kronecker factors."""
        for elements in factors(x.linear, x.rank, plan):
            yield TrainedTensors(elements=elements, tensors=x.layers)

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """The targets."""
        return target_linears(model, plan)

    def adapter(self, plan: Plan) -> str:
        """A dense update."""
        return "lokr"


METHOD = Lokr()

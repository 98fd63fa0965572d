"""Which micro-batches a run's optimizer steps see."""

from collections.abc import Sequence

from profiles.plan import Plan

DISTINCT_MICRO_STEPS = 3  # without gradients, with the first, and as all that follow
STEPS = 2  # the first makes the optimizer's states, the second meets them

Batches = Sequence[tuple[int, int]]


def optimizer_steps(
    plan: Plan, batches: Batches = (), *, distinct: int = DISTINCT_MICRO_STEPS
) -> list[tuple[tuple[int, int], ...]]:
    """(rows, padded length) of each micro-batch, by optimizer step: of `batches`, or of as many of the plan's own as
    differ in what they find, at most `distinct` of a step."""
    each = plan.gradient_accumulation_steps
    if not batches:
        return [((plan.micro_batch_size, plan.seq_len),) * min(each, distinct)] * STEPS
    return [tuple(batches[i : i + each]) for i in range(0, len(batches), each)]

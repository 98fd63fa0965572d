"""The Pareto front: combinations that no other one equals or beats in evidence on quality, time and memory at once."""

from collections.abc import Sequence

from advisor.criteria import seconds_per_token
from advisor.recommendation import Candidate, FrontPoint


def find_front(candidates: Sequence[Candidate], best: Candidate) -> tuple[FrontPoint, ...]:
    """The front by tier, then time. Of combinations that are alike in all three the first of `candidates` stays."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=_objectives):
        if not any(dominates(other, candidate) for other in kept):
            kept.append(candidate)
    return tuple(_point(candidate, best) for candidate in kept)


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether `one` is nowhere worse than `other`."""
    return all(a <= b for a, b in zip(_objectives(one), _objectives(other), strict=True))


def _objectives(candidate: Candidate) -> tuple[float, float, float]:
    return candidate.quality.tier, seconds_per_token(candidate) or 0.0, candidate.memory.device.high


def _point(candidate: Candidate, best: Candidate) -> FrontPoint:
    platform, method, quantization = candidate.key
    return FrontPoint.model_construct(
        platform=platform,
        method=method,
        quantization=quantization,
        tier=candidate.quality.tier,
        seconds_per_token=seconds_per_token(candidate),
        device_high=candidate.memory.device.high,
        best=candidate.key == best.key,
    )

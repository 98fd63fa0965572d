"""What decides between candidates: criteria in a stated order for each goal, one after the other. No weights."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import floor, log

from advisor.recommendation import Candidate, RunnerUp
from advisor.request import Goal
from estimators.methods import get_method
from profiles.plan import QUANTIZED
from profiles.platform import PlatformSpec, load_platforms
from profiles.units import format_bytes

EQUAL_TIME = 1.10  # step times within 10 % of each other are one class: the estimate cannot tell them apart
QUALITY_FLOOR = 2  # "fast" and "cheap" still want a method that teaches the model something
RUNNER_UPS = 4
METHOD_ORDER = {
    "lora": 0,
    "qlora": 0,  # the same method; `storage` and the evidence tell the two apart
    "full": 1,
    "adalora": 2,
    "bitfit": 3,
    "prefix": 4,
    "ptuning": 5,
    "prompt": 6,
}
FORMAT_ORDER = ("bf16", "fp16", "int8", "nf4-dq", "nf4", "fp4", "fp32")


@dataclass(frozen=True, slots=True)
class Criterion:
    """One question asked of every candidate: smaller is better. `why` says how a loser compares with the winner."""

    id: str
    title: str
    value: Callable[[Candidate, float], float]
    why: Callable[[Candidate, Candidate], str]


def seconds_per_token(candidate: Candidate) -> float | None:
    """Expected seconds a real token; None where the speed is not known."""
    speed = candidate.speed
    return None if speed is None else 1.0 / speed.tokens_per_second.expected


def _time_class(candidate: Candidate, fastest: float) -> float:
    seconds = seconds_per_token(candidate)
    return 0.0 if seconds is None else floor(log(seconds / fastest) / log(EQUAL_TIME) + 1e-9)


def _slower(loser: Candidate, winner: Candidate) -> str:
    mine, best = seconds_per_token(loser), seconds_per_token(winner)
    if mine is None or best is None:
        return "its speed is not known"
    return f"{mine / best - 1:.0%} slower by the estimate"


def _pace(loser: Candidate, winner: Candidate) -> str:
    mine, best = seconds_per_token(loser), seconds_per_token(winner)
    if mine is None or best is None or abs(best / mine - 1) < EQUAL_TIME - 1:
        return ""
    return f" ({best / mine:.1f} times its speed by the estimate)" if best > mine else f" ({_slower(loser, winner)})"


def _ready(candidate: Candidate, _: float) -> float:
    return 0.0 if _has_emitter(candidate.plan.platform) else 1.0


@cache
def _has_emitter(platform: str) -> bool:
    """A platform's emitter is the module of its name; looked for without importing it."""
    return find_spec(f"advisor.emit.{platform}") is not None


def _platform(candidate: Candidate) -> PlatformSpec:
    return load_platforms()[candidate.plan.platform]


def _name(candidate: Candidate) -> str:
    return _platform(candidate).name


CRITERIA: dict[str, Criterion] = {
    c.id: c
    for c in (
        Criterion(
            "ready",
            "ftadvise can write its project",
            _ready,
            lambda loser, winner: f"ftadvise does not write projects for {_name(loser)} yet{_pace(loser, winner)}",
        ),
        Criterion(
            "quality",
            "evidence on quality",
            lambda c, _: c.quality.tier,
            lambda loser, winner: f"weaker evidence on quality: {loser.quality.deciding.finding}",
        ),
        Criterion(
            "quality-floor",
            "evidence on quality at least at tier 2",
            lambda c, _: max(c.quality.tier, QUALITY_FLOOR),
            lambda loser, winner: f"too weak evidence on quality: {loser.quality.deciding.finding}",
        ),
        Criterion(
            "method",
            "adapters before full fine-tuning: they forget less, and many serve from one base",
            lambda c, _: METHOD_ORDER[c.plan.method],
            lambda loser, winner: (
                f"of equal quality by the evidence, {get_method(winner.plan.method).title} comes before "
                f"{get_method(loser.plan.method).title}: cheaper to keep, forgets less"
            ),
        ),
        Criterion(
            "capacity",
            "full fine-tuning before adapters: the most capacity",
            lambda c, _: float(c.plan.method != "full"),
            lambda loser, winner: f"{get_method(winner.plan.method).title} has more capacity to learn",
        ),
        Criterion(
            "time", "time, in classes of 10 %", _time_class, _slower,
        ),
        Criterion(
            "storage",
            "a plain base before a quantised one: nothing to dequantise in every pass",
            lambda c, _: float(c.plan.quantization in QUANTIZED),
            lambda loser, winner: (
                f"a {loser.plan.quantization} base only adds work where {winner.plan.quantization} fits"
            ),
        ),
        Criterion(
            "format",
            "the usual number format",
            lambda c, _: FORMAT_ORDER.index(c.plan.quantization),
            lambda loser, winner: f"{loser.plan.quantization} buys nothing where {winner.plan.quantization} fits",
        ),
        Criterion(
            "headroom",
            "free memory, in steps of 10 % of the card",
            lambda c, _: -floor(c.headroom * 10),
            lambda loser, winner: (
                f"leaves less memory free: peak up to {format_bytes(loser.memory.device.high)} against "
                f"{format_bytes(winner.memory.device.high)}"
            ),
        ),
        Criterion(
            "ease",
            "ease of use",
            lambda c, _: _platform(c).ease,
            lambda loser, winner: f"{_name(loser)} takes more work: {_platform(loser).ease_reason}",
        ),
        Criterion(
            "maturity",
            "maturity of the platform",
            lambda c, _: _platform(c).maturity,
            lambda loser, winner: f"{_name(loser)}: {_platform(loser).maturity_reason}",
        ),
    )
}  # fmt: skip

ORDER: dict[Goal, tuple[str, ...]] = {
    "balanced": ("ready", "quality", "method", "storage", "time", "format", "headroom", "ease", "maturity"),
    "best": ("ready", "quality", "capacity", "method", "storage", "time", "format", "headroom", "ease", "maturity"),
    "fast": ("ready", "quality-floor", "time", "quality", "method", "format", "headroom", "ease", "maturity"),
    "cheap": ("ready", "quality-floor", "time", "headroom", "quality", "method", "format", "ease", "maturity"),
}


def criteria(goal: Goal) -> tuple[Criterion, ...]:
    """The criteria of `goal`, the weightiest first."""
    return tuple(CRITERIA[name] for name in ORDER[goal])


def rank(candidates: Iterable[Candidate], goal: Goal) -> list[Candidate]:
    """Sort by the criteria of `goal`; the names break what ties remain, so that input order never matters."""
    pool = list(candidates)
    fastest = _fastest(pool)
    return sorted(pool, key=lambda c: (*(x.value(c, fastest) for x in criteria(goal)), c.key))


def choose_runner_ups(ranked: Sequence[Candidate], goal: Goal) -> tuple[RunnerUp, ...]:
    """The best of each other platform, then of each other method, with the first criterion at which each lost."""
    winner, fastest = ranked[0], _fastest(ranked)
    platforms, others = {winner.plan.platform}, {winner.plan.method}
    by_platform: list[Candidate] = []
    by_method: list[Candidate] = []
    for candidate in ranked[1:]:
        if candidate.plan.method not in others:
            by_method.append(candidate)
        elif candidate.plan.platform not in platforms:
            by_platform.append(candidate)
        platforms.add(candidate.plan.platform)
        others.add(candidate.plan.method)
    chosen = [*by_platform, *by_method][:RUNNER_UPS]
    return tuple(_runner_up(c, winner, goal, fastest) for c in ranked if c in chosen)


def _runner_up(candidate: Candidate, winner: Candidate, goal: Goal, fastest: float) -> RunnerUp:
    lost = next(
        (x for x in criteria(goal) if x.value(candidate, fastest) > x.value(winner, fastest)), criteria(goal)[-1]
    )
    return RunnerUp(candidate=candidate, criterion=lost.id, why_not=lost.why(candidate, winner))


def _fastest(candidates: Iterable[Candidate]) -> float:
    return min((s for s in map(seconds_per_token, candidates) if s is not None), default=1.0)

"""What decides between candidates: criteria in a stated order, one after the other. No weights.

A goal gives the order, and `--prefer` moves criteria to its front.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from math import floor, log
from typing import Any, NamedTuple

from advisor.plans import Cell
from advisor.recommendation import Candidate, Facts
from advisor.request import Goal, Request
from estimators.methods import get_method
from profiles.plan import QUANTIZED
from profiles.platform import Place, PlatformSpec, load_platforms
from profiles.quality import find_quality
from profiles.units import format_bytes

EQUAL_TIME = 1.10  # step times within 10 % of each other are one class: the estimate cannot tell them apart
SOUND = 3  # tier up to which evidence is good enough not to concede anything for better
QUALITY_FLOOR = 2  # "fast" and "cheap" still want a method that teaches the model something
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
FORMAT_ORDER = ("bf16", "fp16", "fp32", "nf4-dq", "nf4", "fp4", "int8")
FORMAT_ORDER_CPU = ("fp32", *FORMAT_ORDER)  # a CPU computes fp32 faster than 16-bit formats


class Known(NamedTuple):
    """What is known of a candidate before anything is estimated."""

    platform: PlatformSpec
    method: str
    quantization: str
    tier: int
    emitted: bool
    ran: bool
    on_cpu: bool


@dataclass(frozen=True, slots=True)
class Criterion:
    """One question asked of every candidate: smaller is better. `why` says how a loser compares with the winner.

    `before` answers it without an estimate, `after` from one; `measure` is compared in classes of 10 %, counted from
    the least of those that are equal in all weightier criteria (None: not known, taken for the least).
    """

    id: str
    title: str
    why: Callable[[Candidate, Candidate], str]
    before: Callable[[Known], float] | None = None
    after: Callable[[Candidate], float] | None = None
    measure: Callable[[Candidate], float | None] | None = None


def is_emitted(platform: str, facts: Facts) -> bool:
    """Whether `ftadvise emit` writes the platform's projects for this task and kind of model."""
    return facts.task in load_platforms()[platform].emitted_tasks and facts.model.kind != "encoder-decoder"


class Ran(NamedTuple):
    """Where all parts of a plan ran on its platform, each in some run; `never` names the first that ran nowhere."""

    where: Place | None
    never: str = ""


def ran(platform: PlatformSpec, method: str, quantization: str, task: str, *, several: bool) -> Ran:
    """The evidence of runs for a method of the comparison, the format of its base, the task and `several` cards."""
    parts = {
        get_method(method).title: platform.methods[method].ran,
        quantization: platform.quantizations[quantization].ran,
        task: platform.tasks[task].ran,
        **({"several cards": platform.ran_together} if several else {}),
    }
    never = next((name for name, where in parts.items() if where is None), "")
    return Ran(None, never) if never else Ran("cpu" if "cpu" in parts.values() else "gpu")


def know(cell: Cell, facts: Facts) -> Known:
    """What is known of a cell."""
    platform = load_platforms()[cell.platform]
    quality = find_quality(cell.method, cell.quantization, kind=facts.model.kind, task=facts.task)
    return Known(
        platform=platform,
        method=cell.method,
        quantization=cell.quantization,
        tier=quality.tier,
        emitted=is_emitted(cell.platform, facts),
        ran=ran(platform, *cell[1:], facts.task, several=facts.hardware.n_gpus > 1).where is not None,
        on_cpu=facts.hardware.gpu.vendor == "CPU",
    )


def seconds_per_token(candidate: Candidate) -> float | None:
    """Expected seconds a real token; None where the speed is not known."""
    speed = candidate.speed
    return None if speed is None else 1.0 / speed.tokens_per_second.expected


def card_seconds_per_token(candidate: Candidate) -> float | None:
    """The same over all cards, which is what costs."""
    seconds = seconds_per_token(candidate)
    return None if seconds is None else seconds * candidate.plan.n_gpus


def _class(value: float | None, least: float | None) -> float:
    return 0.0 if value is None or least is None else floor(log(value / least) / log(EQUAL_TIME) + 1e-9)


def _dearer(loser: Candidate, winner: Candidate) -> str:
    mine, best = card_seconds_per_token(loser), card_seconds_per_token(winner)
    if mine is None or best is None:
        return "its cost is not known"
    return f"{mine / best - 1:.0%} dearer by the estimate"


def _slower(loser: Candidate, winner: Candidate) -> str:
    mine, best = seconds_per_token(loser), seconds_per_token(winner)
    if mine is None or best is None:
        return "its speed is not known"
    return f"{mine / best - 1:.0%} slower by the estimate"


def _not_emitted(loser: Candidate, winner: Candidate) -> str:
    return _with_pace(f"ftadvise does not write projects for {_platform(loser).name} yet", loser, winner)


def _never_ran(loser: Candidate, winner: Candidate) -> str:
    plan, platform = loser.plan, _platform(loser)
    never = ran(platform, plan.method, plan.quantization, plan.task, several=True).never
    return _with_pace(f"never run by us on {platform.name}: {never}", loser, winner)


def _with_pace(said: str, loser: Candidate, winner: Candidate) -> str:
    mine, best = seconds_per_token(loser), seconds_per_token(winner)
    if mine is None or best is None or max(mine, best) < EQUAL_TIME * min(mine, best):
        return said
    pace = f"{best / mine:.1f} times its speed by the estimate" if best > mine else _slower(loser, winner)
    return f"{said} ({pace})"


def _less_free(loser: Candidate, winner: Candidate) -> str:
    mine, best = format_bytes(loser.memory.device.high), format_bytes(winner.memory.device.high)
    return f"leaves less memory free: peak up to {mine} against {best}"


def _format(known: Known) -> float:
    return (FORMAT_ORDER_CPU if known.on_cpu else FORMAT_ORDER).index(known.quantization)


def _platform(candidate: Candidate) -> PlatformSpec:
    return load_platforms()[candidate.plan.platform]


def _title(candidate: Candidate) -> str:
    return get_method(candidate.plan.method).title


_ALL = (
    Criterion(
        id="emitted",
        title="ftadvise can write its project",
        why=_not_emitted,
        before=lambda known: float(not known.emitted),
    ),
    Criterion(
        id="ran",
        title="run by us, on a CPU at least",
        why=_never_ran,
        before=lambda known: float(not known.ran),
    ),
    Criterion(
        id="quality",
        title="evidence on quality",
        why=lambda loser, winner: f"weaker evidence on quality: {loser.quality.deciding.finding}",
        before=lambda known: known.tier,
    ),
    Criterion(
        id="quality-floor",
        title=f"evidence on quality, at least tier {QUALITY_FLOOR}",
        why=lambda loser, winner: f"too weak evidence on quality: {loser.quality.deciding.finding}",
        before=lambda known: max(known.tier, QUALITY_FLOOR),
    ),
    Criterion(
        id="method",
        title="adapters before full fine-tuning, common methods before rare ones",
        why=lambda loser, winner: (
            f"no better by the evidence than {_title(winner)}, which is cheaper to keep and forgets less"
        ),
        before=lambda known: METHOD_ORDER[known.method],
    ),
    Criterion(
        id="capacity",
        title="full fine-tuning before adapters: the most capacity",
        why=lambda loser, winner: f"{_title(winner)} has more capacity to learn",
        before=lambda known: float(known.method != "full"),
    ),
    Criterion(
        id="storage",
        title="a plain base before a quantised one: nothing to dequantise in every pass",
        why=lambda loser, winner: f"{loser.plan.quantization} only adds work where {winner.plan.quantization} fits",
        before=lambda known: float(known.quantization in QUANTIZED),
    ),
    Criterion(
        id="format",
        title="the usual number format",
        why=lambda loser, winner: f"{loser.plan.quantization} buys nothing where {winner.plan.quantization} fits",
        before=_format,
    ),
    Criterion(id="time", title="time, in classes of 10 %", why=_slower, measure=seconds_per_token),
    Criterion(
        id="cost",
        title="time on all cards, which is what costs, in classes of 10 %",
        why=_dearer,
        measure=card_seconds_per_token,
    ),
    Criterion(
        id="headroom",
        title="free memory, in steps of 10 % of the card",
        why=_less_free,
        after=lambda candidate: -floor(candidate.headroom * 10),
    ),
    Criterion(
        id="ease",
        title="ease of use",
        why=lambda loser, winner: f"{_platform(loser).name} takes more work: {_platform(loser).ease_reason}",
        before=lambda known: known.platform.ease,
    ),
    Criterion(
        id="maturity",
        title="maturity of the platform",
        why=lambda loser, winner: f"{_platform(loser).name}: {_platform(loser).maturity_reason}",
        before=lambda known: known.platform.maturity,
    ),
)
CRITERIA = {criterion.id: criterion for criterion in _ALL}
# Before anything that a goal or a preference says: a project that can be written, a method that teaches the model
# something, on a platform that ran it.
FIRST = ("emitted", "quality-floor", "ran")
ORDER: dict[Goal, tuple[str, ...]] = {
    "balanced": ("quality", "method", "storage", "format", "time", "headroom", "maturity", "ease"),
    "best": ("quality", "capacity", "method", "storage", "format", "time", "headroom", "maturity", "ease"),
    "fast": ("time", "quality", "method", "format", "headroom", "maturity", "ease"),
    "cheap": ("cost", "headroom", "quality", "method", "format", "maturity", "ease"),
}


Order = tuple[str, ...]


def order_of(request: Request) -> Order:
    """The first questions, what is preferred, then the goal's order."""
    return tuple(dict.fromkeys((*FIRST, *request.prefer, *ORDER[request.goal])))


def criteria(order: Order) -> tuple[Criterion, ...]:
    """The criteria of `order`, the weightiest first."""
    return tuple(CRITERIA[name] for name in order)


def key_before(cell: Cell, order: Order, facts: Facts) -> tuple[float, ...]:
    """The answers to the criteria that come before the first one that needs an estimate."""
    known = know(cell, facts)
    leading = takewhile(lambda before: before is not None, (criterion.before for criterion in criteria(order)))
    return tuple(before(known) for before in leading if before is not None)


def rank(candidates: Iterable[Candidate], order: Order, facts: Facts) -> list[Candidate]:
    """Sort by the criteria; the names break what ties remain, so that input order never matters."""
    pool = list(candidates)
    groups: dict[tuple[float, ...], list[Candidate]] = {}
    for candidate in pool:
        groups.setdefault(key_before(Cell(*candidate.key), order, facts), []).append(candidate)
    least = {leading: _least(group, order) for leading, group in groups.items()}

    def key(candidate: Candidate) -> tuple[Any, ...]:
        leading = key_before(Cell(*candidate.key), order, facts)
        return (*_key(candidate, order, facts, least[leading]), candidate.key)

    return sorted(pool, key=key)


def first_loss(loser: Candidate, winner: Candidate, order: Order, facts: Facts) -> Criterion:
    """The weightiest criterion at which `loser` stands behind `winner`; the last one if it stands behind at none."""
    least = _least((loser, winner), order)
    pairs = zip(_key(loser, order, facts, least), _key(winner, order, facts, least), criteria(order), strict=True)
    return next((criterion for mine, best, criterion in pairs if mine > best), criteria(order)[-1])


def _least(candidates: Iterable[Candidate], order: Order) -> dict[str, float | None]:
    """The least of every measure."""
    pool = list(candidates)
    found: dict[str, float | None] = {}
    for criterion in criteria(order):
        if criterion.measure is not None:
            values = (criterion.measure(candidate) for candidate in pool)
            found[criterion.id] = min((v for v in values if v is not None), default=None)
    return found


def _key(candidate: Candidate, order: Order, facts: Facts, least: dict[str, float | None]) -> tuple[float, ...]:
    known = know(Cell(*candidate.key), facts)
    answers = []
    for criterion in criteria(order):
        if criterion.before is not None:
            answers.append(criterion.before(known))
        elif criterion.after is not None:
            answers.append(criterion.after(candidate))
        elif criterion.measure is not None:
            answers.append(_class(criterion.measure(candidate), least[criterion.id]))
    return tuple(answers)

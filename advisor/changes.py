"""What would have to change for another plan to win: memory, hours, money, or what comes first."""

from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import NamedTuple

from advisor.criteria import SOUND, key_before, know, order_of
from advisor.explain import example_card
from advisor.plans import Cell
from advisor.recommendation import Candidate, Change, ChangeKind, Dropped, Facts
from advisor.request import Request
from estimators.methods import get_method
from profiles.platform import load_platforms
from profiles.units import HOUR, format_duration

AMOUNTS: tuple[ChangeKind, ...] = ("memory", "hours", "usd")


class _Need(NamedTuple):
    """How much of something a dropped combination needs to be back in the contest."""

    kind: ChangeKind
    amount: float
    dropped: Dropped


def find_changes(best: Candidate | None, dropped: Sequence[Dropped], request: Request, facts: Facts) -> list[Change]:
    """Amounts of memory, hours or money at which a combination that is weightier than `best` would win instead.

    `dropped`: what was found not to fit, or to take too much. Only those count that the criteria put before `best` by
    what needs no estimate and whose evidence is sound; and one is named only where all before it need still more.
    """
    order = order_of(request)
    mine = None if best is None else key_before(Cell(*best.key), order, facts)

    def cell(d: Dropped) -> Cell:
        return Cell(d.platform, d.method, d.quantization)

    sound = [d for d in dropped if know(cell(d), facts).tier <= SOUND]
    ahead = [d for d in sound if mine is None or key_before(cell(d), order, facts) < mine]

    def stairs(kind: ChangeKind) -> Iterator[_Need]:
        needs = [need for d in ahead if (need := _need(kind, d, request)) is not None]
        needs.sort(key=lambda n: (key_before(cell(n.dropped), order, facts), n.amount, cell(n.dropped)))
        return _stairs(needs)

    return [_change(need) for kind in AMOUNTS for need in stairs(kind)]


def _stairs(needs: Iterable[_Need]) -> Iterator[_Need]:
    """Those that need less than every better one before them, least first."""
    found: list[_Need] = []
    for need in needs:
        if not found or need.amount < found[-1].amount:
            found.append(need)
    yield from reversed(found)


def _need(kind: ChangeKind, d: Dropped, request: Request) -> _Need | None:
    if kind == "memory" and d.needs_gib is not None:
        return _Need(kind, d.needs_gib, d)
    if kind == "hours" and d.rule == "max-hours" and d.times_limit is not None and request.max_hours is not None:
        return _Need(kind, d.times_limit * request.max_hours, d)
    if kind == "usd" and d.rule == "max-usd" and d.times_limit is not None and request.max_usd is not None:
        return _Need(kind, d.times_limit * request.max_usd, d)
    return None


def _change(need: _Need) -> Change:
    kind, amount, d = need
    name = f"{get_method(d.method).title} ({d.quantization}, {load_platforms()[d.platform].name})"
    if kind == "memory":
        text = f"at {ceil(amount * 10) / 10:.1f} GiB a card{example_card(amount)} {name} fits, and would be first"
    elif kind == "hours":
        text = f"with {format_duration(amount * HOUR)} instead of the limit, {name} would be first"
    else:
        text = f"with {amount:.2f} USD instead of the limit, {name} would be first"
    return Change.model_construct(
        kind=kind, amount=amount, platform=d.platform, method=d.method, quantization=d.quantization, text=text
    )


def goal_change(goal: str, other: Candidate, best: Candidate) -> Change | None:
    """What another goal would choose; None where it chooses the same combination with the same batch."""
    if other.key == best.key and other.plan.micro_batch_size == best.plan.micro_batch_size:
        return None
    plan = other.plan
    name = f"{get_method(plan.method).title} ({plan.quantization}, {load_platforms()[plan.platform].name})"
    return Change.model_construct(
        kind="goal",
        amount=None,
        goal=goal,
        platform=plan.platform,
        method=plan.method,
        quantization=plan.quantization,
        text=f"with --goal {goal}: {name}{_in_numbers(other, best)}",
    )


def _in_numbers(other: Candidate, best: Candidate) -> str:
    if other.speed is None or best.speed is None:
        return ""
    pace = other.speed.tokens_per_second.expected / best.speed.tokens_per_second.expected
    cards = f", {other.plan.n_gpus} of {best.plan.n_gpus} cards" if other.plan.n_gpus != best.plan.n_gpus else ""
    return f", {pace:.2g} times the speed{cards}"

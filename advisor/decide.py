"""Request and facts -> Recommendation: screen every cell, evaluate as many as the decision needs, say why."""

from collections.abc import Hashable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple, get_args

from advisor.axes import Concession, axes_of, concessions
from advisor.changes import find_changes, goal_change
from advisor.criteria import SOUND, Order, criteria, first_loss, key_before, order_of, rank
from advisor.evaluate import evaluate_cell
from advisor.explain import explain_choice, explain_way_out, nearest_misses, next_commands, over_limits
from advisor.front import find_front
from advisor.plans import Cell, drop, enumerate_cells, screen_cell
from advisor.recommendation import Candidate, Change, Dropped, Facts, Recommendation, RunnerUp, digest_model
from advisor.request import Goal, Request
from advisor.risks import find_risks
from estimators.throughput import why_no_speed
from profiles.errors import UnsupportedError

LIMITS = frozenset(
    {"memory", "tight", "main-memory", "disk", "max-hours", "max-usd"}
)  # rules that other hardware or limits would lift
RUNNER_UPS = 3
NEAREST = 4
MOST_CAPABLE: Goal = "best"
SHORTEST = 128  # tokens; shorter sequences teach a language model little


class Judge:
    """Evaluates cells of one question, each once: goals differ in the order of cells far more than inside one."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._known: dict[Hashable, Candidate | Dropped] = {}

    def evaluate(self, cell: Cell, request: Request, concession: Concession) -> Candidate | Dropped:
        """As `evaluate_cell`."""
        axes = axes_of(cell, request, self.facts, concession)
        key = cell, axes, request.goal == "cheap"
        if key not in self._known:
            self._known[key] = evaluate_cell(cell, request, self.facts, axes)
        return self._known[key]


def conceding(request: Request, concession: Concession) -> Request:
    """Once weights come over PCIe for every pass, how many bytes they are decides all else: time comes first."""
    if concession != "offload" or "time" in request.prefer:
        return request
    return request.replace(prefer=("time", *request.prefer))


def survey(request: Request, facts: Facts, judge: Judge | None = None) -> tuple[list[Candidate], list[Dropped]]:
    """Every cell of the space, as a candidate (best first) or with the reason why it is none (in the space's order)."""
    judge = judge or Judge(facts)
    first: tuple[list[Candidate], list[Dropped]] | None = None
    for concession in concessions(request, facts):
        dropped: list[Dropped] = []
        cells = _screen(request, facts, dropped)
        order = order_of(conceding(request, concession))
        ranked = rank(_evaluate(cells, request, judge, dropped, concession), order, facts)
        if ranked and is_sound(ranked[0]):
            return ranked, dropped
        if first is None or (ranked and not first[0]):
            first = ranked, dropped
    assert first is not None
    return first


def decide(request: Request, facts: Facts, *, concede: bool = True, compare: bool = False) -> Recommendation:
    """Recommend a plan, or say what would have to change. The same input always gives the same answer.

    Cells are evaluated in the order of the criteria that need no estimate, until the winner and the runner-ups
    stand; the rest is dropped as outranked. Where nothing sound fits as it was asked for, something is conceded, the
    mildest first (`axes.CONCESSIONS`), unless `concede` is off. The winner is the same as that of `survey`. `compare`
    evaluates all cells for the Pareto front, and every goal for what it would choose.

    Raises:
        UnsupportedError: the request leaves only combinations that do not exist, on whatever hardware.
    """
    judge = Judge(facts)
    asked, found = _contests(request, judge, concede=concede)
    if found.best is None:
        return _no_fit(request, facts, asked.dropped)
    return _answer_with(found, found.best, asked, request, judge, compare=compare)


def find_winner(request: Request, judge: Judge) -> Candidate | None:
    """Only the winner of `decide`; questions that share a judge evaluate a cell once."""
    try:
        return _contests(request, judge, concede=True)[1].best
    except UnsupportedError:
        return None


def is_sound(candidate: Candidate) -> bool:
    """Whether the evidence on its quality is good enough not to look for anything better by conceding."""
    return candidate.quality.tier <= SOUND


def _other_goals(goals: Iterable[Goal], best: Candidate, request: Request, judge: Judge) -> Iterator[Change]:
    """What each other goal would choose, and what the most capable method would need."""
    for goal in goals:
        if goal == request.goal:
            continue
        other = request.replace(goal=goal, prefer=())
        contest = _hold(other, judge, "none")
        if contest.best is None:
            continue
        change = goal_change(goal, contest.best, best)
        if change is not None:
            yield change
        if goal == MOST_CAPABLE:
            more = find_changes(contest.best, contest.dropped, other, judge.facts)
            yield from (c.model_copy(update={"goal": goal, "text": f"{c.text} with --goal {goal}"}) for c in more)


class _Contest(NamedTuple):
    """The winner under one concession, those of its own group that it beat, the cells of later groups, and drops."""

    concession: Concession
    best: Candidate | None
    behind: list[Candidate]
    rest: list[Cell]
    dropped: list[Dropped]


def _contests(request: Request, judge: Judge, *, concede: bool) -> tuple[_Contest, _Contest]:
    """The contest as asked, and the first one with a sound winner (with any, where none has a sound one)."""
    allowed = concessions(request, judge.facts) if concede else concessions(request, judge.facts)[:1]
    asked = found = _hold(request, judge, allowed[0])
    for concession in allowed[1:]:
        if found.best is not None and is_sound(found.best):
            break
        contest = _hold(request, judge, concession)
        if contest.best is not None and (found.best is None or is_sound(contest.best)):
            found = contest
    return asked, found


def _hold(request: Request, judge: Judge, concession: Concession) -> _Contest:
    request = conceding(request, concession)
    dropped: list[Dropped] = []
    cells = _screen(request, judge.facts, dropped)
    best, behind, rest = _find_best(cells, request, judge, dropped, concession)
    return _Contest(concession, best, behind, rest, dropped)


def _answer_with(
    contest: _Contest, best: Candidate, asked: _Contest, request: Request, judge: Judge, *, compare: bool
) -> Recommendation:
    facts, dropped = judge.facts, contest.dropped
    if asked is contest:
        changes = find_changes(best, dropped, request, facts)
    else:
        changes = find_changes(None, asked.dropped, request, facts)
    goals = get_args(Goal) if compare else (MOST_CAPABLE,)
    changes += _other_goals(goals, best, request, judge)
    ruled = conceding(request, contest.concession)
    runner_ups = _find_runner_ups(contest, best, ruled, judge, dropped)
    compared = {best.key, *(c.key for c in contest.behind), *(r.candidate.key for r in runner_ups)}
    done = compared | {(d.platform, d.method, d.quantization) for d in dropped}
    dropped += [_outranked(cell, best) for cell in contest.rest if cell not in done]
    return _answer(
        request,
        facts,
        dropped,
        verdict="fits",
        criteria=tuple(c.title for c in criteria(order_of(ruled))),
        best=best,
        reasons=tuple(explain_choice(best, facts)),
        runner_ups=runner_ups,
        changes=tuple(changes),
        front=find_front(survey(request, facts, judge)[0], best) if compare else (),
        conceded=contest.concession,
        risks=find_risks(best, facts, request),
        next_commands=next_commands(request, best, facts),
    )


def _screen(request: Request, facts: Facts, dropped: list[Dropped]) -> list[Cell]:
    """Cells that pass the rules; the others go to `dropped`."""
    passed: list[Cell] = []
    for cell in enumerate_cells():
        found = screen_cell(cell, request, facts)
        if found is None:
            passed.append(cell)
        else:
            dropped.append(found)
    return passed


def _evaluate(
    cells: Iterable[Cell], request: Request, judge: Judge, dropped: list[Dropped], concession: Concession
) -> Iterator[Candidate]:
    for cell in cells:
        answer = judge.evaluate(cell, request, concession)
        if isinstance(answer, Candidate):
            yield answer
        else:
            dropped.append(answer)


def _find_best(
    cells: list[Cell], request: Request, judge: Judge, dropped: list[Dropped], concession: Concession
) -> tuple[Candidate | None, list[Candidate], list[Cell]]:
    """The winner, those of its own group that it beat, and the cells of the groups after it, in order.

    Cells of a group are equal in all criteria that need no estimate, so the first group with a candidate decides.
    """
    facts, order = judge.facts, order_of(request)
    ordered = sorted(cells, key=lambda cell: (key_before(cell, order, facts), cell))
    groups = [list(group) for _, group in groupby(ordered, key=lambda cell: key_before(cell, order, facts))]
    for i, group in enumerate(groups):
        ranked = rank(_evaluate(group, request, judge, dropped, concession), order, facts)
        if ranked:
            return ranked[0], ranked[1:], [cell for later in groups[i + 1 :] for cell in later]
    return None, [], []


def _find_runner_ups(
    contest: _Contest, best: Candidate, request: Request, judge: Judge, dropped: list[Dropped]
) -> tuple[RunnerUp, ...]:
    """The next best way on each other platform, then of each other method, with what decided against each."""
    found: list[Candidate] = []
    platforms, methods = {best.plan.platform}, {best.plan.method}
    rest, order = contest.rest, order_of(request)

    def take(candidate: Candidate) -> None:
        if len(found) < RUNNER_UPS and not (candidate.plan.platform in platforms and candidate.plan.method in methods):
            found.append(candidate)
            platforms.add(candidate.plan.platform)
            methods.add(candidate.plan.method)

    for candidate in contest.behind:
        take(candidate)
    same = [cell for cell in rest if (cell.method, cell.quantization) == best.key[1:]]
    for cell in dict.fromkeys((*same, *rest)):
        new = cell.platform not in platforms or cell.method not in methods
        if len(found) == RUNNER_UPS or not new:
            continue
        for candidate in _evaluate([cell], request, judge, dropped, contest.concession):
            take(candidate)
    ranked = rank(found, order, judge.facts)
    return tuple(_runner_up(candidate, best, order, judge.facts) for candidate in ranked)


def _runner_up(candidate: Candidate, best: Candidate, order: Order, facts: Facts) -> RunnerUp:
    lost = first_loss(candidate, best, order, facts)
    return RunnerUp.model_construct(candidate=candidate, criterion=lost.id, why_not=lost.why(candidate, best))


def _outranked(cell: Cell, best: Candidate) -> Dropped:
    said = "ranks behind by criteria that need no estimate, so none was made (`ftadvise plans` makes all)"
    return drop(cell, "outranked", said)


def _no_fit(request: Request, facts: Facts, dropped: list[Dropped]) -> Recommendation:
    if not any(d.rule in LIMITS for d in dropped):
        raise UnsupportedError(*_impossible(dropped))
    limited = over_limits(dropped, facts)
    verdict = "tight" if not limited and any(d.rule == "tight" for d in dropped) else "does not fit"
    misses = nearest_misses(dropped, facts)
    nearest = misses[0] if misses and not limited else None
    shorter = _find_shorter(nearest, request, facts) if nearest is not None else None
    way_out = tuple(explain_way_out(dropped, nearest, shorter, request))
    shown = (*limited, *misses)[:NEAREST]
    changes = tuple(find_changes(None, dropped, request, facts))
    titles = tuple(c.title for c in criteria(order_of(request)))
    return _answer(
        request, facts, dropped, verdict=verdict, criteria=titles, nearest=shown, way_out=way_out, changes=changes
    )


def _find_shorter(nearest: Dropped, request: Request, facts: Facts) -> int | None:
    """The longest of the halved lengths at which `nearest` fits; None if it does not at any sensible one."""
    cell, seq_len = Cell(nearest.platform, nearest.method, nearest.quantization), facts.seq_len
    data = facts.data.model_copy(update={"mean_len": None})
    while (seq_len := seq_len // 2) >= SHORTEST:
        shorter = facts.model_copy(update={"seq_len": seq_len, "data": data, "lengths": None})
        if isinstance(evaluate_cell(cell, request, shorter), Candidate):
            return seq_len
    return None


def _answer(
    request: Request, facts: Facts, dropped: list[Dropped], best: Candidate | None = None, **found: Any
) -> Recommendation:
    return Recommendation.model_construct(
        request=request,
        model=digest_model(facts.model),
        hardware=facts.hardware,
        data=facts.data,
        fingerprints=facts.fingerprints,
        dropped=tuple(dropped),
        assumptions=_assumptions(facts, best),
        best=best,
        **found,
    )


def _assumptions(facts: Facts, best: Candidate | None) -> tuple[str, ...]:
    """Those of the facts and of the estimates, each once."""
    found = [*facts.hardware.assumptions, *facts.assumptions]
    if best is not None:
        found += best.memory.assumptions
        if best.speed is not None:
            found += best.speed.assumptions
        else:
            found.append(f"no estimate of the speed: {why_no_speed(facts.hardware)}")
    return tuple(dict.fromkeys(found))


def _impossible(dropped: list[Dropped]) -> tuple[str, str]:
    """The reasons that are about what was asked for, with the rest left out."""
    reasons = list(dict.fromkeys(d.reason for d in dropped if d.rule != "not-asked-for"))
    message = "; ".join(reasons[:3]) or "nothing is left of the space of plans"
    return message, "`ftadvise plans --dropped` with the same options shows every combination and its reason."

"""Request and facts -> Recommendation: screen every cell, evaluate as many as the decision needs, say why."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from advisor.criteria import criteria, first_loss, key_before, rank
from advisor.evaluate import evaluate_cell
from advisor.explain import explain_choice, explain_way_out, nearest_misses, next_commands, over_limits
from advisor.plans import Cell, drop, enumerate_cells, screen_cell
from advisor.recommendation import Candidate, Dropped, Facts, Recommendation, RunnerUp, digest_model
from advisor.request import Request
from advisor.risks import find_risks
from estimators.throughput import why_no_speed
from profiles.errors import UnsupportedError

LIMITS = frozenset({"memory", "tight", "max-hours", "max-usd"})  # rules that other hardware or limits would lift
RUNNER_UPS = 3
NEAREST = 4
SHORTEST = 128  # tokens; shorter sequences teach a language model little


def survey(request: Request, facts: Facts) -> tuple[list[Candidate], list[Dropped]]:
    """Every cell of the space, as a candidate (best first) or with the reason why it is none (in the space's order)."""
    dropped: list[Dropped] = []
    candidates = list(_evaluate(_screen(request, facts, dropped), request, facts, dropped))
    return rank(candidates, request.goal, facts), dropped


def decide(request: Request, facts: Facts) -> Recommendation:
    """Recommend a plan, or say what would have to change. The same input always gives the same answer.

    Cells are evaluated in the order of the criteria that need no estimate, until the winner and the runner-ups
    stand; the rest is dropped as outranked. The winner is the same as that of `survey`.

    Raises:
        UnsupportedError: the request leaves only combinations that do not exist, on whatever hardware.
    """
    dropped: list[Dropped] = []
    cells = _screen(request, facts, dropped)
    best, behind, rest = _find_best(cells, request, facts, dropped)
    if best is None:
        return _no_fit(request, facts, dropped)
    runner_ups = _find_runner_ups(best, behind, rest, request, facts, dropped)
    compared = {best.key, *(c.key for c in behind), *(r.candidate.key for r in runner_ups)}
    done = compared | {(d.platform, d.method, d.quantization) for d in dropped}
    dropped += [_outranked(cell, best) for cell in rest if cell not in done]
    return _answer(
        request,
        facts,
        dropped,
        verdict="fits",
        best=best,
        reasons=tuple(explain_choice(best, facts)),
        runner_ups=runner_ups,
        risks=find_risks(best, facts),
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


def _evaluate(cells: Iterable[Cell], request: Request, facts: Facts, dropped: list[Dropped]) -> Iterator[Candidate]:
    for cell in cells:
        answer = evaluate_cell(cell, request, facts)
        if isinstance(answer, Candidate):
            yield answer
        else:
            dropped.append(answer)


def _find_best(
    cells: list[Cell], request: Request, facts: Facts, dropped: list[Dropped]
) -> tuple[Candidate | None, list[Candidate], list[Cell]]:
    """The winner, those of its own group that it beat, and the cells of the groups after it, in order.

    Cells of a group are equal in all criteria that need no estimate, so the first group with a candidate decides.
    """
    ordered = sorted(cells, key=lambda cell: (key_before(cell, request.goal, facts), cell))
    groups = [list(group) for _, group in groupby(ordered, key=lambda cell: key_before(cell, request.goal, facts))]
    for i, group in enumerate(groups):
        ranked = rank(_evaluate(group, request, facts, dropped), request.goal, facts)
        if ranked:
            return ranked[0], ranked[1:], [cell for later in groups[i + 1 :] for cell in later]
    return None, [], []


def _find_runner_ups(
    best: Candidate,
    behind: list[Candidate],
    rest: list[Cell],
    request: Request,
    facts: Facts,
    dropped: list[Dropped],
) -> tuple[RunnerUp, ...]:
    """The next best way on each other platform, then of each other method, with what decided against each."""
    found: list[Candidate] = []
    platforms, methods = {best.plan.platform}, {best.plan.method}

    def take(candidate: Candidate) -> None:
        if len(found) < RUNNER_UPS and not (candidate.plan.platform in platforms and candidate.plan.method in methods):
            found.append(candidate)
            platforms.add(candidate.plan.platform)
            methods.add(candidate.plan.method)

    for candidate in behind:
        take(candidate)
    same = [cell for cell in rest if (cell.method, cell.quantization) == best.key[1:]]
    for cell in (*same, *rest):
        new = cell.platform not in platforms or cell.method not in methods
        if len(found) == RUNNER_UPS or not new:
            continue
        for candidate in _evaluate([cell], request, facts, dropped):
            take(candidate)
    ranked = rank(found, request.goal, facts)
    return tuple(_runner_up(candidate, best, request, facts) for candidate in ranked)


def _runner_up(candidate: Candidate, best: Candidate, request: Request, facts: Facts) -> RunnerUp:
    lost = first_loss(candidate, best, request.goal, facts)
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
    return _answer(request, facts, dropped, verdict=verdict, nearest=shown, way_out=way_out)


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
        criteria=tuple(c.title for c in criteria(request.goal)),
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
            found.append(f"no estimate of the speed: {why_no_speed(facts.hardware, best.plan)}")
    return tuple(dict.fromkeys(found))


def _impossible(dropped: list[Dropped]) -> tuple[str, str]:
    """The reasons that are about what was asked for, with the rest left out."""
    reasons = list(dict.fromkeys(d.reason for d in dropped if d.rule != "not-asked-for"))
    message = "; ".join(reasons[:3]) or "nothing is left of the space of plans"
    return message, "`ftadvise plans --dropped` with the same options shows every combination and its reason."

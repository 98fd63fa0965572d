"""Request and facts -> Recommendation: screen every cell, evaluate what remains, rank it, say why."""

from advisor.criteria import choose_runner_ups, criteria, rank
from advisor.evaluate import evaluate_cell
from advisor.explain import explain_choice, explain_way_out, next_commands
from advisor.plans import enumerate_cells, screen_cell
from advisor.recommendation import Candidate, Dropped, Facts, Recommendation, digest_model
from advisor.request import Request
from advisor.risks import find_risks
from estimators.throughput import why_no_speed
from profiles.errors import UnsupportedError

LIMITS = frozenset({"memory", "tight", "max-hours", "max-usd"})  # rules that other hardware or limits would lift


def survey(request: Request, facts: Facts) -> tuple[list[Candidate], list[Dropped]]:
    """Every cell of the space, as a candidate or with the reason why it is none; both in the order of the space."""
    candidates: list[Candidate] = []
    dropped: list[Dropped] = []
    for cell in enumerate_cells():
        answer = screen_cell(cell, request, facts) or evaluate_cell(cell, request, facts)
        if isinstance(answer, Candidate):
            candidates.append(answer)
        else:
            dropped.append(answer)
    return candidates, dropped


def decide(request: Request, facts: Facts) -> Recommendation:
    """Recommend a plan, or say what would have to change. The same input always gives the same answer.

    Raises:
        UnsupportedError: the request leaves only combinations that do not exist, on whatever hardware.
    """
    candidates, dropped = survey(request, facts)
    if not candidates and not any(d.rule in LIMITS for d in dropped):
        raise UnsupportedError(*_impossible(dropped))
    ranked = rank(candidates, request.goal)
    best = ranked[0] if ranked else None
    smallest = min((d.needs_gib for d in dropped if d.needs_gib is not None), default=None)
    maybe = "tight" if any(d.rule == "tight" for d in dropped) else "does not fit"
    return Recommendation(
        verdict="fits" if best else maybe,
        request=request,
        model=digest_model(facts.model),
        hardware=facts.hardware,
        data=facts.data,
        fingerprints=facts.fingerprints,
        best=best,
        reasons=tuple(explain_choice(best, facts)) if best else (),
        runner_ups=choose_runner_ups(ranked, request.goal) if best else (),
        risks=find_risks(best, facts) if best else (),
        criteria=tuple(c.title for c in criteria(request.goal)),
        candidates=len(candidates),
        dropped=tuple(dropped),
        way_out=() if best else tuple(explain_way_out(dropped, smallest, request)),
        next_commands=next_commands(request, best) if best else (),
        assumptions=_assumptions(facts, best),
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

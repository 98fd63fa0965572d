"""G1: prompt tuning, then LoRA or QLoRA, then full fine-tuning, each with its cost, its exit test and its command.

The framework's order is kept where our numbers bear it out. They often do not: a prompt step runs forward and backward
through the whole base, so it saves little of LoRA's time, and its evidence on quality is far weaker. So steps are put
in the order of their value: the best evidence first, of equals the smaller change to the model, and a poorer step in
front of a better one only where it costs at most half: a trial at a share x of the price pays if it is enough in more
than x of all cases, and nothing speaks for more than every second one.
"""

from typing import Literal

from advisor.criteria import seconds_per_token
from advisor.decide import decide
from advisor.explain import next_commands
from advisor.recommendation import Answer, Candidate, Facts
from advisor.request import Request
from profiles.errors import UnsupportedError
from profiles.units import format_duration

Place = Literal["first", "then", "last resort", "skip", "does not fit", "not possible"]
WORTH_A_TRIAL = 0.5  # share of the better step's cost
EQUAL_COST = 1.10  # as the decision's classes of time: the estimate cannot tell them apart

STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "prompt": ("prompt tuning", ("prompt",)),
    "adapter": ("LoRA or QLoRA", ("lora", "qlora")),
    "full": ("full fine-tuning", ("full",)),
}
EXIT_TESTS = {
    "prompt": (
        "stop here if your task's own metric on the held-out rows is good enough; go on if the evaluation loss has not "
        "fallen below its first value, that of the untouched model, after a quarter of the run"
    ),
    "adapter": (
        "stop here if the metric is good enough, which is the usual case; go on only if training and evaluation loss "
        "both level off above what the task needs, and twice the --rank does not lower them"
    ),
    "full": (
        "keep it only if the metric beats the adapter's by more than its own standard error, and general tasks have "
        "not become worse than before"
    ),
}


class Step(Answer):
    """One step. cost_share: its cost as a share of the best-proven step's, by time. commands: empty where it cannot be
    written or does not fit."""

    id: str
    title: str
    place: Place
    why: str
    exit_test: str
    candidate: Candidate | None
    cost_share: float | None = None
    commands: tuple[str, ...] = ()


class Roadmap(Answer):
    """The steps in the order in which to take them, and how that differs from the framework's order."""

    steps: tuple[Step, ...]
    departure: str

    @property
    def fits(self) -> bool:
        """Whether any step can be taken here."""
        return any(step.candidate is not None for step in self.steps)


def plan_roadmap(request: Request, facts: Facts) -> Roadmap:
    """Order the three steps by value for money. A request that restricts methods leaves the others out."""
    found: dict[str, Candidate] = {}
    missing: list[Step] = []
    for name, (_, methods) in STEPS.items():
        wanted = tuple(m for m in methods if not request.methods or m in request.methods)
        if not wanted:
            missing.append(_missing(name, "not possible", "not among the methods that were asked for"))
            continue
        narrowed = request.replace(methods=wanted)
        try:
            answer = decide(narrowed, facts)
        except UnsupportedError as error:
            missing.append(_missing(name, "not possible", error.message))
            continue
        if answer.best is not None:
            found[name] = answer.best
        else:
            missing.append(_missing(name, "does not fit", answer.nearest[0].reason))
    ordered = order_by_value(found)
    steps = [_step(name, found, ordered, request, facts) for name in ordered]
    return Roadmap.model_construct(steps=(*steps, *missing), departure=_departure(ordered, found))


def order_by_value(found: dict[str, Candidate]) -> list[str]:
    """Names of the steps, the one to take first in front."""
    best_first = _best_first(found)
    ordered: list[str] = []
    for name in best_first:
        poorer = bool(ordered) and found[name].quality.tier > found[ordered[0]].quality.tier
        if poorer and _cost(found[name]) <= WORTH_A_TRIAL * _cost(found[ordered[0]]):
            ordered.insert(0, name)
        else:
            ordered.append(name)
    return ordered


def _best_first(found: dict[str, Candidate]) -> list[str]:
    return sorted(found, key=lambda name: (found[name].quality.tier, list(STEPS).index(name)))


def _cost(candidate: Candidate) -> float:
    """Seconds of the run where they are known, else of a token. Without a speed all cost the same."""
    if candidate.run is not None:
        return candidate.run.seconds.expected
    return seconds_per_token(candidate) or 1.0


def _step(name: str, found: dict[str, Candidate], ordered: list[str], request: Request, facts: Facts) -> Step:
    candidate, first = found[name], ordered[0]
    best = found[_best_first(found)[0]]
    share = _cost(candidate) / _cost(best)
    place, why = _place(name, candidate, best, share, first)
    methods = (candidate.plan.method,)
    commands = next_commands(request.replace(methods=methods), candidate, facts)
    return Step.model_construct(
        id=name,
        title=STEPS[name][0],
        place=place,
        why=why,
        exit_test=EXIT_TESTS[name],
        candidate=candidate,
        cost_share=share,
        commands=commands,
    )


def _place(name: str, candidate: Candidate, best: Candidate, share: float, first: str) -> tuple[Place, str]:
    tiers = f"evidence tier {candidate.quality.tier} against {best.quality.tier}"
    cost = f"{share:.0%} of the time of {best.plan.method}"
    if candidate is best:
        return "first" if name == first else "then", f"the best-proven way: {candidate.quality.method.finding}"
    if name == first:
        return "first", f"{cost}: as a trial it pays if it is enough in more than {share:.0%} of all cases ({tiers})"
    if candidate.quality.tier <= best.quality.tier:
        return "last resort", f"{cost} for no better evidence; it has the most capacity, so it stays for what is left"
    if share > EQUAL_COST:
        return "skip", f"dearer and poorer: {cost}, {tiers}: {candidate.quality.deciding.finding}"
    return "skip", (
        f"{cost}: tried first it would have to be enough in more than {share:.0%} of all cases to pay, and the "
        f"evidence does not say so ({tiers}): {candidate.quality.deciding.finding}"
    )


def _missing(name: str, place: Place, reason: str) -> Step:
    return Step.model_construct(
        id=name, title=STEPS[name][0], place=place, why=reason, exit_test=EXIT_TESTS[name], candidate=None
    )


def _departure(ordered: list[str], found: dict[str, Candidate]) -> str:
    """What differs from prompt, adapter, full."""
    if not ordered:
        return "no step can be taken here"
    if ordered == [name for name in STEPS if name in found] and ordered[0] == "prompt":
        return "the order of the published framework: prompt tuning first"
    if "prompt" in found and "adapter" in found:
        prompt, adapter = found["prompt"], found["adapter"]
        saved = 1 - _cost(prompt) / _cost(adapter)
        difference = f"saves {saved:.0%} of" if saved > 0 else f"takes {-saved:.0%} more than"
        times = ""
        if prompt.run is not None and adapter.run is not None:
            times = f" ({format_duration(_cost(prompt))} against {format_duration(_cost(adapter))})"
        return (
            f"the published framework begins with prompt tuning; here that {difference} the adapter's time{times} and "
            f"has evidence tier {prompt.quality.tier} against {adapter.quality.tier}: the order is by value for money"
        )
    return "not all of the framework's steps can be taken here; those that can are ordered by value for money"

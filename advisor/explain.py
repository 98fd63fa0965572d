"""An answer in plain sentences."""

import shlex
from collections.abc import Iterator, Sequence
from math import ceil

from advisor.criteria import QUALITY_FLOOR, is_emitted, ran
from advisor.recommendation import Candidate, Dropped, Facts
from advisor.request import Request
from advisor.request_flags import request_flags
from estimators.methods import get_method
from profiles.catalog import load_gpus
from profiles.plan import Plan
from profiles.platform import load_platforms
from profiles.quality import find_quality
from profiles.units import format_bytes, format_duration


def explain_choice(candidate: Candidate, facts: Facts) -> Iterator[str]:
    """Why this plan is as it is, one sentence each."""
    plan, memory = candidate.plan, candidate.memory
    platform = load_platforms()[plan.platform]
    yield candidate.quality.method.finding
    if candidate.quality.storage.tier > 1:
        yield f"{plan.quantization} base: {candidate.quality.storage.finding}"
    support = platform.methods.get(plan.method)  # of the methods that the platforms are compared by
    if support is not None:
        yield f"{platform.name}: {support.evidence} ({_ran(plan)})"
    if platform.pace is not None:
        yield f"{platform.name}: {platform.pace}"
    if not is_emitted(candidate.plan.platform, facts):
        yield f"{platform.name} is run by hand: ftadvise writes no {facts.task} project of this kind for it yet"
    yield from candidate.choices
    largest = sorted(memory.peak.components, key=lambda c: -c.n_bytes)[:2]
    parts = " and ".join(f"{c.name.replace('_', ' ')} ({format_bytes(c.n_bytes)})" for c in largest)
    yield f"the peak comes at {memory.peak_phase.replace('_', ' ')}, mostly {parts}"


def _ran(plan: Plan) -> str:
    platform = load_platforms()[plan.platform]
    found = ran(platform, plan.method, plan.quantization, plan.task, several=plan.n_gpus > 1)
    if found.where is None:
        return f"read in its sources, never run by us: {found.never}"
    return "run by us on an H200" if found.where == "gpu" else "run by us on a CPU"


def nearest_misses(dropped: Sequence[Dropped], facts: Facts) -> list[Dropped]:
    """What memory kept out: methods with good evidence first, then by need; the least demanding of each method."""
    return _least_of_each_method([(d.needs_gib, d) for d in dropped if d.needs_gib is not None], facts)


def over_limits(dropped: Sequence[Dropped], facts: Facts) -> list[Dropped]:
    """What fits but takes or costs too much, in the same order."""
    return _least_of_each_method([(d.times_limit, d) for d in dropped if d.times_limit is not None], facts)


def _least_of_each_method(needs: Sequence[tuple[float, Dropped]], facts: Facts) -> list[Dropped]:
    def order(need: tuple[float, Dropped]) -> tuple[bool, float]:
        amount, d = need
        tier = find_quality(d.method, d.quantization, kind=facts.model.kind, task=facts.task).tier
        return tier > QUALITY_FLOOR, amount

    found: dict[str, Dropped] = {}
    for _, d in sorted(needs, key=order):
        found.setdefault(d.method, d)
    return list(found.values())


def explain_way_out(
    dropped: Sequence[Dropped], nearest: Dropped | None, shorter: int | None, request: Request
) -> Iterator[str]:
    """What would have to change where nothing can be recommended. `shorter`: a length at which `nearest` fits."""
    rules = {d.rule for d in dropped}
    if nearest is not None and nearest.needs_gib is not None:
        name = f"{get_method(nearest.method).title} ({nearest.quantization}, {nearest.platform})"
        needs = ceil(nearest.needs_gib * 10) / 10
        yield f"a card that offers {needs:.1f} GiB{example_card(nearest.needs_gib)}: {name} fits there"
        if shorter is not None:
            yield f"shorter sequences: {name} fits with --seq-len {shorter}"
        if request.ram_gib is None and not request.n_gpus:
            yield "much main memory: with --ram GIB weights and states may wait there, which is slow"
        if request.methods or request.quantizations or request.platforms:
            yield "other ways may fit: leave out --method, --quantization and --platform"
        yield "a smaller model: `ftadvise models`"
    if "max-hours" in rules:
        yield "a higher --max-hours, fewer --epochs, or a faster card"
    if "max-usd" in rules:
        yield "a higher --max-usd, fewer --epochs, or a cheaper card"


def example_card(needs_gib: float) -> str:
    """The smallest NVIDIA card of the catalogue that has as much, in brackets."""
    cards = [g for g in load_gpus().values() if g.vendor == "NVIDIA" and g.memory_gib >= needs_gib]
    smallest = min(cards, key=lambda g: (g.memory_gib, g.id), default=None)
    return f" (as the {smallest.name}, {smallest.memory_gib:.1f} GiB)" if smallest is not None else ""


def next_commands(request: Request, candidate: Candidate, facts: Facts) -> tuple[str, ...]:
    """The commands that write and start the recommended run, as they are typed; none where it cannot be written."""
    plan = candidate.plan
    if not is_emitted(candidate.plan.platform, facts):
        return ()
    model = request.model if isinstance(request.model, str) else "MODEL"
    directory = f"{model.rstrip('/').split('/')[-1]}-{plan.method}"
    words = ["ftadvise", "emit", *request_flags(request), "-o", directory]
    return shlex.join(words), shlex.join(["ftadvise", "launch", directory])


def describe_run(candidate: Candidate) -> str:
    """Time and cost of the whole run in one line."""
    run = candidate.run
    if run is None:
        return "no estimate of the time: give --data, or --examples and --mean-len"
    low, high = format_duration(run.seconds.low), format_duration(run.seconds.high)
    text = f"{format_duration(run.seconds.expected)} ({low} to {high}) for {run.steps} steps"
    if run.usd is not None:
        text += f", {run.usd.expected:.2f} USD ({run.usd.low:.2f} to {run.usd.high:.2f})"
    return text

"""An answer in plain sentences."""

import shlex
from collections.abc import Iterator, Sequence

from advisor.recommendation import Candidate, Dropped, Facts
from advisor.request import Request
from profiles.platform import load_platforms
from profiles.units import format_bytes, format_duration


def explain_choice(candidate: Candidate, facts: Facts) -> Iterator[str]:
    """Why this plan is as it is, one sentence each."""
    plan, memory = candidate.plan, candidate.memory
    platform = load_platforms()[plan.platform]
    yield candidate.quality.method.finding
    if candidate.quality.storage.tier > 1:
        yield f"{plan.quantization} base: {candidate.quality.storage.finding}"
    support = platform.methods[plan.method]
    ran = "run here on a CPU" if support.ran else "read in its sources, not run here"
    yield f"{platform.name}: {support.evidence} ({ran})"
    yield from candidate.choices
    largest = sorted(memory.peak.components, key=lambda c: -c.n_bytes)[:2]
    parts = " and ".join(f"{c.name.replace('_', ' ')} ({format_bytes(c.n_bytes)})" for c in largest)
    yield f"the peak comes at {memory.peak_phase.replace('_', ' ')}, mostly {parts}"


def explain_way_out(dropped: Sequence[Dropped], smallest_gib: float | None, request: Request) -> Iterator[str]:
    """What would have to change where nothing can be recommended."""
    rules = {d.rule for d in dropped}
    if "memory" in rules or "tight" in rules:
        if smallest_gib is not None:
            yield f"a card that offers {smallest_gib:.1f} GiB would do"
        if request.seq_len is None or request.seq_len > 512:
            yield "shorter sequences: --seq-len 512"
        if request.methods or request.quantizations or request.platforms:
            yield "leave out --method, --quantization and --platform: other ways may fit"
        yield "a smaller model of the same family: `ftadvise models`"
    if "max-hours" in rules:
        yield "a higher --max-hours, fewer --epochs, or a faster card"
    if "max-usd" in rules:
        yield "a higher --max-usd, fewer --epochs, or a cheaper card"


def next_commands(request: Request, candidate: Candidate, facts: Facts) -> tuple[str, ...]:
    """The commands that write and start the recommended run, as they are typed; none where it cannot be written."""
    plan = candidate.plan
    if facts.task not in load_platforms()[plan.platform].emitted_tasks or facts.model.kind != "causal-lm":
        return ()
    model = request.model if isinstance(request.model, str) else "MODEL"
    directory = f"{model.rstrip('/').split('/')[-1]}-{plan.method}"
    words = ["ftadvise", "emit", *request_flags(request), "-o", directory]
    return shlex.join(words), shlex.join(["ftadvise", "launch", directory])


def request_flags(request: Request) -> list[str]:
    """The request as flags of the command line, without what stands at its default."""
    flags: list[str] = []
    for name, field in type(request).model_fields.items():
        value = getattr(request, name)
        if value == field.get_default(call_default_factory=True) or isinstance(value, dict):
            continue
        flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
        for item in value if isinstance(value, tuple) else (value,):
            flags += [flag] if item is True else [flag, f"{item:g}" if isinstance(item, float) else str(item)]
    return flags


FLAGS = {
    "vram_gib": "--vram",
    "num_epochs": "--epochs",
    "platforms": "--platform",
    "methods": "--method",
    "quantizations": "--quantization",
    "lora_rank": "--rank",
    "global_batch_size": "--batch",
    "micro_batch_size": "--micro-batch",
}


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

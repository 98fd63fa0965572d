"""README.md of an emitted folder: the command, what it will do, what was predicted."""

from collections.abc import Callable, Sequence

from advisor.emit.base import Forecast, Source
from estimators.interval import Interval
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan
from profiles.units import format_bytes, format_count


def readme(
    plan: Plan,
    model: ModelSpec,
    source: Source,
    trainable: int,
    command: str,
    forecast: Forecast | None,
    *,
    settings: str = "config.yaml",
    notes: Sequence[str] = (),
) -> str:
    """The page, as Markdown. Names that people chose stand in code spans, without their backticks and line ends.

    `settings`: the file that a reader edits. `notes`: further points, one a line.
    """
    share = 100 * trainable / model.parameters
    length = f"{plan.max_steps} steps" if plan.max_steps else f"{plan.num_epochs:g} epochs"
    base = f"{plan.quantization} base" if plan.quantization in QUANTIZED else f"{plan.quantization} weights"
    lines = [
        f"# Fine-tuning {code_span(model.name)}",
        "",
        f"Method {plan.method} over {base}: {format_count(trainable)} of {format_count(model.parameters)} parameters "
        f"are trained ({share:.3g} %), for {length}, {plan.global_batch_size} sequences of up to {plan.seq_len} tokens "
        "a step.",
        "",
        "```sh",
        "pip install -r requirements.txt",
        command,
        "```",
        "",
        f"- weights: {code_span(source.model_ref)}",
        f"- settings: `{settings}` (edit it; `train.py` only reads it)",
        "- data: `data/train.jsonl`" + (", held out: `data/eval.jsonl`" if source.held_out else "; nothing held out"),
        *([f"- {plan.replay_share:.0%} of it are general examples, against forgetting"] if plan.replay_share else []),
        "- general text: `data/general.jsonl`, whose loss before and after tells what is forgotten; remove it to leave "
        "that out",
        "- progress: `runs/metrics.jsonl`, one JSON object a line; checkpoints: `runs/checkpoints`",
        "- result: `model/`",
        "- Ctrl-C stops after the step at hand, with a checkpoint; the same command with `--resume` goes on from it",
        *(f"- {note}" for note in notes),
        "",
    ]
    if forecast is not None:
        lines += ["## Predicted", "", *expectations(forecast), ""]
    if plan.sharding != "none":
        lines += [
            "How cards share and what is offloaded follows the platform's own examples; we have not run it on GPUs.",
            "",
        ]
    return "\n".join(lines)


def expectations(forecast: Forecast) -> list[str]:
    """Memory and speed, each with its interval."""
    memory = forecast.device
    lines = [
        f"- memory of a card: {format_bytes(memory.expected)} "
        f"({format_bytes(memory.low)} to {format_bytes(memory.high)}, with 90 % confidence)"
    ]
    if forecast.step_seconds is not None:
        lines.append(f"- a step: {_range(forecast.step_seconds, _seconds)}")
    if forecast.tokens_per_second is not None:
        lines.append(f"- tokens/s: {_range(forecast.tokens_per_second, format_count)}")
    return lines


def _range(interval: Interval, show: Callable[[float], str]) -> str:
    return f"{show(interval.expected)} ({show(interval.low)} to {show(interval.high)})"


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def code_span(text: str) -> str:
    """A name that people chose, as Markdown that nothing in it can break out of."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"

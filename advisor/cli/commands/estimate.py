"""`ftadvise estimate`: memory and speed of a plan as it stands."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

import click

from advisor.cli.options import json_option
from advisor.cli.records import build_record, parse_object, read_text
from profiles.errors import AdviseError, InvalidInputError
from profiles.plan import Attention, Checkpointing, Plan, Platform, Quantization, Sharding

if TYPE_CHECKING:
    from advisor.recommendation import EstimateAnswer

FLAGS = {  # where the option is not the field's name
    "micro_batch_size": "--micro-batch",
    "gradient_accumulation_steps": "--accumulation",
    "lora_rank": "--rank",
    "gradient_checkpointing": "--checkpointing",
}


@click.command(
    epilog="""\b
Examples:
  ftadvise estimate --model llama-8b --gpu rtx4090 --method qlora --seq-len 4096 --micro-batch 2
  ftadvise estimate --plan plan.json --json
  generate-plans | ftadvise estimate --plan - --jsonl > answers.jsonl
"""
)
@click.option("--plan", "path", metavar="FILE|-", help="A plan as JSON (`ftadvise schema plan`); - reads stdin.")
@click.option("--jsonl", is_flag=True, help="One plan a line in, one answer a line out; a bad line gives an error.")
@click.option("--model", help="Nickname, hub id, folder or config.json.")
@click.option("--gpu", help="Card. Default: what this machine has.")
@click.option("--vram", type=float, metavar="GB", help="Memory of a card that is not named.")
@click.option("--n-gpus", type=int)
@click.option("--platform", type=click.Choice(get_args(Platform)))
@click.option("--method", help="full, lora, qlora, adalora, bitfit, prompt, prefix, ptuning.")
@click.option("--quantization", type=click.Choice(get_args(Quantization)))
@click.option("--seq-len", type=int, help="Padded length of a sequence, tokens.")
@click.option("--micro-batch", "micro_batch_size", type=int)
@click.option("--accumulation", "gradient_accumulation_steps", type=int)
@click.option("--rank", "lora_rank", type=int)
@click.option("--checkpointing", "gradient_checkpointing", type=click.Choice(get_args(Checkpointing)))
@click.option("--attention", type=click.Choice(get_args(Attention)))
@click.option("--optimizer")
@click.option("--sharding", type=click.Choice(get_args(Sharding)))
@click.option("--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Any other field of the plan.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@json_option
def command(
    path: str | None,
    jsonl: bool,
    vram: float | None,
    assignments: tuple[str, ...],
    offline: bool,
    as_json: bool,
    **fields: Any,
) -> int:
    """Estimate memory and speed of one plan. It comes from options, from JSON, or both."""
    given = {name: value for name, value in fields.items() if value is not None}
    settings = _parse_settings(assignments)
    if jsonl:
        return _stream(path or "-", settings, given, offline)
    base = parse_object(read_text(path), "plan" if path == "-" else path) if path else {}
    base |= settings
    answer = _answer(base, given, vram, offline)
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("estimate", answer))
    else:
        from advisor.render.estimate import render_estimate

        render_estimate(answer).show()
    return 0 if answer.verdict == "fits" else 1


def _answer(base: dict[str, Any], given: dict[str, Any], vram: float | None, offline: bool) -> "EstimateAnswer":
    """`base` comes from JSON, `given` from options: errors name a field as the user wrote it."""
    from advisor.api import estimate
    from advisor.hardware import resolve_hardware
    from advisor.recommendation import EstimateAnswer

    def name(field: str) -> str:
        return FLAGS.get(field, f"--{field.replace('_', '-')}") if field in given else field

    fields = {**base, **given}
    if "model" not in fields:
        raise InvalidInputError("--model", "is missing", "Give --model, or a plan that has it with --plan.")
    plan = build_record(Plan, fields, name)
    hardware = resolve_hardware(plan.gpu, vram, plan.n_gpus) if vram is not None else None
    found = estimate(plan, hardware=hardware, offline=offline)
    return EstimateAnswer(verdict=found.memory.verdict, plan=plan, memory=found.memory, speed=found.speed)


def _stream(path: str, settings: dict[str, Any], given: dict[str, Any], offline: bool) -> int:
    """One envelope a line, flushed. The exit code is 0: each line says itself whether it fits."""
    from advisor.render.envelope import answer_envelope, error_envelope

    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            fields = parse_object(line, f"line {number}")
            text = answer_envelope("estimate", _answer(fields | settings, given, None, offline), indent=None)
        except AdviseError as error:
            text = error_envelope("estimate", error, indent=None)
        click.echo(text)
    return 0


def _lines(path: str) -> Iterator[str]:
    try:
        with click.open_file(path, "r", encoding="utf-8", errors="replace") as file:
            yield from file
    except OSError as error:
        raise InvalidInputError(path, f"cannot be read: {error.strerror}") from None


def _parse_settings(assignments: tuple[str, ...]) -> dict[str, Any]:
    """FIELD=VALUE, the value as JSON where it is some, else as text."""
    import json

    fields: dict[str, Any] = {}
    for setting in assignments:
        name, equals, text = setting.partition("=")
        if not equals or name not in Plan.model_fields:
            names = ", ".join(Plan.model_fields)
            raise InvalidInputError("--set", f"{setting!r} is not FIELD=VALUE", f"Fields: {names}.")
        try:
            fields[name] = json.loads(text)
        except ValueError:
            fields[name] = text
    return fields

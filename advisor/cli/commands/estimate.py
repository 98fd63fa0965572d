"""`ftadvise estimate`: memory and speed of a plan as it stands."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import click

from advisor.cli.options import json_option
from advisor.cli.plan_options import AskedPlan, plan_options
from advisor.cli.records import parse_object
from profiles.errors import AdviseError, InvalidInputError

if TYPE_CHECKING:
    from advisor.recommendation import EstimateAnswer


@click.command(
    epilog="""\b
Examples:
  ftadvise estimate --model llama-8b --gpu rtx4090 --method qlora --seq-len 4096 --micro-batch 2
  ftadvise estimate --plan plan.json --json
  generate-plans | ftadvise estimate --plan - --jsonl > answers.jsonl
"""
)
@click.option("--jsonl", is_flag=True, help="One plan a line in, one answer a line out; a bad line gives an error.")
@click.option(
    "--basis",
    type=click.Choice(["analytic", "simulated"]),
    default="analytic",
    show_default=True,
    help="simulated: run the real code on fake tensors (needs torch, takes seconds).",
)
@click.option("--explain", is_flag=True, help="Show what the time of a step goes to, item by item.")
@plan_options
@json_option
def command(
    path: str | None,
    jsonl: bool,
    basis: Literal["analytic", "simulated"],
    explain: bool,
    vram: float | None,
    assignments: tuple[str, ...],
    offline: bool,
    as_json: bool,
    **fields: Any,
) -> int:
    """Estimate memory and speed of one plan. It comes from options, from JSON, or both."""
    asked = AskedPlan(path, vram, assignments, offline, fields)
    if jsonl:
        return _stream(asked, basis)
    answer = _answer(asked, asked.base(), basis)
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("estimate", answer))
    else:
        from advisor.render.estimate import render_estimate

        render_estimate(answer, explain=explain).show()
    return 0 if answer.verdict == "fits" else 1


def _answer(asked: AskedPlan, base: dict[str, Any], basis: Literal["analytic", "simulated"]) -> "EstimateAnswer":
    from advisor.api import estimate
    from advisor.recommendation import EstimateAnswer

    plan, hardware = asked.plan(base)
    found = estimate(plan, hardware=hardware, offline=asked.offline, basis=basis)
    return EstimateAnswer(verdict=found.memory.verdict, plan=plan, memory=found.memory, speed=found.speed)


def _stream(asked: AskedPlan, basis: Literal["analytic", "simulated"]) -> int:
    """One envelope a line, flushed. The exit code is 0: each line says itself whether it fits."""
    from advisor.render.envelope import answer_envelope, error_envelope

    for number, line in enumerate(_lines(asked.path or "-"), start=1):
        if not line.strip():
            continue
        try:
            answer = _answer(asked, parse_object(line, f"line {number}") | asked.settings, basis)
            text = answer_envelope("estimate", answer, indent=None)
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

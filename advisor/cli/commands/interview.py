"""`ftadvise interview`: the request by questions."""

import shlex
from pathlib import Path
from typing import Any

import click

from profiles.errors import InvalidInputError


@click.command(
    epilog="""\b
Examples:
  ftadvise interview
  ftadvise interview --save profile.yaml
  printf 'llama-8b\\nrtx4090\\n\\n\\n' | ftadvise interview
"""
)
@click.option("--save", metavar="FILE", help="Write the request as a profile, for --profile.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def command(save: str | None, offline: bool) -> int:
    """Ask only what changes the answer.

    Model, machine and data first. An empty answer takes the default. Questions go to standard error, the recommendation
    to standard output.
    """
    from advisor.api import advise
    from advisor.cli.profile_file import dump_profile
    from advisor.cli.records import build_record
    from advisor.interview import Interview, unasked
    from advisor.render.recommendation import render_recommendation
    from advisor.request import Request
    from advisor.request_flags import flag_of, request_flags

    fields: dict[str, Any] = {"model": _ask("Model (nickname, hub id or folder)"), "offline": offline}
    fields["gpu"] = _ask('Card ("rtx4090", "2x a100-80g", "cpu"; empty: this machine\'s)', "") or None
    data = _ask("Training data: a file, or the number of examples (empty: not known yet)", "")
    if data.isdigit():
        fields["examples"] = int(data)
        fields["mean_len"] = _number("Tokens of an example on average (empty: not known)")
    elif data:
        fields["data"] = data
    if data:
        fields["max_hours"] = _number("Longest acceptable run in hours (empty: any)")
    request = build_record(Request, {k: v for k, v in fields.items() if v is not None}, flag_of)
    interview, answers = Interview(request), dict[str, Any]()
    while (question := interview.next_question(answers)) is not None:
        click.echo(question.text, err=True)
        for number, (_, meaning) in enumerate(question.options, 1):
            click.echo(f"  {number}  {meaning}", err=True)
        chosen = click.prompt("Number", default=1, type=click.IntRange(1, len(question.options)), err=True)
        answers[question.field] = question.options[chosen - 1][0]
    same = list(unasked(interview, answers))
    if same:
        click.echo(f"Not asked, since it would change nothing: {', '.join(same)}.", err=True)
    request = request.replace(**answers)
    recommendation = advise(request)
    render_recommendation(recommendation).show()
    click.echo()
    click.echo(f"The same as: {shlex.join(['ftadvise', *request_flags(request)])}")
    if save is not None:
        try:
            Path(save).write_text(dump_profile(request), encoding="utf-8")
        except OSError as error:
            raise InvalidInputError(save, f"cannot be written: {error.strerror}") from None
        click.echo(f"Saved: ftadvise --profile {shlex.quote(save)}")
    return 0 if recommendation.verdict == "fits" else 1


def _ask(text: str, default: str | None = None) -> str:
    answer: str = click.prompt(text, default=default, show_default=bool(default), err=True)
    return answer.strip()


def _number(text: str) -> float | None:
    while True:
        answer = _ask(text, "")
        try:
            return float(answer) if answer else None
        except ValueError:
            click.echo(f"{answer!r} is not a number.", err=True)

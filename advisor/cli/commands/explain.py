"""`ftadvise explain`: a plan in plain sentences."""

import click

from advisor.cli.options import json_option
from advisor.cli.records import build_record, parse_object, read_text
from profiles.plan import Plan


@click.command(
    epilog="""\b
Examples:
  ftadvise explain run/plan.json
  ftadvise --model llama-8b --vram 24 --json | ftadvise explain -

\b
Exit codes: 0 fits, 1 does not fit, 2 no answer.
"""
)
@click.argument("plan", metavar="PLAN|-")
@click.option("--offline", is_flag=True, help="Never use the network.")
@json_option
def command(plan: str, offline: bool, as_json: bool) -> int:
    """Tell a plan in plain sentences.

    PLAN is a plan, a written run's plan.json, or a JSON answer that holds one.
    """
    from advisor.story import find_plan, tell

    fields = find_plan(parse_object(read_text(plan), "plan" if plan == "-" else plan))
    story = tell(build_record(Plan, fields, lambda field: f"plan.{field}"), offline=offline)
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("explain", story))
    else:
        from advisor.render.story import render_story

        render_story(story).show()
    return 0 if story.verdict == "fits" else 1

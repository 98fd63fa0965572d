"""`ftadvise plans`: every combination of platform, method and quantization, as an estimate or a reason."""

from typing import Any

import click

from advisor.cli.options import build_request, json_option, request_options


@click.command(
    epilog="""\b
Examples:
  ftadvise plans --model llama-8b --vram 24
  ftadvise plans --model llama-8b --gpu a100-80g --dropped
"""
)
@request_options
@click.option("--dropped", is_flag=True, help="Show what was dropped, by which rule and why.")
@json_option
def command(dropped: bool, as_json: bool, **fields: Any) -> int:
    """Show every combination that fits. With --dropped, also why the others do not."""
    from advisor.assess import assess
    from advisor.decide import survey
    from advisor.front import find_front

    request = build_request(fields)
    ranked, drops = survey(request, assess(request))
    if as_json:
        from advisor.render.envelope import answer_envelope

        answer = {
            "candidates": [c.model_dump(mode="json") for c in ranked],
            "dropped": [d.model_dump(mode="json") for d in drops],
            "front": [point.model_dump(mode="json") for point in (find_front(ranked, ranked[0]) if ranked else ())],
        }
        click.echo(answer_envelope("plans", answer))
    else:
        from advisor.render.plans import print_plans

        print_plans(ranked, drops, show_dropped=dropped)
    return 0 if ranked else 1

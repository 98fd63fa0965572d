"""`ftadvise roadmap`: from the cheap trial to the full run."""

from typing import Any

import click

from advisor.cli.options import build_request, json_option, request_options


@click.command(
    epilog="""\b
Examples:
  ftadvise roadmap --model llama-8b --gpu rtx4090 --examples 5000 --mean-len 400
  ftadvise roadmap --model qwen-1.5b --vram 12 --data train.jsonl
"""
)
@request_options
@json_option
def command(as_json: bool, **fields: Any) -> int:
    """Order the steps from a trial to the full run.

    Prompt tuning, LoRA or QLoRA, full fine-tuning: by value for money, each with cost, exit test and command.
    """
    from advisor.assess import assess
    from advisor.roadmap import plan_roadmap

    request = build_request(fields)
    roadmap = plan_roadmap(request, assess(request))
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("roadmap", roadmap))
    else:
        from advisor.render.roadmap import render_roadmap

        render_roadmap(roadmap).show()
    return 0 if roadmap.fits else 1

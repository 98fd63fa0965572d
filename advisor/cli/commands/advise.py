"""`ftadvise advise`: recommend a plan."""

from typing import Any

import click

from advisor.cli.options import build_request, json_option, request_options


@click.command(
    epilog="""\b
Examples:
  ftadvise --model llama-8b --vram 24
  ftadvise --model qwen2.5-7b --gpu rtx4090 --examples 20000 --mean-len 400 --goal fast
  ftadvise --model ./my-model --data train.jsonl --max-hours 8 --json
"""
)
@request_options
@click.option(
    "--compare", is_flag=True, help="Also the Pareto front, and what every goal would choose (in --json always)."
)
@json_option
def command(compare: bool, as_json: bool, **fields: Any) -> int:
    """Recommend how to fine-tune a model here (the default)."""
    from advisor.api import advise

    recommendation = advise(build_request(fields), compare=compare or as_json)
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("advise", recommendation))
    else:
        from advisor.render.recommendation import render_recommendation

        render_recommendation(recommendation).show()
    return 0 if recommendation.verdict == "fits" else 1

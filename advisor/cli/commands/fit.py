"""`ftadvise fit`: the inverse questions."""

from typing import Any, get_args

import click

from advisor.cli.options import build_request, json_option, request_options

WHAT = ("seq_len", "batch", "model", "gpu", "n_gpus")


@click.command(
    epilog="""\b
Examples:
  ftadvise fit --what seq_len --model llama-8b --gpu rtx4090
  ftadvise fit --what batch --model llama-8b --gpu rtx4090 --method qlora --seq-len 1024
  ftadvise fit --what model --vram 24
  ftadvise fit --what gpu --model qwen-7b --examples 20000 --mean-len 400 --max-hours 8
  ftadvise fit --what n_gpus --model llama-70b --gpu h100-sxm --method full

\b
Exit codes: 0 something fits, 1 nothing does, 2 no answer.
"""
)
@click.option("--what", required=True, type=click.Choice(WHAT), help="What is asked for.")
@request_options
@json_option
def command(what: str, as_json: bool, **fields: Any) -> int:
    """Find the longest, largest, cheapest or fewest that fits.

    The longest sequence, the largest micro-batch or model, the cheapest card, the fewest cards.
    """
    from advisor.inverse import ANY_MODEL, What, fit

    assert what in get_args(What)
    if what == "model":  # a profile's own model is not what is asked for
        fields["model"] = fields["model"] or ANY_MODEL
    answer = fit(what, build_request(fields))  # type: ignore[arg-type]
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("fit", answer))
    else:
        from advisor.render.fit import render_fit

        render_fit(answer).show()
    return 0 if answer.best is not None else 1

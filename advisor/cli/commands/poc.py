"""`ftadvise poc`: a short run of an emitted folder's plan, held against its prediction."""

from pathlib import Path

import click

from advisor.cli.options import json_option

STOPPED = 130


@click.command(
    epilog="""\b
Examples:
  ftadvise poc run
  ftadvise poc run --steps 20 --json

\b
It runs in run/poc on a few rows, the longest one among them; the folder itself stays as it is.
Exit codes: 0 the run confirms the plan and its prediction, 1 it does not, 2 it could not run, 130 stopped.
"""
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(3), default=12, show_default=True, help="Optimizer steps.")
@click.option("--python", metavar="PATH", help="Interpreter that has the run's packages.")
@click.option("--launcher", default="local", show_default=True, help="How to run it.")
@json_option
def command(folder: Path, steps: int, python: str | None, launcher: str, as_json: bool) -> int:
    """Try an emitted plan for a few steps and judge it.

    What memory, speed and loss turn out to be is set against the prediction.
    """
    from advisor.cli.watching import make_runner
    from advisor.trials.poc import prove

    proof = prove(folder, make_runner(launcher, python=python, as_json=as_json), steps=steps)
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("poc", proof))
    else:
        from advisor.render.trials import render_proof

        render_proof(proof).show()
    if proof.state.status == "stopped":
        return STOPPED
    return 0 if proof.confirmed else 1

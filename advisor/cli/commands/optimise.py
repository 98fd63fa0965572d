"""`ftadvise optimise`: from a measured plan to the next better one."""

from pathlib import Path

import click

from advisor.cli.options import json_option


@click.command(
    epilog="""\b
Examples:
  ftadvise optimise run
  ftadvise optimise run --run

\b
It starts from what `ftadvise poc`, or a finished launch, has measured. Trials stay in run/optimise.
Exit codes: 0 a better plan was found (with --run: measured better, and kept), 1 none, 2 nothing was measured yet.
"""
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--run", "with_trial", is_flag=True, help="Try it, and keep it if it is measured better.")
@click.option("--steps", type=click.IntRange(3), default=12, show_default=True, help="Optimizer steps of a trial.")
@click.option("--python", metavar="PATH", help="Interpreter that has the run's packages.")
@click.option("--launcher", default="local", show_default=True, help="How to run it.")
@json_option
def command(folder: Path, with_trial: bool, steps: int, python: str | None, launcher: str, as_json: bool) -> int:
    """Propose the next better plan for an emitted folder.

    That is a larger micro-batch, less recomputation, packing and the like.
    It learns the same: length, rank, precision and the examples of a step stay.
    """
    from advisor.cli.watching import make_runner
    from advisor.trials.optimise import optimise

    run = make_runner(launcher, python=python, as_json=as_json) if with_trial else None
    found = optimise(folder, run, steps=steps)
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("optimise", found))
    else:
        from advisor.render.trials import render_optimisation

        render_optimisation(found).show()
    better = found.kept if with_trial else found.proposal
    return 0 if better is not None else 1

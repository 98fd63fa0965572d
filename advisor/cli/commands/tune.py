"""`ftadvise tune`: look for learning rate, rank and alpha by short runs."""

from pathlib import Path

import click

from advisor.cli.options import json_option


@click.command(
    epilog="""\b
Examples:
  ftadvise tune run
  ftadvise tune run --trials 40 --steps 100 --workers 2

\b
Needs Optuna: pip install 'ftadvise[tune]'. The study is run/tune/study.db; the same command goes on with it after any
stop, and can be started several times at once.
Exit codes: 0 the best settings stand in the project, 1 no trial finished, 2 it could not begin, 130 stopped.
"""
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="In all, earlier ones included.")
@click.option("--steps", type=click.IntRange(4), default=60, show_default=True, help="Optimizer steps of a trial.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Trials at the same time.")
@click.option("--storage", metavar="URL", help="Another database than SQLite in the folder, for several machines.")
@click.option("--restart", is_flag=True, help="Forget the trials that were done.")
@click.option("--python", metavar="PATH", help="Interpreter that has the run's packages.")
@click.option("--launcher", default="local", show_default=True, help="How to run a trial.")
@json_option
def command(
    folder: Path,
    trials: int,
    steps: int,
    workers: int,
    storage: str | None,
    restart: bool,
    python: str | None,
    launcher: str,
    as_json: bool,
) -> int:
    """Look for the learning rate, rank and alpha.

    They are judged by the loss on the rows held out.
    Every trial is a short run; those that fall behind are stopped early. The best settings are written into the folder.
    """
    from advisor.trials.tune import TuningOptions, tune

    found = tune(
        folder,
        TuningOptions(
            trials=trials, steps=steps, workers=workers, storage=storage, python=python, launcher=launcher,
            restart=restart,
        ),
    )  # fmt: skip
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("tune", found))
    else:
        from advisor.render.trials import render_tuning

        render_tuning(found).show()
    return 0 if found.best is not None else 1

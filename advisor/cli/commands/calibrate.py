"""`ftadvise calibrate`: measure this machine, so that estimates become sharp."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from advisor.cli.options import json_option
from profiles.errors import AdviseError
from profiles.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command(
    epilog="""\b
Examples:
  ftadvise calibrate
  ftadvise calibrate --device cpu --full
  ftadvise calibrate --show
  ftadvise calibrate --export my-card.json

\b
Nothing is downloaded: the model is two and three layers with random weights. Ctrl-C keeps nothing.
A second run refines the first. Files live in ~/.local/share/ftadvise, or where FTADVISE_HOME says.
"""
)
@click.option("--quick/--full", "quick", default=True, help="About a minute, or up to five.  [default: quick]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: the card where there is one.")
@click.option("--model", help="Architecture to probe with: nickname, hub id, folder or config.json.")
@click.option("--show", is_flag=True, help="Show the calibrations that are stored.")
@click.option("--export", "export_path", type=click.Path(path_type=Path), metavar="FILE", help="Write this machine's.")
@click.option("--import", "import_path", type=click.Path(path_type=Path), metavar="FILE", help="Add someone else's.")
@json_option
def command(
    quick: bool,
    device: Literal["cpu", "cuda"] | None,
    model: str | None,
    show: bool,
    export_path: Path | None,
    import_path: Path | None,
    as_json: bool,
) -> int:
    """Measure this machine, so that estimates rest on it.

    Matmuls, memory, attention and real training steps, each in a child process.
    """
    from advisor import calibrate as machine
    from advisor.render.calibration import describe_stored, render_answer

    if sum((show, export_path is not None, import_path is not None)) > 1:
        raise AdviseError("usage", "--show, --export and --import exclude each other", "Give one of them.")
    if export_path is not None:
        found = machine.export_calibration(export_path)
        _print(found, as_json, f"{found.id} written to {export_path}")
    elif import_path is not None:
        found = machine.import_calibration(import_path)
        _print(found, as_json, f"{found.id} imported: {found.environment.hardware}, {found.date}")
    elif show:
        from profiles.store import Store

        stored = Store().calibrations.load()
        _print(stored, as_json, str(describe_stored(stored)))
    else:
        answer = machine.calibrate(
            machine.CalibrationOptions(device=device, full=not quick, model=model),
            on_start=lambda name: click.echo(f"{name} ...", err=True),
            on_end=lambda outcome: click.echo(f"  {outcome.describe()}", err=True),
        )
        _print(answer, as_json, str(render_answer(answer)))
    return 0


def _print(answer: "Record | Sequence[Record]", as_json: bool, text: str) -> None:
    if not as_json:
        click.echo(text)
        return
    from advisor.render.envelope import answer_envelope

    click.echo(answer_envelope("calibrate", answer))

"""`ftadvise simulate`: the real training step on fake tensors, with the operation at each peak."""

import sys
from pathlib import Path
from typing import Any

import click

from advisor.cli.options import json_option
from advisor.cli.plan_options import AskedPlan, plan_options
from estimators.child import Child
from profiles.errors import AdviseError


@click.command(
    epilog="""\b
Examples:
  ftadvise simulate --model llama-8b --gpu rtx4090 --method qlora --micro-batch 2
  ftadvise simulate --plan plan.json --svg timeline.svg --snapshot memory.pickle
  ftadvise simulate --plan plan.json --batches lengths.txt
"""
)
@plan_options
@click.option("--whole", is_flag=True, help="Trace every layer instead of repeating one.")
@click.option(
    "--batches",
    metavar="FILE",
    help="The micro-batches in the order that the run sees them, one a line: the tokens of each row.",
)
@click.option("--seconds", type=float, default=120, show_default=True, help="Give up after so long.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw the timeline into this file (SVG).")
@click.option(
    "--snapshot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a snapshot that pytorch.org/memory_viz opens.",
)
@json_option
@click.pass_obj
def command(
    child: Child,
    /,
    path: str | None,
    vram: float | None,
    assignments: tuple[str, ...],
    offline: bool,
    whole: bool,
    batches: str | None,
    seconds: float,
    svg: Path | None,
    snapshot: Path | None,
    as_json: bool,
    **fields: Any,
) -> int:
    """Run a plan's real code on fake tensors.

    Needs torch, transformers and peft, but no GPU and no weights; takes seconds. The longest of --batches decides the
    peak, their sequence what the allocator holds beside it; without them two steps of the longest batch run.
    """
    from advisor.api import resolve_plan
    from advisor.batch_file import read_batches
    from estimators.simulate import simulate

    asked = AskedPlan(path, vram, assignments, offline, fields)
    plan, hardware = asked.plan(asked.base())
    model, hardware = resolve_plan(plan, hardware=hardware, offline=offline)
    read = read_batches(batches, plan) if batches is not None else ()
    if sys.stderr.isatty():
        click.echo("tracing the step on fake tensors, some seconds ...", err=True)
    found = simulate(
        plan,
        model,
        hardware,
        seconds=seconds,
        layers="whole" if whole else "extrapolate",
        batches=read,
        snapshot=snapshot,
        child=child,
    )
    from advisor.render.simulation import render_simulation
    from estimators.simulate.estimate import memory_from_simulation
    from estimators.simulate.plot import plot_timeline

    memory = memory_from_simulation(found, plan, model, hardware)
    if svg is not None:
        _write(svg, plot_timeline(found))
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("simulate", found))
    else:
        render_simulation(plan, found, memory, read).show()
    return 0 if memory.verdict == "fits" else 1


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AdviseError("not-written", f"{path}: {error.strerror}", "Name a file in a folder that exists.") from None

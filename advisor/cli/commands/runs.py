"""`ftadvise runs`: the runs that were launched here; show, watch and stop one of them."""

import click

from advisor.cli.options import json_option

RUN = click.argument("run", metavar="FOLDER|ID")
STATUS_CODES = {"finished": 0, "stopped": 130}


@click.group(
    "runs",
    invoke_without_command=True,
    epilog="""\b
Examples:
  ftadvise runs
  ftadvise runs show run
  ftadvise runs attach run
  ftadvise runs stop run

\b
A run is named by its folder or by the beginning of its id. `launch` remembers it; what is said of it is read from its
folder at this moment, whoever started it and however that ended.
""",
)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> int:
    """List the runs that were launched here, and how they stand."""
    if context.invoked_subcommand is not None:
        return 0
    from advisor.runs import list_runs

    found = list_runs()
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("runs", found))
    else:
        from advisor.render.runs import print_runs

        print_runs(found)
    return 0


@command.command("show")
@RUN
@json_option
def show(run: str, as_json: bool) -> int:
    """Tell how a run stands: progress, losses, speed, memory against the prediction, checkpoint."""
    from advisor.runs import find_run, view_run

    view = view_run(find_run(run))
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("runs show", view))
    else:
        from advisor.render.runs import render_run

        render_run(view).show()
    return 0


@command.command("attach")
@RUN
@click.option("--json", "as_json", is_flag=True, help="Progress as JSON lines.")
def attach(run: str, as_json: bool) -> int:
    """Watch a run that goes on, whoever started it. Ctrl-C only stops watching.

    Exit codes: 0 it finished, or is no longer watched; 1 it failed; 130 it was stopped.
    """
    from advisor.detection import open_cards
    from advisor.launch import load_run_file
    from advisor.launch.attach import attach as watch
    from advisor.launch.monitor import choose_reporter
    from advisor.render.console import make_console
    from advisor.runs import find_run

    folder = find_run(run)
    forecast = load_run_file(folder).forecast
    with open_cards() as read_cards:
        reporter = choose_reporter(as_json=as_json, forecast=forecast, console=make_console(), read_cards=read_cards)
        with reporter:
            state = watch(folder, reporter)
    if state is None:
        reporter.note("no longer watched; the run goes on")
        return 0
    return STATUS_CODES.get(state.status, 1)


@command.command("stop")
@RUN
@click.option("--kill", is_flag=True, help="At once, without a checkpoint of the step at hand.")
@json_option
def stop(run: str, kill: bool, as_json: bool) -> int:
    """Stop a run after the step at hand, with a checkpoint, and wait for its end.

    Exit codes: 0 it has ended, 2 nothing ran there.
    """
    from advisor.launch.stop import stop_run
    from advisor.runs import find_run

    state = stop_run(find_run(run), kill=kill)
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("runs stop", state))
    else:
        from advisor.render.runs import render_state

        render_state(state).show()
    return 0

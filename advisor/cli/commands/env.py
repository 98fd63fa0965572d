"""`ftadvise env`: the platforms' own virtual environments."""

from typing import TYPE_CHECKING

import click

from advisor.cli.options import json_option
from profiles.errors import AdviseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from advisor.environments import Environment


@click.group(
    epilog="""\b
Examples:
  ftadvise env create hf
  ftadvise env create llamafactory --cpu --python python3.12
  ftadvise env check

\b
They live in ~/.local/share/ftadvise/environments, or where FTADVISE_HOME says.
Exit codes: 0 ready, 1 not ready, 2 could not be built.
"""
)
def command() -> None:
    """Build, list, check and remove environments.

    Each platform has one of its own, and `launch` finds it by itself.
    """


@command.command()
@click.argument("platform")
@click.option("--python", metavar="PATH", help="Interpreter to build over.  [default: the one that runs ftadvise]")
@click.option("--cpu", is_flag=True, help="PyTorch's CPU build, and text only.")
@json_option
def create(platform: str, python: str | None, cpu: bool, as_json: bool) -> int:
    """Build PLATFORM's environment (hf, llamafactory, unsloth) from its tested versions.

    One that is ready stays as it is; one that is broken, outdated or half-built is built anew.
    """
    from advisor.environments import create_environment
    from advisor.render.build_progress import show_progress

    with show_progress() as report:
        found = create_environment(platform, python=python, cpu=cpu, report=report)
    _print([found], as_json)
    return 0


@command.command(name="list")
@json_option
def list_(as_json: bool) -> int:
    """List the environments that are there, and how each stands."""
    from advisor.environments import find_environments

    _print(find_environments(), as_json)
    return 0


@command.command()
@click.argument("platform", required=False)
@json_option
def check(platform: str | None, as_json: bool) -> int:
    """Check versions and import of PLATFORM's environment, or of all."""
    from advisor.environments import check_environment, find_environments

    found = [e for e in find_environments() if platform in (None, e.platform)]
    if platform is not None and not found:
        raise AdviseError("no-environment", f"there is no environment {platform!r}", "`ftadvise env list` shows all.")
    checked = [check_environment(environment) for environment in found]
    _print(checked, as_json)
    return 0 if all(e.state == "ready" for e in checked) else 1


@command.command()
@click.argument("platform")
@json_option
def remove(platform: str, as_json: bool) -> int:
    """Delete PLATFORM's environment."""
    from advisor.environments import find_environments, remove_environment

    remove_environment(platform)
    _print(find_environments(), as_json)
    return 0


def _print(found: "Sequence[Environment]", as_json: bool) -> None:
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("env", found))
    else:
        from advisor.render.environments import render_environments

        render_environments(found).show()

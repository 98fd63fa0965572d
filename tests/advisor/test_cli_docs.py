"""docs/cli.md cannot drift: its commands are those that exist, its examples parse, its Python runs."""

import re
import shlex
from pathlib import Path

import click
import pytest

from advisor.cli.main import cli

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^ftadvise .*$", PAGE, flags=re.MULTILINE)


def test_every_command_has_a_heading():
    headings = {word for line in re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE) for word in line.split(", ")}
    assert headings - {"JSON", "Python"} == set(cli.list_commands(None))


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_parse(line):
    words = shlex.split(line)[1:]
    name, rest = ("advise", words) if words[0].startswith("-") else (words[0], words[1:])
    command = cli.get_command(click.Context(cli), name)
    if isinstance(command, click.Group) and rest:
        command, name, rest = command.commands[rest[0]], rest[0], rest[1:]
    with command.make_context(name, rest) as context:
        assert context.params


def test_there_are_examples_of_every_command():
    assert len(EXAMPLES) >= 15
    assert {line.split()[1] for line in EXAMPLES} >= set(cli.list_commands(None)) - {"advise"}


def test_the_python_runs(capsys):
    code = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    exec(code, {})
    assert "fits" in capsys.readouterr().out

"""A written project on the screen."""

import shlex

from rich.console import Console
from rich.text import Text

from advisor.emit import Emission
from advisor.render.console import make_console
from advisor.render.prose import bullets, heading


def print_emission(emission: Emission, out: str, *, with_data: bool, console: Console | None = None) -> None:
    """Print what was written and what to type next."""
    console = console or make_console()
    names = sorted(emission.files) + (["data/train.jsonl"] if with_data else [])
    console.print(Text(f"Written to {out}: {', '.join(names)}"), soft_wrap=True)
    if not with_data:
        bullets(console, "Before the run", ["put data/train.jsonl and data/eval.jsonl into it, or emit with --data"])
    heading(console, "Next")
    console.print(Text(f"  {shlex.join(['ftadvise', 'launch', out])}"), soft_wrap=True)

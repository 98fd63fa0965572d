"""The one console: 80 to 120 columns, no colour into pipes or under NO_COLOR."""

import os
import shutil

from rich.console import Console

MIN_WIDTH, MAX_WIDTH = 60, 120
PIPE_WIDTH = 100


def make_console() -> Console:
    """A console for standard output as wide as the terminal, within limits that read well."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    else:
        console.width = min(max(shutil.get_terminal_size().columns, MIN_WIDTH), MAX_WIDTH)
    return console

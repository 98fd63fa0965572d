"""rich's console for tables and live screens, as wide as a page; no colour into pipes or under NO_COLOR."""

from rich.console import Console

from advisor.render.page import page_width


def make_console() -> Console:
    """A console for standard output."""
    return Console(highlight=False, width=page_width())

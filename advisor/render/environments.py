"""The platforms' environments as a page."""

from collections.abc import Sequence

from advisor.environments import Environment
from advisor.render.page import Page


def render_environments(found: Sequence[Environment], width: int | None = None) -> Page:
    """One paragraph an environment: state, what it is built on, where it is, and what to do where it is not ready."""
    page = Page(width)
    if not found:
        page.line("No environment is built. `ftadvise env create hf` builds that of Hugging Face.")
    for e in found:
        about = [
            e.state,
            *([f"Python {e.python_version}"] if e.python_version else []),
            *(["CPU build"] if e.cpu else []),
        ]
        page.field(e.platform, ", ".join(about))
        page.field("", e.python if e.state == "ready" else e.path)
        if e.reason:
            page.field("", e.reason)
        if e.state not in ("ready", "building"):
            page.field("", f"`ftadvise env create {e.platform}{' --cpu' if e.cpu else ''}` builds it anew")
    return page

"""A written project as a page."""

import shlex

from advisor.emit import ClusterId, Emission
from advisor.emit.clusters import clusters
from advisor.render.page import Page


def render_emission(
    emission: Emission, out: str, *, with_data: bool, cluster: ClusterId | None = None, width: int | None = None
) -> Page:
    """What was written and what to type next."""
    page = Page(width)
    names = sorted(emission.files) + (["data/train.jsonl"] if with_data else [])
    page.line(f"Written to {out}: {', '.join(names)}")
    if not with_data:
        page.bullets("Before the run", ["put data/train.jsonl and data/eval.jsonl into it, or emit with --data"])
    page.heading("Next")
    if cluster == "skypilot":
        page.line(f"  cd {shlex.quote(out)} && {clusters()[cluster].submit}")
    else:
        page.line(f"  {shlex.join(['ftadvise', 'launch', out, *(['--launcher', cluster] if cluster else [])])}")
    return page

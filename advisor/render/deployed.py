"""A deployed result as a page."""

from advisor.deploy import Deployed
from advisor.render.page import Page


def render_deployed(deployed: Deployed, width: int | None = None) -> Page:
    """What was written, how the merge was checked, how to use it."""
    page = Page(width)
    page.field("Written to", f"{deployed.folder}: {', '.join(deployed.files)}")
    check = deployed.merge
    if check is not None:
        page.field("Merged", f"into {check.base}, saved in {check.dtype}")
        said = "says the same as the adapter" if check.holds else "does NOT say the same as the adapter"
        page.field(
            "Checked",
            f"{said}: divergence {check.divergence:.2g} nats a token, the same likeliest token in "
            f"{check.same_choice:.1%} of {check.tokens}",
        )
    for note in deployed.notes:
        page.field("Note", note)
    page.heading("Use")
    for line in deployed.use.splitlines():
        page.line(f"  {line}")
    return page

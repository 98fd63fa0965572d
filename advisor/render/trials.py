"""Trials of a plan as pages."""

from advisor.render.page import Page
from advisor.trials.poc import Proof


def render_proof(proof: Proof, width: int | None = None) -> Page:
    """The verdict, what was measured beside what was predicted, and what is off."""
    page = Page(width)
    page.field("Verdict", _verdict(proof))
    page.field("Run", f"{proof.state.step} steps in {proof.folder}")
    page.bullets("Predicted and measured", (c.text for c in proof.comparisons))
    if proof.loss is not None:
        page.bullets("Loss", [f"{proof.loss[0]:.4f} before, {proof.loss[1]:.4f} after"])
    page.bullets("Off", proof.off)
    page.bullets("Learnt", proof.learnt)
    return page


def _verdict(proof: Proof) -> str:
    if proof.confirmed:
        return "confirmed: it runs, it learns, and it does what was predicted"
    return "not confirmed" if proof.state.status == "finished" else f"not confirmed: {proof.state.status}"

"""Trials of a plan as pages."""

from collections.abc import Iterator

from advisor.plan_changes import describe_changes
from advisor.render.page import Page
from advisor.trials.evidence import Evidence
from advisor.trials.optimise import Optimisation, Proposal
from advisor.trials.poc import Proof
from advisor.trials.study import TunedTrial, Tuning
from profiles.units import format_bytes, format_count


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
    if proof.state.status == "out-of-memory":
        page.field("Next", "`ftadvise optimise FOLDER --run` looks for a plan that runs")
    return page


def _verdict(proof: Proof) -> str:
    if proof.confirmed:
        return "confirmed: it runs, it learns, and it does what was predicted"
    return "not confirmed" if proof.state.status == "finished" else f"not confirmed: {proof.state.status}"


def render_optimisation(found: Optimisation, width: int | None = None) -> Page:
    """The proposal, its trials, and what was kept."""
    page = Page(width)
    if found.proposal is None:
        page.field("Verdict", "no better plan is known: none that fits is expected to be faster")
        return page
    page.field("Change", describe_changes(found.proposal.changes))
    for name, value in _expected(found.proposal):
        page.field(name, value)
    page.bullets("Tried", (_tell(trial) for trial in found.tried))
    if found.kept is not None:
        page.field("Kept", f"{describe_changes(found.kept)}: {found.kept.reason}")
    elif found.tried:
        page.field("Kept", "nothing: no trial was measured better, the plan stays as it was")
    else:
        page.field("Next", "`ftadvise optimise FOLDER --run` tries it, and keeps it if it is measured better")
    return page


def _expected(proposal: Proposal) -> Iterator[tuple[str, str]]:
    if proposal.measured is not None and proposal.expected is not None:
        gain = f"{proposal.expected / proposal.measured - 1:+.0%}"
        now = f"{format_count(proposal.measured)} tokens/s were measured"
        yield "Speed", f"{format_count(proposal.expected)} tokens/s expected ({gain}; {now})"
    elif proposal.measured is None:
        yield "Speed", "the plan as it is runs out of memory"
    yield "Memory", f"at most {format_bytes(proposal.device_high)} of {format_bytes(proposal.budget)} a card"


def _tell(trial: Evidence) -> str:
    plan = trial.plan
    pace = trial.message if trial.tokens_per_second is None else f"{format_count(trial.tokens_per_second)} tokens/s"
    batch = f"micro-batch {plan.micro_batch_size} x {plan.gradient_accumulation_steps}"
    return f"{batch}, checkpointing {plan.gradient_checkpointing}, packing {'on' if plan.packing else 'off'}: {pace}"


def render_tuning(found: Tuning, width: int | None = None) -> Page:
    """The best settings, what they changed, and all trials, best first."""
    page = Page(width)
    if found.best is None:
        page.field("Best", "no trial has finished")
    else:
        page.field("Best", f"trial {found.best.number}: {_tell_trial(found.best)}")
        kept = "the plan as it was is the best" if found.kept is None else describe_changes(found.kept)
        page.field("Kept", kept)
    page.bullets("Trials", (f"{t.number}: {_tell_trial(t)}" for t in sorted(found.trials, key=_by_loss)))
    return page


def _by_loss(trial: TunedTrial) -> tuple[bool, float]:
    return trial.state != "finished", trial.loss if trial.loss is not None else float("inf")


def _tell_trial(trial: TunedTrial) -> str:
    settings = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in trial.settings.items())
    loss = trial.message or ("no loss" if trial.loss is None else f"held-out loss {trial.loss:.4f}")
    return f"{settings}: {loss} ({trial.state})"

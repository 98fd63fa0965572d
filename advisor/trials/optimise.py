"""From what was measured of a plan to the next better one: the planner's own search, corrected by the measurements."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from advisor.axes import Axes, checkpointings, packings
from advisor.emit.base import PlanChange
from advisor.evaluate import figures_of
from advisor.plan_changes import change_plan
from advisor.plans import Cell
from advisor.project import read_unedited, rewrite_project
from advisor.recommendation import Facts
from advisor.request import Request
from advisor.safer import ceiling, safer_plan
from advisor.search import Search
from advisor.trials.evidence import Evidence, gather_evidence, is_same_plan, next_folder, read_evidence
from advisor.trials.poc import STEPS, Runner, prove_plan
from advisor.trials.project import assess_trial, estimate_trial
from estimators.memory import estimate_memory
from estimators.plan_figures import Body, Figures, Pair, Spread, plan_of
from profiles.errors import AdviseError
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.record import Record
from profiles.store import Store

NOISE = 0.02  # a smaller gain is none: two runs of one plan differ by as much


class Proposal(Record):
    """A plan that should be better. expected: its speed, the measured one times what the estimates gain (tokens/s).

    measured: speed of the present plan; None (and so `expected`) where that ran out of memory. device_high: the high
    end of a card's memory, corrected by what was measured; budget: what it has to fit in; bytes.
    """

    plan: Plan
    changes: PlanChange
    measured: float | None
    expected: float | None
    device_high: float
    budget: float


class Optimisation(Record):
    """What came of it. proposal None: none is better than the present plan, as far as is known.

    tried: the trials of this call, in order. kept: the change to the plan that was measured better.
    """

    proposal: Proposal | None
    tried: tuple[Evidence, ...] = ()
    kept: PlanChange | None = None


def optimise(
    project: Path, run: Runner | None = None, *, steps: int = STEPS, store: Store | None = None
) -> Optimisation:
    """Propose the next better plan; with `run`, try it, and write the project anew for it if it is measured better.

    Where the trial runs out of memory, the next best plan follows that this leaves room for. Every trial stays in the
    project's folder optimise/, and is not proposed again.

    Raises:
        AdviseError: nothing was measured yet, the project was edited by hand, or a trial failed for another reason.
    """
    file, source, model = read_unedited(project)
    proposal = first = propose(project, file.plan, model)
    tried: list[Evidence] = []
    while run is not None and proposal is not None:
        out = next_folder(project)
        proof = prove_plan(project, proposal.plan, source, model, out, run, steps=steps, store=store)
        found = read_evidence(out)
        if found is None:  # stopped
            break
        tried.append(found)
        if found.status == "out-of-memory":
            proposal = propose(project, file.plan, model)
            continue
        if not _is_faster(found, proposal.measured):
            break
        kept = proposal.changes.replace(reason=_reason(found, proposal.measured), step=proof.state.step)
        rewrite_project(project, proposal.plan, kept)
        return Optimisation(proposal=first, tried=tuple(tried), kept=kept)
    return Optimisation(proposal=first, tried=tuple(tried))


def propose(project: Path, plan: Plan, model: ModelSpec) -> Proposal | None:
    """The fastest plan that learns the same, fits by corrected estimates, was not tried, and is faster than `plan`.

    Where `plan` itself ran out of memory: the fastest that fits, else the next safer one.

    Raises:
        AdviseError: `plan` was not measured yet (code 'unmeasured').
    """
    evidence = gather_evidence(project, plan)
    own = [e for e in evidence if is_same_plan(e.plan, plan)]
    finished = [e for e in own if e.tokens_per_second is not None]
    if not finished and not any(e.status == "out-of-memory" for e in own):
        raise AdviseError("unmeasured", f"{project}: its plan has not run yet", f"`ftadvise poc {project}` runs it.")
    base = (finished or own)[-1]
    facts = assess_trial(plan, model, Path(base.folder))
    factor = memory_factor(evidence, base, facts)
    better = _search(plan, facts, factor)
    untried = (p for p in better if not any(is_same_plan(p, e.plan) for e in evidence))
    found = next(untried, None)
    if found is None and not finished:
        found = _safer_than_all(evidence, facts)
    if found is None:
        return None
    now, then = estimate_trial(plan, facts), estimate_trial(found, facts)
    expected = None
    if base.tokens_per_second is not None and now.speed is not None and then.speed is not None:
        gain = then.speed.tokens_per_second.expected / now.speed.tokens_per_second.expected
        if gain <= 1 + NOISE:
            return None
        expected = base.tokens_per_second * gain
    return Proposal(
        plan=found,
        changes=change_plan(plan, found, reason="proposed", step=0),
        measured=base.tokens_per_second,
        expected=expected,
        device_high=then.memory.device.high * factor,
        budget=then.memory.budget,
    )


def memory_factor(evidence: Sequence[Evidence], base: Evidence, facts: Facts) -> float:
    """What estimates of memory are multiplied by: measured over expected of `base`; where plans ran out of memory, as
    much as it takes that none of them fits."""
    short = [e for e in evidence if e.status == "out-of-memory"]
    memories = [(estimate_memory(e.plan, facts.model, facts.hardware), e.message) for e in short]
    return max((base.memory_share or 1.0, *(m.budget / ceiling(m, message) for m, message in memories)))


def _safer_than_all(evidence: Sequence[Evidence], facts: Facts) -> Plan | None:
    """Than the plan that was expected to take least of those that ran out of memory."""
    short = (e for e in evidence if e.status == "out-of-memory")
    least = min(short, key=lambda e: estimate_memory(e.plan, facts.model, facts.hardware).device.expected)
    return safer_plan(least.plan, facts.model, facts.hardware, least.message)


def _search(plan: Plan, facts: Facts, factor: float) -> Iterator[Plan]:
    """Plans that learn the same and fit, the fastest first."""
    examples = plan.global_batch_size
    if plan.packing and facts.data.mean_len is not None:
        examples = round(examples * plan.seq_len / facts.data.mean_len)
    request = Request(model=plan.model, goal="fast", global_batch_size=examples)
    cell = Cell(plan.platform, plan.method, plan.quantization)
    axes = Axes(
        offloads=(plan.offload_optimizer,),
        seq_lens=(plan.seq_len,),
        target_modules=(plan.target_modules,),
        lora_ranks=(plan.lora_rank,),
        optimizers=(plan.optimizer,),
        n_gpus=(plan.n_gpus,),
        shardings=(plan.sharding,),
        offloadings=(plan.sharding,),
        packings=packings(cell, request, facts),
        attentions=(plan.attention,),
        loss_kernels=(plan.loss_kernel,),
        checkpointings=checkpointings(cell, facts),
    )
    draft = plan.replace(padding_mask=None) if plan.packing else plan
    search = Search(cell, axes, request, facts, _Corrected(figures_of(draft, facts), factor))
    for level in search.levels():
        for trial in level.trials:
            body, spread, size, accumulation = trial.point
            found = plan_of(draft, body, spread, micro_batch_size=size, accumulation=accumulation)
            yield found.replace(lora_alpha=plan.lora_alpha)


class _Corrected(NamedTuple):
    """Figures whose memory is multiplied by a factor."""

    figures: Figures
    factor: float

    def pair(self, body: Body, spread: Spread) -> "_CorrectedPair":
        return _CorrectedPair(self.figures.pair(body, spread), self.factor)


class _CorrectedPair(NamedTuple):
    pair: Pair
    factor: float

    def floor(self) -> float:
        return self.pair.floor() * self.factor

    def peak(self, micro_batch_size: int, accumulation: int) -> float:
        return self.pair.peak(micro_batch_size, accumulation) * self.factor

    def seconds_per_token(self, micro_batch_size: int, accumulation: int) -> float | None:
        return self.pair.seconds_per_token(micro_batch_size, accumulation)


def _is_faster(found: Evidence, before: float | None) -> bool:
    """Than the present plan; than one that ran out of memory is whatever runs."""
    return found.tokens_per_second is not None and found.tokens_per_second > (before or 0.0) * (1 + NOISE)


def _reason(found: Evidence, before: float | None) -> str:
    trial = "/".join(Path(found.folder).parts[-2:])
    if before is None or found.tokens_per_second is None:
        return f"it ran in {trial}, where the plan before ran out of memory"
    return f"measured {found.tokens_per_second / before - 1:.0%} faster in {trial}"

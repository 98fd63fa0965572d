"""Scores: what both tiers and the peers say of measured runs, figure by figure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.model_configs import model_spec
from benchmarks.peers import peer_figures
from benchmarks.rows import PEFT_BATCHES, MeasuredRow
from benchmarks.simulated import changes_of, fingerprint, job_of, recorded
from estimators.answer import MemoryEstimate
from estimators.interval import Interval
from estimators.margins import Basis, allocated_case, allocated_interval, replayed_interval, reserved_case
from estimators.overhead import device_interval
from estimators.regime import resolve_regime
from estimators.replay import estimate_memory_replayed
from profiles.catalog import find_gpu
from profiles.errors import AdviseError
from profiles.gpu import Hardware

KINDS = ("allocated", "reserved", "device")


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one row. `case`: the margin that its interval rests on ("" for a peer, which has none)."""

    row: MeasuredRow
    tier: str
    kind: str
    measured: float
    predicted: float
    interval: Interval | None = None
    case: str = ""

    @property
    def error(self) -> float:
        """Relative, positive where we predict too much."""
        return self.predicted / self.measured - 1

    @property
    def share(self) -> float:
        """What the case's margin is made of: measured over predicted, less one."""
        return self.measured / self.predicted - 1

    @property
    def covered(self) -> bool:
        return self.interval is not None and self.interval.low <= self.measured <= self.interval.high


def estimate_row(row: MeasuredRow) -> MemoryEstimate:
    """The analytic tier's answer to a row, with the batches and the loop of its source where they are known."""
    assert row.plan is not None
    assert row.gpu_id is not None
    assert row.model_ref is not None
    hardware = Hardware(gpu=find_gpu(row.gpu_id), n_gpus=row.n_gpus)
    loop: dict[str, Any] = {}
    if row.source == "peft":
        loop = {"batches": PEFT_BATCHES, "empty_cache": True}
    if row.source == "fitcheck":  # its step is one function: what it returns goes with it
        loop = {"release_outputs": True, "moved": True}
    return estimate_memory_replayed(row.plan, model_spec(row.model_ref), hardware, **loop)


def scores(rows: Iterable[MeasuredRow]) -> Iterator[Score]:
    """Every figure of every row that ran: the formulas', the simulated tier's where it answers, the peers'."""
    said = recorded()
    for row in rows:
        measured = {kind: row.measured[f"{kind}_bytes"] for kind in KINDS if f"{kind}_bytes" in row.measured}
        if row.quality != "A" or row.measured.get("oom") or not measured:
            continue
        for tier, figures in _answers(row, said):
            for kind in KINDS:
                if kind in measured and kind in figures:
                    predicted, interval, case = figures[kind]
                    yield Score(row, tier, kind, measured[kind], predicted, interval, case)


Figures = dict[str, tuple[float, Interval | None, str]]


def _answers(row: MeasuredRow, said: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Figures]]:
    if row.plan is not None:
        try:
            estimate = estimate_row(row)
        except AdviseError:
            return
        cases = _cases(row, "analytic")
        yield (
            "analytic",
            {k: (getattr(estimate, k).expected, getattr(estimate, k), cases.get(k, "")) for k in KINDS},
        )
        for name, figures in peer_figures(row):
            yield name, {kind: (n_bytes, None, "") for kind, n_bytes in figures.items()}
    job = job_of(row)
    answer = said.get(fingerprint(job, changes_of(row)), {}).get("bytes") if job is not None else None
    if job is not None and answer is not None:
        regime = resolve_regime(job.plan, job.model, job.hardware.gpu)
        allocated = allocated_interval(answer["allocated_bytes"], job.plan, regime, "simulated")
        reserved = replayed_interval(answer["reserved_bytes"], allocated, job.plan, regime, "simulated")
        intervals = dict(zip(KINDS, (allocated, reserved, device_interval(reserved, job.hardware.gpu)), strict=True))
        cases = _cases(row, "simulated")
        yield "simulated", {k: (i.expected, i, cases.get(k, "")) for k, i in intervals.items()}


def _cases(row: MeasuredRow, basis: Basis) -> dict[str, str]:
    job = job_of(row) if basis == "simulated" else None
    plan = job.plan if job is not None else row.plan
    assert plan is not None
    assert row.model_ref is not None
    assert row.gpu_id is not None
    regime = resolve_regime(plan, model_spec(row.model_ref), find_gpu(row.gpu_id))
    cases = {"allocated": f"allocated/{allocated_case(plan, regime, basis)}"}
    return cases | {"reserved": f"reserved/{reserved_case(regime, basis)}"} if row.n_gpus == 1 else cases

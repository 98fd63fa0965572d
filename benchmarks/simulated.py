"""Simulated against measured memory, per source: `python -m benchmarks.simulated [--source peft] [--rows] [--jobs 2]`.

Rows come through benchmarks/rows.py. Two sources say what the batches of their loops were: PEFT's MetaMathQA benchmark
(here an average batch, then, after the cache was emptied, the longest) and fitcheck (full length, twice). Each row is
traced in a process forked from one that has already imported the libraries.
"""

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.model_configs import model_spec
from benchmarks.quantile import quantile
from benchmarks.rows import PEFT_PADDED_LEN, MeasuredRow, load_rows
from estimators.simulate.job import Job
from estimators.simulate.result import Simulation
from profiles.catalog import find_gpu
from profiles.errors import AdviseError
from profiles.gpu import Hardware
from profiles.plan import Plan
from profiles.units import MIB

# The longest batch of PEFT's benchmark is not published: one length, fitted to its LoRA row, serves all its rows.
LONGEST_LEN = 676
SOURCES = ("peft", "fitcheck", "fms", "canifinetune", "torchtune")
KINDS = {
    "allocated_bytes": lambda s: s.peak_allocated,
    "reserved_bytes": lambda s: s.peak_reserved,
    "after_load_bytes": lambda s: s.after_load,
    "forward_peak_bytes": lambda s: max(s.stages["forward"], s.stages["loss"]),
    "backward_peak_bytes": lambda s: max(s.stages["loss_backward"], s.stages["backward"]),
    "optimizer_peak_bytes": lambda s: s.stages["optimizer"],
}


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one row."""

    row: MeasuredRow
    kind: str
    measured: float
    predicted: float
    simulation: Simulation

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def job_of(row: MeasuredRow) -> Job | None:
    """The row as a job, or None where it cannot be simulated."""
    if row.model_ref is None or row.gpu_id is None or row.n_gpus > 1 or row.measured.get("oom"):
        return None
    hardware = Hardware(gpu=find_gpu(row.gpu_id))
    model = model_spec(row.model_ref)
    if row.source == "peft" and (row.raw.get("peft_config") or {}).get("peft_type") == "OSF":
        return None  # its rank is not in the published configuration
    if row.source == "peft":
        plan = peft_plan(row)
        batches = ((4, PEFT_PADDED_LEN), (4, LONGEST_LEN))
        return Job(
            plan=plan,
            model=model,
            hardware=hardware,
            batches=batches,
            zero_grad="start",
            empty_cache_every=1,
        )
    if row.plan is None or row.raw.get("role") == "excluded" or row.plan.platform == "unsloth":
        return None
    if row.source != "fitcheck" and row.memory_note:
        return None
    if row.source == "fitcheck":
        plan = row.plan.replace(padding_mask=False)
        expand = "GQA expand" in row.raw["attention"]
        return Job(plan=plan, model=model, hardware=hardware, expand_kv_heads=expand, release_outputs=True, load="to")
    return Job(plan=row.plan, model=model, hardware=hardware)


def peft_plan(row: MeasuredRow) -> Plan:
    """PEFT's loop, with the method as PEFT's own configuration: also methods that have no file here."""
    config = {k: v for k, v in (row.raw.get("peft_config") or {}).items() if v is not None and k != "peft_version"}
    if config and isinstance(row.raw.get("target_modules"), list):
        config["target_modules"] = row.raw["target_modules"]
    if config.get("oft_block_size"):
        config.pop("r", None)  # PEFT writes both, and takes one
    return Plan(
        model=str(row.model_ref),
        gpu=row.gpu_id,
        method="lora" if config else "full",
        method_options=config,
        quantization="bf16",
        adapter_dtype="fp32" if "fp32 adapters" in row.raw["dtype"] else "bf16",
        micro_batch_size=4,
        seq_len=LONGEST_LEN,
        mixed_precision=False,
        keep_outputs=True,
        use_cache=True,
        padding_mask=True,
        gradient_checkpointing="full" if row.raw.get("grad_ckpt") else "none",
        loss_kernel="full",
        optimizer="adamw_torch",
        max_grad_norm=1.0,
        weight_decay=0.1,
    )


def attempt(job: Job) -> Simulation | str:
    """Simulate in this (forked) process."""
    import warnings

    from estimators.simulate.worker import run_job

    warnings.filterwarnings("ignore")
    try:
        return run_job(job)
    except AdviseError as error:
        return error.message


def simulate_all(jobs: list[Job], n_processes: int) -> Iterator[Simulation | str]:
    """Run jobs in order, each in a fresh fork of this process."""
    import torch
    import transformers.models.llama.modeling_llama
    import transformers.models.qwen2.modeling_qwen2

    torch.compile = lambda f=None, **_: f if f is not None else (lambda g: g)
    import bitsandbytes
    import peft
    import trl.trainer.utils

    del transformers, bitsandbytes, peft, trl
    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(n_processes, maxtasksperchild=1) as pool:
        yield from pool.imap(attempt, jobs, chunksize=1)


def summary(found: list[Score]) -> Table:
    table = Table(title="Simulated tier: predicted against measured")
    for column in ("source", "figure", "n", "median |e|", "P90 |e|", "P95 |e|", "worst over", "worst under", "bias"):
        table.add_column(column, justify="left" if column in ("source", "figure") else "right")
    groups: dict[tuple[str, str], list[float]] = {}
    for s in found:
        groups.setdefault((s.row.source, s.kind.removesuffix("_bytes")), []).append(s.error)
    for (source, kind), errors in sorted(groups.items()):
        sizes = [abs(e) for e in errors]
        table.add_row(
            source, kind, str(len(errors)), f"{median(sizes):.2%}", f"{quantile(sizes, 0.9):.2%}",
            f"{quantile(sizes, 0.95):.2%}", f"{max(errors):+.2%}", f"{min(errors):+.2%}", f"{median(errors):+.2%}",
        )  # fmt: skip
    return table


@click.command()
@click.option("--rows", "show_rows", is_flag=True, help="Print every row.")
@click.option("--source", help="Only this source.")
@click.option("--match", default="", help="Only rows whose id contains this.")
@click.option("--all", "every", is_flag=True, help="PEFT: all library versions, not only the current results.")
@click.option("--jobs", "n_processes", default=1, help="Processes at a time.")
def main(show_rows: bool, source: str | None, match: str, every: bool, n_processes: int) -> None:
    console = Console(width=int(os.environ.get("COLUMNS", "160")))
    rows = [
        r for r in load_rows()
        if r.quality == "A" and r.source in SOURCES and source in (None, r.source) and match in r.id
        and (every or r.source != "peft" or r.raw.get("in_head"))
    ]  # fmt: skip
    pairs: list[tuple[MeasuredRow, Job]] = [(r, job) for r in rows if (job := job_of(r)) is not None]
    found: list[Score] = []
    for (row, _), answer in zip(pairs, simulate_all([j for _, j in pairs], n_processes), strict=True):
        if isinstance(answer, str):
            console.print(f"failed  {row.id}: {answer}", soft_wrap=True, highlight=False)
            continue
        scores = [Score(row, k, row.measured[k], f(answer), answer) for k, f in KINDS.items() if k in row.measured]
        found.extend(scores)
        if show_rows:
            console.print(line(row, scores, answer), soft_wrap=True, highlight=False)
    console.print(summary(found))


def line(row: MeasuredRow, scores: list[Score], answer: Simulation) -> str:
    figures: list[Any] = [f"{s.kind.removesuffix('_bytes')} {s.error:+.2%} of {s.measured / MIB:.0f}" for s in scores]
    return (
        f"{row.id}: {', '.join(figures)} MiB; peak {answer.peak.name} {answer.peak.operation}; {answer.seconds:.1f} s"
    )


if __name__ == "__main__":
    main()

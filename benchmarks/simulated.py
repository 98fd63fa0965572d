"""Measured rows as jobs of the simulated tier, and what it said of them (results/simulated.jsonl).

Two sources say what the batches of their loops were: PEFT's MetaMathQA benchmark (an average batch, then, after the
cache was emptied, the longest) and fitcheck (full length, twice). A third ran libraries whose sources say what they did
otherwise (old_stacks.py). Each job is traced in a process forked from one that has already imported the libraries; its
answer is kept under a fingerprint of the job.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.model_configs import model_spec
from benchmarks.old_stacks import Change, make_changes
from benchmarks.rows import PEFT_BATCHES, MeasuredRow
from estimators.simulate.job import Job
from estimators.simulate.result import Simulation
from estimators.simulate.trace import Stage
from profiles.catalog import find_gpu
from profiles.errors import AdviseError
from profiles.gpu import Hardware
from profiles.plan import QUANTIZED, Plan

RESULTS = Path(__file__).parent / "results" / "simulated.jsonl"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")
STAGES: dict[str, tuple[Stage, ...]] = {
    "forward_peak_bytes": ("forward", "loss"),
    "backward_peak_bytes": ("loss_backward", "backward"),
    "optimizer_peak_bytes": ("optimizer",),
}


def job_of(row: MeasuredRow) -> Job | None:
    """The row as a job, or None where it cannot be simulated."""
    if row.model_ref is None or row.gpu_id is None or row.n_gpus > 1 or row.measured.get("oom"):
        return None
    hardware = Hardware(gpu=find_gpu(row.gpu_id))
    model = model_spec(row.model_ref)
    if row.source == "peft" and (row.raw.get("peft_config") or {}).get("peft_type") == "OSF":
        return None  # its rank is not in the published configuration
    if row.raw["method"] == "lora-fa" or row.skipped.startswith("OFT of before"):
        return None  # an optimizer of its own, which does not train A; code that today's PEFT has no more
    if row.source == "peft":
        loop: dict[str, Any] = {"batches": PEFT_BATCHES, "zero_grad": "start", "empty_cache_every": 1}
        return Job(plan=_peft_plan(row), model=model, hardware=hardware, **loop)
    if row.plan is None or row.memory_note or row.plan.platform == "unsloth":
        return None
    if row.source == "fitcheck":
        plan = row.plan.replace(padding_mask=False)
        loop = {"expand_kv_heads": plan.attention == "sdpa", "release_outputs": True, "load": "to"}
        if changes_of(row):  # weights that are loaded ahead of others are not those of one layer
            loop["layers"] = "whole"
        return Job(plan=plan, model=model, hardware=hardware, **loop)
    if row.source == "fms":  # its loss is among the changes
        repeats = "Mistral" in row.raw["model"] and "transformers 4.45" in row.raw["version"]  # MistralFlashAttention2
        plan = row.plan.replace(keep_outputs=None)
        return Job(plan=plan, model=model, hardware=hardware, expand_kv_heads=repeats)
    return Job(plan=row.plan, model=model, hardware=hardware)


def changes_of(row: MeasuredRow) -> frozenset[Change]:
    """What the row's libraries did otherwise than today's."""
    if row.plan is not None and row.plan.quantization in QUANTIZED and "transformers 5.0.0" in str(row.raw["version"]):
        return frozenset({"weights ahead"})
    if row.source != "fms":
        return frozenset()
    config, changes = row.raw["framework_config"], set[Change]()
    if "transformers 4.48" in row.raw["version"]:
        changes.add("shifted logits")
    if config == "baseline-peft-bnb":
        changes.add("embeddings in half")
    if config.startswith("accelerated-peft-bnb-foak"):
        changes.add("fused LoRA")
    return frozenset(changes)


def _peft_plan(row: MeasuredRow) -> Plan:
    """PEFT's loop, with the method as PEFT's own configuration: also methods that have no file here."""
    config = {k: v for k, v in (row.raw.get("peft_config") or {}).items() if v is not None and k != "peft_version"}
    if config and isinstance(row.raw.get("target_modules"), list):
        config["target_modules"] = row.raw["target_modules"]
    if config.get("oft_block_size"):
        config.pop("r", None)  # PEFT writes both, and takes one
    elif config.get("peft_type") == "OFT":
        config["oft_block_size"] = 0  # its default otherwise, beside r
    return Plan(
        model=str(row.model_ref),
        gpu=row.gpu_id,
        method="lora" if config else "full",
        method_options=config,
        quantization="bf16",
        adapter_dtype="fp32" if "fp32 adapters" in row.raw["dtype"] else "bf16",
        micro_batch_size=4,
        seq_len=max(length for _, length in PEFT_BATCHES),
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


def fingerprint(job: Job, changes: frozenset[Change] = frozenset()) -> str:
    """A name that changes with anything of the job that can change its answer (not with a card's price)."""
    card = job.hardware.gpu
    said = job.model_dump(mode="json", exclude={"model", "hardware", "plan"}, exclude_defaults=True) | {
        "plan": job.plan.model_dump(mode="json", exclude_defaults=True, exclude={"model", "gpu"}),
        "config": job.model.config,
        "card": [card.compute_capability, card.memory_bytes],
        **({"changes": sorted(changes)} if changes else {}),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def attempt(item: tuple[Job, frozenset[Change]]) -> Simulation | str:
    """Simulate in this (forked) process."""
    job, changes = item
    import warnings

    from estimators.simulate.worker import run_job

    warnings.filterwarnings("ignore")
    if changes:
        make_changes(changes)
    try:
        return run_job(job)
    except AdviseError as error:
        return error.message


def simulate_all(
    jobs: list[Job], n_processes: int, changes: list[frozenset[Change]] | None = None
) -> Iterator[Simulation | str]:
    """Run jobs in order, each in a fresh fork of this process; `changes` of each, if any."""
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
        each = changes or [frozenset[Change]()] * len(jobs)
        yield from pool.imap(attempt, zip(jobs, each, strict=True), chunksize=1)


def recorded() -> dict[str, dict[str, Any]]:
    """What was said before, by fingerprint: `bytes` by figure, or `refused`; the last of equal names counts."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {line["job"]: line for line in lines}


def simulate_rows(rows: list[MeasuredRow], n_processes: int) -> Iterator[str]:
    """Simulate each of `rows` and keep what was said, replacing what stands there; yields what it did, as it goes."""
    jobs = {fingerprint(job, changes_of(row)): (row, job) for row in rows if (job := job_of(row)) is not None}
    known = recorded()
    answers = simulate_all([j for _, j in jobs.values()], n_processes, [changes_of(row) for row, _ in jobs.values()])
    for (name, (row, _)), answer in zip(jobs.items(), answers, strict=True):
        known[name] = record(name, row.id, answer)
        RESULTS.write_text("".join(json.dumps(known[k]) + "\n" for k in sorted(known)), encoding="utf-8")
        yield f"{row.id}: {known[name].get('refused') or known[name]['seconds']}"


def record(name: str, row: str, answer: Simulation | str) -> dict[str, Any]:
    """One line of the results: the job's fingerprint, the row that it was made for, and the answer."""
    said: dict[str, Any] = {"job": name, "row": row, "versions": {p: version(p) for p in PACKAGES}}
    if isinstance(answer, str):
        return said | {"refused": answer}
    found = {
        "allocated_bytes": answer.peak_allocated,
        "reserved_bytes": answer.peak_reserved,
        "after_load_bytes": answer.after_load,
        **{name: max(answer.stages.get(stage, 0) for stage in stages) for name, stages in STAGES.items()},
    }
    return said | {"seconds": round(answer.seconds, 1), "bytes": found}

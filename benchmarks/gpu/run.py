"""Run the planned cells on this machine's GPU, as emitted: `python -m benchmarks.gpu.run OUT.jsonl`.

Each cell's project is emitted and its train.py started in a process of its own (observe.py), several at once; but after
its first step a run has the card to itself, so that its seconds are its own. Weights are random: neither memory nor
speed depends on their values. Rows of data are longer than the plan's length, so every sequence is full, except where
the plan pads: there every other one is half as long.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from random import Random
from string import ascii_letters
from threading import Event
from typing import Any

import click

from advisor.emit import Source, emit, emitters, write_emission
from advisor.facts import model_config, resolve_model
from benchmarks.gpu.cells import CELLS, Cell

OBSERVER = Path(__file__).with_name("observe.py")
PACKAGES = (
    "torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "liger-kernel",
    "unsloth", "unsloth_zoo", "llamafactory",
)  # fmt: skip
STEPS = 6


def build_model(name: str, folder: Path) -> Path:
    """The catalogue's model with random bf16 weights and a tokenizer of bytes, in a folder of its name."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks.tiny_model import save_tokenizer

    out = folder / name
    if (out / "ready").exists():
        return out
    config, _ = model_config(name)
    found = AutoConfig.for_model(**{"dtype": "bfloat16", **config})
    save_tokenizer(out)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(found, dtype=torch.bfloat16).save_pretrained(out)
    (out / "ready").touch()
    return out


def rows_of(cell: Cell, count: int) -> Iterator[dict[str, Any]]:
    """`count` examples for the cell, normalised: a byte is a token."""
    random, length = Random(cell.id), cell.plan.seq_len

    def text(size: int) -> str:
        return "".join(random.choices(ascii_letters, k=size))

    for i in range(count):
        size = length // 2 if cell.plan.padding_mask and i % 2 else length + 32
        prompt = text(16)
        if cell.plan.task == "dpo":
            yield {"prompt": prompt, "chosen": text(size), "rejected": text(size)}
        else:
            yield {"prompt": prompt, "completion": text(size - 16)}


def write_project(cell: Cell, models: Path, folder: Path) -> Path:
    """The cell's emitted project with its data."""
    model = models / str(cell.plan.model)
    plan = cell.plan.replace(model=str(model), max_steps=STEPS, num_epochs=1.0, eval_fraction=0.1, learning_rate=1e-4)
    emitter = emitters()[plan.platform]
    form = "preference" if plan.task == "dpo" else "prompt-completion"

    def add_data(out: Path) -> None:
        (out / "data").mkdir(exist_ok=True)
        (out / "data" / "general.jsonl").unlink(missing_ok=True)
        sizes = {"train": (STEPS + 1) * plan.global_batch_size, "eval": plan.micro_batch_size}
        for name, size in sizes.items():
            with (out / "data" / f"{name}.jsonl").open("w") as file:
                file.writelines(json.dumps(emitter.adapt_row(row)) + "\n" for row in rows_of(cell, size))

    return write_emission(emit(plan, resolve_model(str(model)), Source(model_ref=str(model), form=form)), folder,
                          add_data=add_data, force=True)  # fmt: skip


def observe(cell: Cell, models: Path, work: Path, sites: dict[str, str], *, seconds: float) -> dict[str, Any]:
    """Run one cell. Returns its row; `status` says how it ended."""
    row: dict[str, Any] = {"id": cell.id, "plan": cell.plan.model_dump(exclude_defaults=True)}
    if cell.limit_gib is not None:
        row["limit_gib"] = cell.limit_gib
    out, begun = work / f"{cell.id}.json", time.time()
    try:
        project = write_project(cell, models, work / cell.id)
    except Exception as error:
        return {**row, "status": "not emitted", "message": f"{type(error).__name__}: {error}"[:600]}
    command = [sys.executable, str(OBSERVER), str(out), "--lock", str(work / "card.lock")]
    command += ["--limit-gib", str(cell.limit_gib)] if cell.limit_gib is not None else []
    command += ["--events"] if cell.events else []
    environment = {
        **os.environ,
        "PYTHONPATH": sites.get(cell.plan.platform, os.environ.get("PYTHONPATH", "")),
        "PYTORCH_ALLOC_CONF": f"expandable_segments:{cell.plan.expandable_segments}",
        "OBSERVE_FIRST": "unsloth" if cell.plan.platform == "unsloth" else "",
        "UNSLOTH_COMPILE_LOCATION": str(work / cell.id / "compiled"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    with (work / f"{cell.id}.log").open("w") as log:
        try:
            code = subprocess.run(
                command, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = -9
    row["seconds"] = round(time.time() - begun, 1)
    if out.exists():
        return {**row, **json.loads(out.read_text())}
    tail = (work / f"{cell.id}.log").read_text(errors="replace")[-1500:]
    return {**row, "status": f"exit {code}", "message": tail}


def versions(site: str) -> dict[str, str]:
    """Those of PACKAGES on a search path."""
    found = {d.metadata["Name"]: d.version for d in distributions(path=[*site.split(":"), *sys.path][::-1])}
    return {name: found[name] for name in PACKAGES if name in found}


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), default=Path("gpu-runs"), help="Models, projects, logs.")
@click.option("--site", multiple=True, help="PLATFORM=PATH:PATH of a platform's packages, where not installed here.")
@click.option("--jobs", default=6, help="Processes at once; one of them trains.")
@click.option("--seconds", default=240.0, help="The most a cell may take.")
@click.option("--until", default=3600.0, help="Start no cell after this many seconds.")
@click.option("--only", default="", help="These cells alone: ids, comma-separated.")
def main(out: Path, work: Path, site: tuple[str, ...], jobs: int, seconds: float, until: float, only: str) -> None:
    begun, sites = time.time(), dict(s.split("=", 1) for s in site)
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    about = {p: versions(sites.get(p, "")) for p in emitters()}
    chosen = [cell for cell in CELLS if not only or cell.id in only.split(",")]
    built = {str(cell.plan.model): Event() for cell in chosen}

    def build() -> None:
        for name, ready in built.items():
            build_model(name, work / "models")
            ready.set()

    def run(cell: Cell) -> None:
        built[str(cell.plan.model)].wait()
        if time.time() - begun > until:
            return
        row = observe(cell, work / "models", work, sites, seconds=seconds)
        row |= {"date": datetime.now(UTC).date().isoformat(), "versions": about[cell.plan.platform]}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        peak = row.get("peak_reserved", 0) / 2**30
        said = f"{row['status']}, {peak:.2f} GiB, {row.get('seconds', 0)} s {row.get('message', '')[-300:]}"
        click.echo(f"{time.time() - begun:.0f} s: {cell.id}: {said}")

    with ThreadPoolExecutor(jobs + 1) as pool:
        list(pool.map(lambda task: task(), [build, *(partial(run, cell) for cell in chosen)]))


if __name__ == "__main__":
    main()

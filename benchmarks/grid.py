"""Analytic against simulated memory on cells drawn over all axes: `python -m benchmarks.grid [--jobs 2]`.

A cell is a model and a plan, drawn by its series and number alone, so that a run can stop and go on. What the simulated
tier says of it is kept in benchmarks/results/grid.jsonl with the versions that said it; the analytic tier is asked each
time.
`--score` only compares what is kept, `--by AXIS` shows where the differences lie.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from advisor.emit.accelerate import sharding_refusal
from benchmarks.quantile import quantile
from benchmarks.simulated import simulate_all
from estimators.memory import estimate_memory
from estimators.methods import get_method
from estimators.methods.base import FRAMEWORK
from estimators.replay import estimate_memory_replayed
from estimators.simulate.job import Job
from profiles.catalog import find_exact_model_row, find_gpu
from profiles.errors import AdviseError
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, QUANTIZED, Plan

RESULTS = Path(__file__).parent / "results" / "grid.jsonl"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")

# One of each structure: GQA and MHA, biases, head norms, tied heads, fused projections, parallel blocks, LayerNorm,
# sliding windows, soft caps, latent attention, experts, encoders.
MODELS = (
    "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B", "huggyllama/llama-7b", "meta-llama/Llama-3.1-70B",
    "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "mistralai/Mistral-7B-v0.1",
    "google/gemma-2b", "google/gemma-2-2b", "google/gemma-3-1b-pt", "microsoft/phi-2",
    "microsoft/Phi-3-mini-4k-instruct", "HuggingFaceTB/SmolLM3-3B", "allenai/OLMo-2-0425-1B", "tiiuae/falcon-7b",
    "ibm-granite/granite-3.1-2b-base", "CohereLabs/c4ai-command-r7b-12-2024", "bigscience/bloom-560m",
    "openai-community/gpt2", "EleutherAI/pythia-410m", "facebook/opt-1.3b", "EleutherAI/gpt-j-6b",
    "EleutherAI/gpt-neo-1.3B", "bigcode/starcoder2-3b", "stabilityai/stablelm-2-1_6b", "zai-org/GLM-4-9B-0414",
    "Qwen/Qwen1.5-MoE-A2.7B", "mistralai/Mixtral-8x7B-v0.1", "deepseek-ai/DeepSeek-V2-Lite", "openai/gpt-oss-20b",
    "google-bert/bert-base-uncased", "distilbert/distilbert-base-uncased", "answerdotai/ModernBERT-base",
)  # fmt: skip
# Layers: few make a cell quick and leave the activations in sight; None is the whole model
DEPTHS = (4, 4, 6, 6, None)
AXES: dict[str, tuple[Any, ...]] = {
    "method": (
        *FRAMEWORK, *FRAMEWORK, "dora", "fourierft", "freeze", "ia3", "ln_tuning", "loha", "lokr", "loraplus", "miss",
        "oft", "pissa", "rslora", "vera",
    ),
    "platform": ("hf", "hf", "llamafactory"),
    "gpu": ("t4", "rtx4090", "a100-80-sxm", "h100-sxm"),
    "quantization": ("bf16", "bf16", "bf16", "fp16", "fp32", "int8", "nf4", "nf4-dq", "fp4"),
    "mixed_precision": (None, None, True, False),
    "lora_rank": (4, 16, 64, 256),
    "lora_dropout": (0.0, 0.0, 0.1),
    "adapter_dtype": (None, None, "fp32", "bf16"),
    "kbit_prepared": (None, True),
    "num_virtual_tokens": (8, 20, 100),
    "prefix_projection": (False, True),
    "micro_batch_size": (1, 2, 3, 8),
    "seq_len": (128, 500, 1024, 2048, 3333),
    "gradient_accumulation_steps": (1, 1, 4),
    "packing": (False, False, True),
    "padding_mask": (None, False, True),
    "gradient_checkpointing": ("none", "full", "full", "unsloth"),
    "attention": ("auto", "sdpa", "eager", "flash_attention_2"),
    "loss_kernel": (None, "full", "fused", "chunked"),
    "max_grad_norm": (0.0, 1.0),
    "keep_outputs": (None, True),
    "zero_grad_set_to_none": (True, True, False),
    "optimizer": (
        "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_32bit",
        "lion_8bit", "adafactor", "sgd", "rmsprop",
    ),
}  # fmt: skip
LLAMAFACTORY = (
    "apollo", "badam", "dora", "freeze", "full", "galore", "llama_pro", "lora", "loraplus", "oft", "pissa", "qlora",
    "rslora",
)  # fmt: skip
# Each series draws from the axes above with some of them changed: (cells, changes)
SERIES: dict[str, tuple[int, dict[str, tuple[Any, ...]]]] = {
    "one-card": (2600, {}),
    "llamafactory": (
        500,
        {
            "platform": ("llamafactory",),
            "method": LLAMAFACTORY,
            "optimizer": ("adamw_torch", *AXES["optimizer"], "muon"),
        },
    ),
    "unsloth": (
        400,
        {
            "platform": ("unsloth",),
            "method": ("full", "lora", "lora", "qlora", "qlora", "dora", "rslora", "pissa"),
            "quantization": ("bf16", "fp16", "int8", "nf4", "nf4-dq"),
            **dict.fromkeys(
                ("mixed_precision", "adapter_dtype", "kbit_prepared", "loss_kernel", "keep_outputs"), (None,)
            ),
            "attention": ("auto",),
        },
    ),
    "cards": (
        500,
        {
            "platform": ("hf",),
            "n_gpus": (2, 4, 8),
            "sharding": ("ddp", "fsdp2", "fsdp2", "zero1", "zero2"),
            "offload_optimizer": (False, False, True),
            "offload_parameters": (False, False, True),
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A drawn plan, and the model that it is for."""

    name: str
    model: str
    layers: int | None
    fields: dict[str, Any]

    @property
    def spec(self) -> ModelSpec:
        """The model, cut to the cell's depth."""
        return _spec(self.model, self.layers)

    @property
    def plan(self) -> Plan:
        """The plan, its model by name; an encoder learns to classify."""
        task = "classification" if self.spec.kind == "encoder" else "sft"
        return Plan.model_validate({"model": self.model, "task": task, **self.fields})

    @property
    def hardware(self) -> Hardware:
        """The card, or the cards where the plan is sharded."""
        return Hardware(gpu=find_gpu(self.fields["gpu"]), n_gpus=self.fields.get("n_gpus", 1))


@cache
def _spec(model: str, layers: int | None) -> ModelSpec:
    config = dict(find_exact_model_row(model).config)
    if layers is not None:
        depth = next(k for k in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if k in config)
        layers = max(layers, config.get("first_k_dense_replace", 0) + 2)
        config[depth] = min(layers, config[depth])
        for kinds in ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers"):
            if config.get(kinds):
                config[kinds] = config[kinds][: config[depth]]
        if "attention_types" in config:  # GPT-Neo: [[kinds, times]]
            kinds, _ = config["attention_types"][0]
            config["attention_types"] = [[kinds, config[depth] // len(kinds)]]
    return describe_model(config, model)


def draw(name: str) -> Cell:
    """Cell "series/number": every axis drawn by itself; what cannot exist is drawn again."""
    random = Random(name)
    axes = AXES | SERIES[name.split("/")[0]][1]
    while True:
        model, layers = random.choice(MODELS), random.choice(DEPTHS)
        fields = {axis: random.choice(values) for axis, values in axes.items()}
        if random.random() < 0.4:
            fields["target_modules"] = random.choice((("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")))
        cell = Cell(name, model, layers, fields)
        if _exists(cell):
            return cell


def names() -> list[str]:
    """All cells, the series in step with each other."""
    placed = [(number / count, f"{name}/{number}") for name, (count, _) in SERIES.items() for number in range(count)]
    return [name for _, name in sorted(placed)]


def _exists(cell: Cell) -> bool:
    """Whether the plan makes sense: with this model, on these cards, and not two settings at odds."""
    f = cell.fields
    if f["platform"] == "llamafactory" and f["method"] not in LLAMAFACTORY:
        return False
    method = get_method(f["method"])
    if f["platform"] == "llamafactory" and f["mixed_precision"] is False and not (method.peft_type or method.in_half):
        return False  # what it trains is in fp32 beside 16 bits, which only autocast brings together
    if f["platform"] == "llamafactory" and f["kbit_prepared"] and f["quantization"] in QUANTIZED:
        return False  # it does not call prepare_model_for_kbit_training
    if cell.spec.kind == "encoder" and (f["platform"] != "hf" or f["packing"]):
        return False
    if f["seq_len"] + f["num_virtual_tokens"] > _positions(cell.spec):
        return False
    if f["platform"] != "unsloth" and f["gradient_checkpointing"] == "unsloth":
        return False
    if f["packing"] and (f["padding_mask"] or f["attention"] == "eager"):
        return False
    if f["attention"] == "flash_attention_2" and (f["gpu"] == "t4" or f["quantization"] == "fp32"):
        return False
    if f["gpu"] == "t4" and f["quantization"] == "bf16":
        return False
    if "sharding" in f and (sharding_refusal(cell.plan) is not None or _makes_zero_fp32(f)):
        return False
    if f.get("sharding") == "fsdp2" and f["kbit_prepared"] and f["quantization"] in FOUR_BIT:
        return False  # TRL prepares no base that FSDP shards
    try:
        plan, spec = cell.plan, cell.spec
        if get_method(plan.method).refusal(spec, plan) is not None:
            return False
        estimate_memory(plan, spec, cell.hardware)
    except (AdviseError, ValueError):
        return False
    return True


def _makes_zero_fp32(fields: dict[str, Any]) -> bool:
    """DeepSpeed without a 16-bit flag casts the whole model to fp32, which no platform writes."""
    return fields["sharding"] != "fsdp2" and fields["mixed_precision"] is False and fields["sharding"] != "ddp"


def _positions(spec: ModelSpec) -> int:
    """Longest sequence that the model can embed: a table's rows where positions are learned."""
    learned = [e.rows for e in spec.embeddings if "pos" in e.name or "wpe" in e.name]
    return min(learned, default=1 << 30)


def recorded() -> dict[str, dict[str, Any]]:
    """What is kept, by name of cell."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return {row["cell"]: row for row in rows if "cell" in row}


def simulate_missing(n_processes: int) -> None:
    """Simulate every cell that is not kept yet, and keep it."""
    kept = recorded()
    missing = [draw(name) for name in names() if name not in kept]
    jobs = [Job(plan=c.plan, model=c.spec, hardware=c.hardware) for c in missing]
    RESULTS.parent.mkdir(exist_ok=True)
    if not RESULTS.exists():
        RESULTS.write_text(json.dumps({"versions": {p: version(p) for p in PACKAGES}}) + "\n", encoding="utf-8")
    answers = simulate_all(jobs, n_processes)
    with RESULTS.open("a", encoding="utf-8") as out:
        for cell, answer in track(zip(missing, answers, strict=True), "simulating", total=len(missing)):
            row: dict[str, Any] = {"cell": cell.name, "model": cell.model, "method": cell.fields["method"]}
            if isinstance(answer, str):
                row["refused"] = answer
            else:
                row |= {"allocated": answer.peak_allocated, "reserved": answer.peak_reserved}
                row |= {"phase": answer.peak.name, "trained": answer.trainable_parameters}
            out.write(json.dumps(row) + "\n")
            out.flush()


@dataclass(frozen=True, slots=True)
class Compared:
    """One cell in both tiers; errors relative, positive where the analytic tier says more."""

    cell: Cell
    row: dict[str, Any]
    allocated: float
    reserved: float | None
    phase: str
    trained: int  # parameters that the formulas count above those of the real code


def compare(rows: dict[str, dict[str, Any]], *, replayed: bool) -> Iterator[Compared]:
    """Ask the analytic tier of every cell that was simulated."""
    for name, row in rows.items():
        if "allocated" not in row:
            continue
        cell = draw(name)
        ask = estimate_memory_replayed if replayed else estimate_memory
        found = ask(cell.plan, cell.spec, cell.hardware)
        reserved = found.reserved.expected / row["reserved"] - 1 if replayed and "reserved" in row else None
        allocated = found.allocated.expected / row["allocated"] - 1
        trained = found.trainable_parameters - row["trained"]
        yield Compared(cell, row, allocated, reserved, found.peak_phase, trained)


def line(errors: list[float]) -> tuple[str, ...]:
    """n, median and P99 of the size, worst over, worst under."""
    sizes = [abs(e) for e in errors]
    return (
        str(len(errors)), f"{median(sizes):.2%}", f"{quantile(sizes, 0.99):.1%}",
        f"{max(errors):+.1%}", f"{min(errors):+.1%}",
    )  # fmt: skip


def table(title: str, groups: dict[str, list[float]]) -> Table:
    """A line for each group."""
    out = Table(title=title)
    for column in ("", "n", "median |e|", "P99 |e|", "worst over", "worst under"):
        out.add_column(column, justify="left" if not column else "right")
    for name, errors in sorted(groups.items()):
        out.add_row(name, *line(errors))
    return out


@click.command()
@click.option("--jobs", "n_processes", default=1, help="Processes at a time.")
@click.option("--score", is_flag=True, help="Only compare what is kept.")
@click.option("--replayed", is_flag=True, help="With the allocator's rounding, and reserved memory where it is kept.")
@click.option("--by", "axis", help="Group by an axis of the plan, or by model or phase.")
@click.option("--worst", default=0, help="Print so many of the worst cells.")
def main(n_processes: int, score: bool, replayed: bool, axis: str | None, worst: int) -> None:
    """Simulate what is missing, then compare."""
    console = Console()
    if not score:
        simulate_missing(n_processes)
    rows = recorded()
    found = list(compare(rows, replayed=replayed))
    groups: dict[str, list[float]] = defaultdict(list)
    for c in found:
        key = {None: "allocated", "model": c.cell.model, "phase": c.row["phase"]}.get(axis)
        groups[str(c.cell.fields.get(str(axis)) if key is None else key)].append(c.allocated)
        if c.reserved is not None and axis is None:
            groups["reserved (replayed)"].append(c.reserved)
    console.print(table("Analytic against simulated", groups))
    refused = sum("refused" in row for row in rows.values())
    console.print(f"{len(rows)} cells drawn, {refused} of them refused by the simulated tier")
    for c in sorted(found, key=lambda c: -abs(c.allocated))[:worst]:
        told = {k: v for k, v in c.cell.fields.items() if v not in (None, False, AXES.get(k, (None,))[0])}
        console.print(
            f"{c.allocated:+.1%} cell {c.cell.name} {c.cell.model} x{c.cell.layers}: {c.row['phase']} / {c.phase}, "
            f"{told}", soft_wrap=True, highlight=False,
        )  # fmt: skip


if __name__ == "__main__":
    main()

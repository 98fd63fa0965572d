"""Record what the simulated tier says of every method on a small grid: `python -m benchmarks.method_peaks`.

Writes tests/golden/method_peaks.json, against which the analytic tier is tested without torch. Shapes are multiples of
what the caching allocator hands out, so that its slack does not blur the comparison. The vocabulary is small, so that
layers and not logits set the peaks.
"""

import json
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import click

from benchmarks.simulated import simulate_all
from estimators.methods import get_method
from estimators.simulate.job import Job
from profiles.catalog import find_gpu
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "method_peaks.json"
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096,
        "max_position_embeddings": 4096, "tie_word_embeddings": False,
    },
    "qwen2": {
        "model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 5120, "num_hidden_layers": 8,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 4096,
        "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
}  # fmt: skip
COMMON = {
    "gpu": "a100-80-sxm", "micro_batch_size": 4, "seq_len": 512, "padding_mask": False, "loss_kernel": "full",
    "max_grad_norm": 0.0,
}  # fmt: skip
FOURIERFT = {"peft_type": "FOURIERFT", "target_modules": "all-linear"}
MODES = (("none", False), ("full", True), ("none", True), ("full", False))
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
MISS = {"peft_type": "MISS", "r": 16, "target_modules": "all-linear"}
# Fields of a plan, and those in which the simulated plan differs: methods that PEFT knows under another name. DoRA over
# 4 bits is left out: PEFT dequantises the weight when it wraps it, which the simulated tier cannot.
CASES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"method": "full"}, {}),
    ({"method": "lora"}, {}),
    ({"method": "lora", "method_options": {"modules_to_save": ["lm_head"]}}, {}),
    ({"method": "qlora", "quantization": "nf4"}, {}),
    ({"method": "adalora"}, {}),
    ({"method": "adalora", "quantization": "nf4"}, {}),
    ({"method": "bitfit"}, {}),
    ({"method": "prompt", "seq_len": 492}, {}),  # 512 with the virtual tokens
    ({"method": "ptuning", "seq_len": 492}, {}),
    ({"method": "prefix"}, {}),
    ({"method": "dora"}, {}),
    ({"method": "dora", "lora_dropout": 0.1}, {}),
    ({"method": "rslora"}, {}),
    ({"method": "loraplus"}, {"method": "lora"}),
    ({"method": "pissa"}, {}),
    ({"method": "ia3"}, {}),
    ({"method": "ia3", "quantization": "nf4"}, {}),
    ({"method": "ln_tuning"}, {}),
    ({"method": "oft"}, {}),
    ({"method": "oft", "quantization": "nf4"}, {}),
    ({"method": "loha"}, {}),
    ({"method": "lokr"}, {}),
    ({"method": "vera"}, {}),
    ({"method": "fourierft"}, {"method": "lora", "method_options": FOURIERFT}),
    ({"method": "miss"}, {"method": "lora", "method_options": MISS}),
    ({"method": "miss", "quantization": "nf4"}, {"method": "qlora", "method_options": MISS}),
    ({"method": "freeze"}, {}),
    ({"method": "freeze", "platform": "llamafactory"}, {}),
    ({"method": "loftq"}, {}),
    ({"method": "galore"}, {}),
    ({"method": "galore", "platform": "llamafactory"}, {}),
    ({"method": "apollo"}, {}),
    ({"method": "badam", "platform": "llamafactory"}, {}),
    ({"method": "llama_pro", "platform": "llamafactory", "method_options": {"num_expand": 4}}, {}),
    ({"method": "full", "optimizer": "muon", "platform": "llamafactory"}, {}),
    ({"method": "full", "optimizer": "adafactor"}, {}),
    ({"method": "full", "optimizer": "adamw_torch_forloop"}, {}),
)


def grid() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(model, plan fields, what differs in the simulated plan) of every row."""
    rows = []
    for (checkpointing, autocast), (case, other) in product(MODES, CASES):
        model = "qwen2" if case["method"] == "bitfit" else "llama"  # one with biases
        if not autocast and case.get("platform") == "llamafactory" and case["method"] in ("freeze", "llama_pro"):
            continue  # fp32 layers between 16-bit ones run under autocast only
        fields = {**case, "gradient_checkpointing": checkpointing, "mixed_precision": autocast}
        if get_method(case["method"]).refusal(describe_model(MODELS[model], model), plan_of(model, fields)):
            continue
        rows.append((model, fields, other))
    return rows


def plan_of(model: str, fields: dict[str, Any]) -> Plan:
    """A row's plan."""
    return Plan.model_validate({"model": MODELS[model], **COMMON, **fields})


def recorded() -> list[dict[str, Any]]:
    """The rows of the golden file."""
    rows: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))["rows"] if GOLDEN.exists() else []
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """Write the golden file, a row a line."""
    document = {"versions": {name: version(name) for name in PACKAGES}, "common": COMMON, "models": MODELS}
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    GOLDEN.write_text(json.dumps(document, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


@click.command()
@click.option("--jobs", "n_processes", default=1, help="Processes at a time.")
@click.option("--fresh", is_flag=True, help="Simulate all rows, not only those that are missing.")
def main(n_processes: int, fresh: bool) -> None:
    """Simulate the grid and write the golden file."""
    hardware = Hardware(gpu=find_gpu(str(COMMON["gpu"])))
    known = {} if fresh else {(row["model"], json.dumps(row["plan"])): row for row in recorded()}
    wanted = [(model, json.dumps(fields), other) for model, fields, other in grid()]
    missing = [x for x in wanted if x[:2] not in known]
    jobs = [
        Job(
            plan=plan_of(model, {**json.loads(fields), **other}),
            model=describe_model(MODELS[model], model),
            hardware=hardware,
        )
        for model, fields, other in missing
    ]
    for (model, fields, _), answer in zip(missing, simulate_all(jobs, n_processes), strict=True):
        if isinstance(answer, str):
            click.echo(f"failed  {model} {fields}: {answer}", err=True)
            continue
        known[model, fields] = {
            "model": model,
            "plan": json.loads(fields),
            "peak_allocated": answer.peak_allocated,
            "trainable_parameters": answer.trainable_parameters,
        }
        write([known[x[:2]] for x in wanted if x[:2] in known])  # each time: a later failure loses nothing


if __name__ == "__main__":
    main()

"""Every plan that the emitter takes, given to the installed LLaMA-Factory's own parser."""

import json
import os
import subprocess
from collections import Counter
from itertools import cycle, product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from advisor.emit import Source, emit
from advisor.emit.llamafactory_config import FINETUNING_TYPES
from advisor.facts import resolve_model
from estimators.methods import get_method
from profiles.catalog import load_model_rows, load_optimizers
from profiles.errors import AdviseError
from profiles.families import describe_model
from profiles.model import ModelSpec
from profiles.plan import Plan, Quantization

pytestmark = [pytest.mark.platform, pytest.mark.slow]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "LLAMAFACTORY_VERBOSITY": "ERROR"}
CHILD = Path(__file__).parents[1] / "llamafactory" / "parse.py"
MODEL = describe_model(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 259,
        "max_position_embeddings": 512,
    },
    "tiny",
)
CARDS: list[dict[str, Any]] = [
    {},
    *[{"n_gpus": 2, "sharding": sharding} for sharding in ("ddp", "fsdp2", "zero1", "zero2", "zero3")],
    {"n_gpus": 2, "sharding": "fsdp2", "offload_optimizer": True, "offload_parameters": True},
    {"n_gpus": 2, "sharding": "zero2", "offload_optimizer": True},
    {"n_gpus": 2, "sharding": "zero3", "offload_optimizer": True, "offload_parameters": True},
]
TASKS = {
    "sft": Source(model_ref="org/tiny", conversational=True),
    "pretrain": Source(model_ref="org/tiny", form="text"),
    "dpo": Source(model_ref="org/tiny", form="preference", conversational=True),
    "orpo": Source(model_ref="org/tiny", form="preference"),
    "kto": Source(model_ref="org/tiny", form="unpaired-preference", conversational=True),
    "reward": Source(model_ref="org/tiny", form="preference", conversational=True),
}
# Axes that do not depend on each other: every plan takes the next value of each.
TURNS: dict[str, list[Any]] = {
    "task": ["sft", "sft", "pretrain", "dpo", "sft", "orpo", "kto", "reward"],
    "attention": ["auto", "sdpa", "eager", "flash_attention_2"],
    "gradient_checkpointing": ["full", "none", "unsloth"],
    "packing": [False, False, False, False, True],
    "early_stopping_patience": [0, 0, 3],
    "max_steps": [None, 200],
    "lr_scheduler": ["cosine", "linear", "constant"],
    "gpu": ["rtx4090", "a100-80g", "t4", "cpu", None],
    "seq_len": [512, 300, 4096],
    "micro_batch_size": [1, 3],
    "gradient_accumulation_steps": [1, 5],
}


def projects() -> list[tuple[Plan, dict[str, str]]]:
    """All of method x quantization x optimizer x cards that the emitter takes."""
    turns = {name: cycle(values) for name, values in TURNS.items()}
    found = []
    for method, quantization, optimizer, cards in product(
        sorted(FINETUNING_TYPES), get_args(Quantization), load_optimizers(), CARDS
    ):
        values = {"model": "tiny", "platform": "llamafactory", "method": method, "quantization": quantization}
        for _ in range(2):  # a turn may not go with the cell, as packing with preferences
            more = {name: next(values) for name, values in turns.items()}
            plan = Plan.model_validate({**values, "optimizer": optimizer, **cards, **more})
            try:
                emission = emit(plan, MODEL, TASKS[plan.task])
            except AdviseError:
                continue
            found.append((plan, emission.files))
            break
    return found


@pytest.fixture(scope="module")
def all_projects() -> list[tuple[Plan, dict[str, str]]]:
    return projects()


def parse(python: str, folder: Path, chosen: list[tuple[Plan, dict[str, str]]], ranks: int = 1) -> dict[str, Any]:
    rows = folder / "projects.jsonl"
    rows.write_text(
        "".join(json.dumps({"plan": plan.model_dump(mode="json"), "files": files}) + "\n" for plan, files in chosen)
    )
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [python, *run, str(CHILD), str(rows)],
        cwd=folder,
        env=QUIET,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_space_covers_every_value_of_every_axis(all_projects: list[tuple[Plan, dict[str, str]]]) -> None:
    plans = [plan for plan, _ in all_projects]
    assert len(plans) >= 3000
    assert {plan.method for plan in plans} == set(FINETUNING_TYPES)
    assert {plan.quantization for plan in plans} == set(get_args(Quantization))
    for name, values in TURNS.items():
        assert {getattr(plan, name) for plan in plans} == set(values), name
    assert len(Counter((plan.sharding, plan.offload_optimizer) for plan in plans)) == len(CARDS)
    assert any(get_method(plan.method).peft_type is None for plan in plans)


def test_its_own_parser_takes_every_plan_of_one_card(
    llamafactory_python: str, all_projects: list[tuple[Plan, dict[str, str]]], tmp_path: Path
) -> None:
    chosen = [row for row in all_projects if row[0].n_gpus == 1]
    assert parse(llamafactory_python, tmp_path, chosen) == {"taken": len(chosen), "errors": [], "failed": 0}
    assert len(chosen) >= 400


def test_its_own_parser_takes_every_plan_of_several_cards(
    llamafactory_python: str, all_projects: list[tuple[Plan, dict[str, str]]], tmp_path: Path
) -> None:
    chosen = [row for row in all_projects if row[0].sharding in ("ddp", "fsdp2")]
    assert parse(llamafactory_python, tmp_path, chosen, ranks=2) == {"taken": len(chosen), "errors": [], "failed": 0}
    assert len(chosen) >= 700


def test_its_own_parser_takes_every_plan_of_deepspeed(
    llamafactory_python: str, all_projects: list[tuple[Plan, dict[str, str]]], tmp_path: Path
) -> None:
    if subprocess.run([llamafactory_python, "-c", "import deepspeed"], capture_output=True).returncode:
        pytest.skip("LLaMA-Factory's environment has no deepspeed; `make prove-llamafactory` leads PYTHONPATH to one")
    chosen = [row for row in all_projects if row[0].sharding.startswith("zero")]
    assert parse(llamafactory_python, tmp_path, chosen, ranks=2) == {"taken": len(chosen), "errors": [], "failed": 0}
    assert len(chosen) >= 700


def test_it_adapts_what_was_counted_in_one_model_of_every_family(llamafactory_python: str) -> None:
    smallest: dict[str, ModelSpec] = {}
    for row in load_model_rows().values():
        model = resolve_model(row.id, offline=True)
        if model.kind == "causal-lm" and model.model_type != "gpt_oss":
            smallest[model.model_type] = min(
                smallest.get(model.model_type, model), model, key=lambda model: model.parameters
            )
    lines, expected = [], {}
    for name, model in smallest.items():
        plan = Plan(model=model.name, platform="llamafactory", gpu="h100-sxm")
        written = yaml.safe_load(emit(plan, model, Source(model_ref=model.name)).files["train.yaml"])
        lines.append(json.dumps({"config": model.config, "lora_target": written["lora_target"]}))
        expected[name] = get_method("lora").trainable_parameters(model, plan)
    done = subprocess.run(
        [llamafactory_python, str(CHILD.parent / "count_adapters.py")],
        input="\n".join(lines),
        env=QUIET,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert dict(zip(expected, map(int, done.stdout.split()), strict=True)) == expected
    assert len(expected) >= 30

"""The whole plan space through the Hugging Face emitter, each project read by the platform's own classes."""

import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml

from advisor.emit import Emission, Source, emit
from advisor.emit.huggingface import EMITTER
from estimators.methods import get_method, methods
from profiles.catalog import load_optimizers
from profiles.dataset import TASK_FORMS
from profiles.families import describe_model
from profiles.plan import FOUR_BIT, Plan, Quantization

pytestmark = [pytest.mark.slow, pytest.mark.platform]
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 259,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "attention_bias": True,
}  # fmt: skip
MODEL = describe_model(LLAMA, "tiny")
SPREADS: list[dict[str, Any]] = [
    {"n_gpus": 4, "sharding": sharding, "offload_optimizer": optimizer, "offload_parameters": parameters}
    for sharding in ("ddp", "fsdp2", "zero1", "zero2", "zero3")
    for optimizer in (False, True)
    for parameters in (False, True)
]


def space() -> Iterator[Plan]:
    """Every method, storage, optimizer and checkpointing on one card; every sharding and offloading on four."""
    for method, stored in product(sorted(methods()), get_args(Quantization)):
        if method == "lora" and stored in FOUR_BIT:
            continue  # the plan calls it qlora
        options = {"llama_pro": {"num_expand": 1}, "freeze": {"freeze_trainable_layers": 1}}.get(method, {})
        given = {
            "model": "tiny", "gpu": "rtx4090", "method": method, "quantization": stored, "lora_rank": 6, "seq_len": 300,
            "method_options": {"n_frequency": 99} if method == "fourierft" else options,
        }  # fmt: skip
        for optimizer, checkpointing in product(sorted(load_optimizers()), ("none", "full")):
            yield Plan.model_validate({**given, "optimizer": optimizer, "gradient_checkpointing": checkpointing})
        for spread, checkpointing in product(SPREADS, ("none", "full")):
            yield Plan.model_validate({**given, **spread, "gradient_checkpointing": checkpointing})


def is_offered(plan: Plan) -> bool:
    """Whether neither the method nor the platform refuses."""
    return not (get_method(plan.method).refusal(MODEL, plan) or EMITTER.refusal(plan, MODEL, Source(model_ref="x")))


@pytest.fixture(scope="module")
def projects() -> list[Emission]:
    return [emit(plan, MODEL, Source(model_ref="org/tiny")) for plan in space() if is_offered(plan)]


def unique(projects: list[Emission], section: str) -> list[tuple[Plan, Any]]:
    """Sections of config.yaml, one of each kind, each with a plan that gave it."""
    found: dict[str, tuple[Plan, Any]] = {}
    for project in projects:
        values = yaml.load(project.files["config.yaml"], Loader=yaml.CSafeLoader)[section]
        found.setdefault(json.dumps(values, sort_keys=True), (project.plan, values))
    return list(found.values())


def test_the_space_is_large_and_every_method_that_has_a_script_is_in_it(projects: list[Emission]) -> None:
    from advisor.emit.huggingface_config import METHODS

    assert len(projects) == 4332
    assert {project.plan.method for project in projects} == METHODS
    assert {project.plan.sharding for project in projects} == {"none", "ddp", "fsdp2", "zero1", "zero2", "zero3"}


def test_trl_builds_every_training_section(projects: list[Emission], tmp_path: Any) -> None:
    from trl import SFTConfig

    sections, own = unique(projects, "training"), {"galore": "galore_adamw", "apollo": "apollo_adamw"}
    for plan, values in sections:
        built = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **values)
        assert built.max_length == plan.seq_len
        assert built.gradient_checkpointing is (plan.gradient_checkpointing == "full")
        assert built.optim.value == own.get(plan.method, plan.optimizer)
    assert len(sections) == 136


def config_class(task: str) -> Any:
    import trl
    from transformers import TrainingArguments
    from trl.experimental.orpo import ORPOConfig

    classes = {"dpo": trl.DPOConfig, "kto": trl.KTOConfig, "reward": trl.RewardConfig, "grpo": trl.GRPOConfig}
    return {**classes, "orpo": ORPOConfig, "classification": TrainingArguments}[task]


def test_every_other_task_is_read_by_its_own_classes(tmp_path: Any) -> None:
    from peft import get_peft_config

    checked: dict[str, int] = dict.fromkeys(set(TASK_FORMS) - {"sft", "pretrain"}, 0)
    given = {"model": "tiny", "gpu": "rtx4090", "micro_batch_size": 2, "gradient_accumulation_steps": 4, "seq_len": 300}
    for task, method, stored, checkpointing in product(
        checked, sorted(methods()), get_args(Quantization), ("none", "full")
    ):
        if method == "lora" and stored in FOUR_BIT:
            continue
        values = {"task": task, "method": method, "quantization": stored, "gradient_checkpointing": checkpointing}
        plan = Plan.model_validate({**given, **values, "early_stopping_patience": checked[task] % 2})
        source = Source(model_ref="org/tiny", form=TASK_FORMS[task][0])
        if get_method(method).refusal(MODEL, plan) or EMITTER.refusal(plan, MODEL, source):
            continue
        written = yaml.safe_load(emit(plan, MODEL, source).files["config.yaml"])
        built = config_class(task)(output_dir=str(tmp_path), use_cpu=True, bf16=False, **written["training"])
        assert built.gradient_checkpointing is (checkpointing == "full")
        assert built.per_device_train_batch_size == 2
        if task == "grpo":
            assert (built.max_completion_length, built.num_generations, built.generation_batch_size) == (150, 8, 8)
            assert written["max_prompt_length"] == 150
        elif task != "classification":
            assert built.max_length == 300
        if written["peft"] is not None:
            wanted = "SEQ_CLS" if task in ("reward", "classification") else "CAUSAL_LM"
            assert get_peft_config(dict(written["peft"])).task_type == wanted
        checked[task] += 1
    # DPO and KTO measure against the unchanged base, which PiSSA has not
    assert checked == {"classification": 178, "dpo": 172, "grpo": 178, "kto": 172, "orpo": 178, "reward": 178}


def test_peft_builds_every_adapter_section(projects: list[Emission]) -> None:
    from peft import get_peft_config

    sections = [(plan, values) for plan, values in unique(projects, "peft") if values is not None]
    for plan, values in sections:
        built = get_peft_config(dict(values))
        assert built.peft_type.value == get_method(plan.method).peft_type
        for key, value in values.items():
            kept = getattr(built, key)
            assert (kept.value if key == "peft_type" else kept) == (set(value) if isinstance(kept, set) else value)
    assert len(sections) == 16


def test_bitsandbytes_reads_what_is_its_own(projects: list[Emission]) -> None:
    from transformers import BitsAndBytesConfig

    stored = [values for _, values in unique(projects, "quantization") if values is not None]
    assert len([BitsAndBytesConfig(**values) for values in stored]) == 4


@pytest.fixture
def environment_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Any, dict[str, str]]]:
    """What `accelerate launch` makes of an accelerate.yaml: its arguments, and the environment of the processes."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    started: list[Any] = []
    for launcher in ("deepspeed_launcher", "multi_gpu_launcher"):
        monkeypatch.setattr(launch, launcher, started.append)

    def read(text: str) -> tuple[Any, dict[str, str]]:
        path = tmp_path / "accelerate.yaml"
        path.write_text(text)
        launch.launch_command(launch.launch_command_parser().parse_args(["--config_file", str(path), "train.py"]))
        arguments = started.pop()
        prepared = (
            prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
        )
        return arguments, {name: value for name, value in prepared.items() if os.environ.get(name) != value}

    return read


def by_placement(projects: list[Emission], *kinds: str) -> dict[str, list[Emission]]:
    """The projects of these shardings by the text of their accelerate.yaml."""
    found: dict[str, list[Emission]] = {}
    for project in projects:
        if project.plan.sharding in kinds:
            found.setdefault(project.files["accelerate.yaml"], []).append(project)
    return found


def test_accelerate_launches_every_placement(
    projects: list[Emission], environment_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    texts = by_placement(projects, "ddp", "fsdp2", "zero1", "zero2", "zero3")
    for text, (first, *_) in texts.items():
        arguments, environment = environment_of(text)
        assert arguments.num_processes == 4
        assert arguments.multi_gpu == (first.plan.sharding == "ddp")
        assert arguments.use_deepspeed == first.plan.sharding.startswith("zero")
        if first.plan.sharding == "fsdp2":
            with monkeypatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                plugin = FullyShardedDataParallelPlugin()
            assert plugin.fsdp_version == 2
            assert isinstance(plugin.cpu_offload, CPUOffloadPolicy) == first.plan.offload_parameters
            assert plugin.reshard_after_forward is True
    assert len(texts) == 10


def test_deepspeed_takes_what_accelerate_and_the_trainer_hand_it(
    projects: list[Emission], environment_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed", reason="needs deepspeed: `make prove-space`")
    from accelerate.utils import DeepSpeedPlugin
    from deepspeed.runtime.config import DeepSpeedConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
    from trl import SFTConfig

    checked, texts = 0, by_placement(projects, "zero1", "zero2", "zero3")
    for text, alike in texts.items():
        with monkeypatch.context() as patch:
            for name, value in environment_of(text)[1].items():
                patch.setenv(name, value)
            plugin = DeepSpeedPlugin()
        for plan, training in unique(alike, "training"):
            arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **training)
            filled = HfTrainerDeepSpeedConfig(deepcopy(plugin.hf_ds_config.config))  # as transformers' Trainer does
            filled.trainer_config_process(arguments)
            filled.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=64)), 100)
            built = DeepSpeedConfig(filled.config)
            zero = built.zero_config
            assert built.zero_optimization_stage == int(plan.sharding[-1])
            assert (
                zero.offload_optimizer is not None and zero.offload_optimizer.device == "cpu"
            ) == plan.offload_optimizer
            assert (zero.offload_param is not None and zero.offload_param.device == "cpu") == plan.offload_parameters
            assert built.train_micro_batch_size_per_gpu == plan.micro_batch_size
            assert built.gradient_accumulation_steps == plan.gradient_accumulation_steps
            assert built.gradient_clipping == plan.max_grad_norm
            checked += 1
    assert len(texts) == 7
    assert checked == 77

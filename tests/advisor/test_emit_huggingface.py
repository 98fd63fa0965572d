import ast
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.emit import Forecast, Source, emit
from advisor.emit.huggingface_config import METHODS
from advisor.emit.yaml_text import dump_commented
from advisor.plans import LEARNING_RATE, QLORA_LARGE_MODEL_RATE
from estimators.interval import Interval
from estimators.methods import methods
from profiles.errors import AdviseError, UnsupportedError
from profiles.families import describe_model
from profiles.plan import Plan

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 512,
}
MODEL = describe_model({**LLAMA, "attention_bias": True}, "tiny")
BIASLESS = describe_model(LLAMA, "tiny")
SOURCE = Source(model_ref="org/tiny")

CELLS = [
    *[(method, "bf16") for method in ("full", "lora", "adalora", "bitfit", "prompt", "prefix", "ptuning")],
    ("qlora", "nf4-dq"),
    ("qlora", "nf4"),
    ("qlora", "fp4"),
    ("lora", "int8"),
    ("adalora", "nf4-dq"),
    ("prompt", "int8"),
    ("lora", "fp32"),
    ("full", "fp16"),
    ("dora", "bf16"),
    ("rslora", "bf16"),
    ("pissa", "fp32"),
    ("loraplus", "bf16"),
    ("loraplus", "nf4-dq"),
    *[(method, "bf16") for method in ("oft", "ia3", "vera", "loha", "lokr", "miss", "fourierft", "ln_tuning")],
    ("oft", "nf4-dq"),
    ("ia3", "int8"),
    *[(method, "bf16") for method in ("freeze", "galore", "apollo")],
]


def plan(method: str = "lora", quantization: str = "bf16", **changes: Any) -> Plan:
    checkpointing = "none" if method == "prefix" else "full"
    values = {"model": "tiny", "gpu": "rtx4090", "method": method, "quantization": quantization}
    options = {"fourierft": {"n_frequency": 100}, "freeze": {"freeze_trainable_layers": 1}}.get(method, {})
    return Plan.model_validate(
        {**values, "gradient_checkpointing": checkpointing, "method_options": options, **changes}
    )


def config(plan: Plan, model: Any = MODEL, source: Source = SOURCE) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(emit(plan, model, source).files["config.yaml"])
    return loaded


def test_the_cells_cover_all_methods() -> None:
    assert {method for method, _ in CELLS} == METHODS
    assert len(METHODS) == 23
    eight = {name for name, method in methods().items() if method.framework}
    assert len(eight) == 8
    assert eight < METHODS
    others = sorted(set(methods()) - METHODS)
    assert others
    for name in others:
        options = {"num_expand": 1} if name == "llama_pro" else {}
        with pytest.raises(UnsupportedError, match="not emitted"):
            emit(plan(name, "fp32", method_options=options), MODEL, SOURCE)


@pytest.mark.parametrize("optimizer", ["muon", "adamw_torch_forloop"])
def test_optimizers_that_transformers_does_not_name_are_refused(optimizer: str) -> None:
    with pytest.raises(UnsupportedError, match="no optim named"):
        emit(plan("full", optimizer=optimizer), MODEL, SOURCE)


@pytest.mark.platform
def test_trl_s_config_takes_reentrant_checkpoints(tmp_path: Any) -> None:
    from trl import SFTConfig

    found = config(plan(reentrant=True))["training"]
    training = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **found)
    assert training.activation_checkpointing_kwargs == {"use_reentrant": True}
    assert "activation_checkpointing_kwargs" not in config(plan())["training"]


@pytest.mark.platform
@pytest.mark.parametrize(("method", "quantization"), CELLS)
def test_the_platforms_own_classes_take_the_config(method: str, quantization: str, tmp_path: Any) -> None:
    from peft import get_peft_config
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig

    wanted = plan(method, quantization, seq_len=300, micro_batch_size=3, gradient_accumulation_steps=5, lora_rank=6)
    found = config(wanted)
    training = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **found["training"])
    assert training.max_length == 300
    assert training.per_device_train_batch_size == training.per_device_eval_batch_size == 3
    assert training.gradient_accumulation_steps == 5
    assert training.gradient_checkpointing is (method != "prefix")
    like = "lora" if methods()[method].peft_type else "full"
    assert training.learning_rate == LEARNING_RATE.get(method, LEARNING_RATE[like])
    assert training.get_warmup_steps(200) == 6
    assert training.save_strategy.value == "steps"
    if found["quantization"] is None:
        assert quantization in ("bf16", "fp16", "fp32")
    else:
        stored = BitsAndBytesConfig(**found["quantization"])
        assert stored.load_in_8bit is (quantization == "int8")
        assert stored.load_in_4bit is (quantization != "int8")
        assert stored.bnb_4bit_use_double_quant is (quantization == "nf4-dq")
        assert quantization == "int8" or stored.bnb_4bit_quant_type == quantization[:3]
    if methods()[method].peft_type is None:
        assert found["peft"] is None
        return
    peft = get_peft_config(found["peft"])
    assert peft.peft_type.value == methods()[method].peft_type
    if methods()[method].uses_rank:
        assert (peft.target_r if method == "adalora" else peft.r) == 6
        assert peft.target_modules == "all-linear"
    if peft.peft_type.value == "LORA":
        assert peft.lora_alpha == (6 if method == "rslora" else 12)
        assert peft.use_dora is (method == "dora")
        assert peft.init_lora_weights == ("pissa" if method == "pissa" else True)
    if methods()[method].adds_tokens or methods()[method].adds_keys:
        assert peft.num_virtual_tokens == 20


@pytest.mark.platform
@pytest.mark.parametrize(("method", "quantization"), CELLS)
def test_the_real_adapter_has_the_predicted_parameters(method: str, quantization: str) -> None:
    import torch
    from peft import get_peft_config, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    wanted = plan(method, quantization, lora_rank=6)
    found = config(wanted)
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"}, attention_bias=True))
    if found["quantization"] is None:  # PEFT's upcasting of adapters depends on it
        model.to(getattr(torch, found["model"]["dtype"]))
    elif quantization != "int8":  # adapters of a 4-bit base start in its compute dtype
        model.to(torch.bfloat16)
    if found["peft"] is not None:
        model = get_peft_model(model, get_peft_config(found["peft"]))
    elif method == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
    elif method == "freeze":
        model.requires_grad_(False)
        model.model.layers[-found["trained_layers"] :].requires_grad_(True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == methods()[method].trainable_parameters(MODEL, wanted) > 0


hostile = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.sampled_from(
        [
            "'\"; import os #",
            "{{ 7*7 }}",
            "$(touch /tmp/x) `id`",
            "!!python/object/apply:os.system ['id']",
            "a\nb: c\n- d",
            "no",
            "null",
            "2e-4",
            "~",
            "*alias",
            "&anchor x",
            "---\n...",
            "\u2028\u0085\ufeff",
            "数据\U0001f600",
            "# not a comment",
            "C:\\x\\n",
            "  spaces  ",
            "'" * 9 + '"""',
        ]
    ),
)


@given(name=hostile, target=hostile)
@settings(max_examples=150, deadline=None)
@pytest.mark.thorough
def test_values_survive_yaml_and_never_reach_the_code(name: str, target: str) -> None:
    reference = emit(plan(), MODEL, SOURCE)
    odd = emit(plan(lora_alpha=2.5e-5), MODEL, Source(model_ref=name))
    loaded = yaml.safe_load(odd.files["config.yaml"])
    assert loaded["model"]["name_or_path"] == name
    assert loaded["peft"]["lora_alpha"] == 2.5e-5
    for file in odd.files:
        if file.endswith(".py"):
            assert odd.files[file] == reference.files[file]
    assert odd.command == reference.command
    section = {"peft": {"target_modules": [target], target: 1.0e-7}}
    assert yaml.safe_load(dump_commented(section, {})) == section


@given(name=hostile)
@settings(max_examples=60, deadline=None)
def test_a_hostile_name_stays_in_its_code_span(name: str) -> None:
    model = MODEL.replace(name=name)
    lines = emit(plan(), model, Source(model_ref=name)).files["README.md"].splitlines()
    titles = [line for line in lines if line.startswith("# ")]
    assert len(titles) == 1
    assert titles[0].count("`") == 2


@pytest.mark.parametrize("value", [2e-4, 1e-5, 5e-7, 1e-2, 1.0, 3.0])
def test_a_learning_rate_stays_a_number(value: float) -> None:
    assert config(plan(learning_rate=value))["training"]["learning_rate"] == value


def test_a_large_qlora_model_takes_the_lower_rate() -> None:
    large = describe_model({**LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 40}, "large")
    assert config(plan("qlora", "nf4-dq"), large)["training"]["learning_rate"] == QLORA_LARGE_MODEL_RATE


def test_arguments_that_newer_releases_removed_are_not_written() -> None:
    gone = {"warmup_ratio", "group_by_length", "overwrite_output_dir", "logging_dir", "evaluation_strategy",
            "gradient_checkpointing", "max_seq_length"}  # fmt: skip
    assert not gone & set(config(plan())["training"])


def test_only_what_the_method_needs_is_written() -> None:
    files = {method: set(emit(plan(method), MODEL, SOURCE).files) for method in ("lora", "adalora")}
    assert files["adalora"] - files["lora"] == {"adalora.py"}
    scripts = {
        "train.py",
        "task.py",
        "general.py",
        "precision.py",
        "processes.py",
        "progress.py",
        "rows.py",
        "running.py",
    }
    assert files["lora"] == {*scripts, "config.yaml", "requirements.txt", "README.md", "plan.json"}
    assert "bitsandbytes" not in emit(plan(), MODEL, SOURCE).files["requirements.txt"]
    assert "bitsandbytes==" in emit(plan("qlora", "nf4-dq"), MODEL, SOURCE).files["requirements.txt"]
    assert "bitsandbytes==" in emit(plan(optimizer="adamw_8bit"), MODEL, SOURCE).files["requirements.txt"]


def test_the_script_is_python_that_imports_nothing_of_ours() -> None:
    files = emit(plan("adalora"), MODEL, SOURCE).files
    scripts = [name for name in files if name.endswith(".py")]
    assert len(scripts) == 9
    for name in scripts:
        modules = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse(files[name]))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not {m for m in modules if m.split(".")[0] in ("advisor", "estimators", "profiles")}


REFUSED = {
    "alpha of VeRA": ({"method": "vera", "lora_alpha": 8}, "no alpha"),
    "dropout of OFT": ({"method": "oft", "lora_dropout": 0.1}, "no dropout"),
    "BAdam": ({"method": "badam"}, "not emitted"),
    "loss kernel": ({"loss_kernel": "full"}, "fused"),
    "unsloth's checkpointing": ({"gradient_checkpointing": "unsloth"}, "Unsloth"),
    "kept outputs": ({"keep_outputs": True}, "outputs"),
    "kernels of Liger one by one": ({"fused_ops": ("norm",)}, "fused_ops"),
    "gradients kept": ({"zero_grad_set_to_none": False}, "zero_grad"),
    "rows of another task": ({"task": "dpo"}, "rows of preference"),
    "computing in another half": ({"compute_dtype": "fp16"}, "load them as fp32"),
    "autocast off": ({"quantization": "fp32", "compute_dtype": "bf16", "mixed_precision": False}, "autocast"),
    "fp16 adapters": ({"quantization": "fp32", "compute_dtype": "fp16", "adapter_dtype": "bf16"}, "scaler"),
    "unknown option": ({"method_options": {"nonsense": 1}}, "nonsense"),
    "adapter on the head": ({"target_modules": ["lm_head"]}, "lm_head"),
    "pissa over 4 bits": ({"method": "qlora", "method_options": {"init_lora_weights": "pissa"}}, "float weights"),
    "k-bit preparation of floats": ({"kbit_prepared": True}, "quantised"),
    "several cards, no sharding": ({"n_gpus": 2}, "sharding"),
    "offloading on one card": ({"offload_optimizer": True}, "offload"),
    "offloading under ddp": ({"n_gpus": 2, "sharding": "ddp", "offload_optimizer": True}, "offload"),
    "half of fsdp's offload": ({"n_gpus": 2, "sharding": "fsdp2", "offload_optimizer": True}, "FSDP2"),
    "int8 sharded": ({"n_gpus": 2, "sharding": "fsdp2", "quantization": "int8"}, "int8"),
    "full over int8": ({"method": "full", "quantization": "int8"}, "int8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_the_reason(case: str) -> None:
    changes, reason = REFUSED[case]
    with pytest.raises(UnsupportedError) as error:
        emit(plan(**changes) if "method" not in changes else Plan(model="tiny", **changes), MODEL, SOURCE)
    assert reason in error.value.message


def test_bitfit_without_biases_and_rows_of_another_task_are_refused() -> None:
    with pytest.raises(AdviseError, match="no bias"):
        emit(plan("bitfit"), BIASLESS, SOURCE)
    with pytest.raises(UnsupportedError, match="preference"):
        emit(plan(), MODEL, Source(model_ref="x", form="preference"))
    with pytest.raises(UnsupportedError, match="text"):
        emit(plan(task="pretrain"), MODEL, Source(model_ref="x", form="messages"))


SHARDED = [
    ("ddp", "MULTI_GPU"),
    ("fsdp2", "FSDP"),
    ("zero1", "DEEPSPEED"),
    ("zero2", "DEEPSPEED"),
    ("zero3", "DEEPSPEED"),
]


@pytest.mark.parametrize(("sharding", "kind"), SHARDED)
def test_several_cards_are_launched_by_accelerate(sharding: str, kind: str) -> None:
    emission = emit(plan(n_gpus=4, sharding=sharding), MODEL, SOURCE)
    found = yaml.safe_load(emission.files["accelerate.yaml"])
    assert found["num_processes"] == 4
    assert found["distributed_type"] == kind
    assert "accelerate.commands.launch" in emission.command
    assert ("deepspeed==" in emission.files["requirements.txt"]) == sharding.startswith("zero")


@pytest.mark.platform
@pytest.mark.parametrize(("sharding", "kind"), SHARDED)
def test_accelerate_reads_its_file(sharding: str, kind: str, tmp_path: Any) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "accelerate.yaml"
    path.write_text(emit(plan(n_gpus=4, sharding=sharding), MODEL, SOURCE).files["accelerate.yaml"])
    assert load_config_from_file(str(path)).distributed_type.value == kind


def test_the_page_names_the_prediction_and_the_command() -> None:
    forecast = Forecast(
        allocated=Interval.around(5e9, 0.1, 0.1),
        reserved=Interval.around(6e9, 0.1, 0.1),
        device=Interval.around(2.0 * 2**30, 0.1, 0.1),
        tokens_per_second=Interval.around(1500, 0.1, 0.1),
    )
    page = emit(plan(), MODEL, SOURCE, forecast).files["README.md"]
    assert "2.00 GiB" in page
    assert "1.50K" in page
    assert "\npython train.py\n" in page
    assert "Predicted" not in emit(plan(), MODEL, SOURCE).files["README.md"]

"""The methods: what each trains, what it refuses, and that the registry is the folder."""

from pathlib import Path
from typing import Any

import pytest

import estimators.methods
from estimators.adapters import ADAPTERS
from estimators.memory import estimate_memory
from estimators.methods import framework_methods, get_method, methods
from estimators.methods.lokr import factorization
from estimators.methods.oft import nearest_divisor
from profiles.catalog import find_gpu
from profiles.errors import InvalidInputError, UnknownNameError, UnsupportedError
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan

SHARED = {
    "base",
    "fused_experts",
    "linear_adapter",
    "projected",
    "saved_modules",
    "scalar_head",
    "some_layers",
}  # files of the folder that hold no method
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False, **SIZES},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, **SIZES},
    "gpt2": {
        "model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 128,
        "bos_token_id": 0, "eos_token_id": 0,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **SIZES},
}  # fmt: skip
CARD = Hardware(gpu=find_gpu("a100-80-sxm"))


def spec(name: str) -> ModelSpec:
    return describe_model(CONFIGS[name], name)


def plan(method: str, model: str = "llama", **fields: Any) -> Plan:
    quantization = "nf4" if method == "qlora" else "bf16"
    common = {"quantization": quantization, "lora_rank": 4, "num_virtual_tokens": 5, "gradient_checkpointing": "none"}
    return Plan.model_validate({"model": CONFIGS[model], "method": method, **common, **fields})


def refusal(method: str, model: str = "llama", **fields: Any) -> str:
    return get_method(method).refusal(spec(model), plan(method, model, **fields)) or ""


def test_the_registry_is_the_folder() -> None:
    folder = Path(estimators.methods.__file__).parent
    files = {p.stem for p in folder.glob("*.py")} - {"__init__"}
    assert set(methods()) == files - SHARED
    assert all(get_method(name).id == name for name in methods())
    assert len(methods()) == 26


def test_the_framework_has_eight() -> None:
    assert set(framework_methods()) == {
        "full", "lora", "qlora", "adalora", "bitfit", "prompt", "prefix", "ptuning"
    }  # fmt: skip


def test_every_adapter_has_its_code_and_is_used() -> None:
    kinds = {get_method(name).adapter(plan(name)) for name in methods()}
    assert kinds == set(ADAPTERS)


def test_titles_are_unique() -> None:
    assert len({m.title for m in methods().values()}) == len(methods())


def test_unknown_method_suggests() -> None:
    with pytest.raises(UnknownNameError) as error:
        get_method("doar")
    assert "dora" in error.value.hint
    for shared in SHARED:
        with pytest.raises(UnknownNameError):
            get_method(shared)


@pytest.mark.parametrize(
    ("method", "fields", "part"),
    [
        ("pissa", {"quantization": "nf4"}, "float weights"),
        ("vera", {"quantization": "nf4"}, "dtype"),
        ("loha", {"quantization": "int8"}, "packs"),
        ("lokr", {"quantization": "nf4"}, "packs"),
        ("fourierft", {"target_modules": ["q_proj"], "method_options": {"n_frequency": 5000}}, "fewer elements"),
        ("ln_tuning", {"quantization": "nf4"}, "without adapters"),
        ("freeze", {"quantization": "nf4"}, "cannot be trained"),
        ("loftq", {"quantization": "nf4"}, "float weights"),
        ("galore", {"quantization": "nf4"}, "cannot be trained"),
        ("galore", {"optimizer": "sgd"}, "no such form"),
        ("apollo", {"n_gpus": 2, "sharding": "fsdp2"}, "whole gradients"),
        ("badam", {"n_gpus": 2, "sharding": "ddp"}, "ZeRO-3"),
        ("llama_pro", {"method_options": {"num_expand": 2}}, "does not divide the 3 layers"),
        ("freeze", {"method_options": {"freeze_trainable_layers": 4}}, "layers 1 to 3"),
        ("freeze", {"method_options": {"freeze_trainable_layers": 0}}, "layers 1 to 3"),
        ("loha", {"model": "gpt2"}, "Conv1D"),
        ("lokr", {"model": "gpt2"}, "Conv1D"),
        ("oft", {"model": "gpt2"}, "Conv1D"),
        ("miss", {"model": "gpt2"}, "Conv1D"),
        ("miss", {"method_options": {"init_weights": "bat"}}, "bat"),
        ("miss", {"lora_rank": 65}, "at most"),
        ("ia3", {"method_options": {"feedforward_modules": ["q_proj"]}}, "feed-forward"),
        ("ln_tuning", {"target_modules": ["q_proj"]}, "no norm"),
        ("dora", {"model": "mixtral"}, "no DoRA for the fused experts"),
        ("lora", {"model": "mixtral", "lora_dropout": 0.1}, "no dropout before the fused experts"),
        ("qlora", {"model": "mixtral", "lora_dropout": 0.1}, "no dropout before the fused experts"),
    ],
)
def test_refusals(method: str, fields: dict[str, Any], part: str) -> None:
    fields = dict(fields)
    assert part in refusal(method, fields.pop("model", "llama"), **fields)


def test_experts_that_are_not_adapted_forbid_nothing() -> None:
    attention = {"model": "mixtral", "target_modules": ["q_proj", "v_proj"]}
    assert refusal("dora", **attention) == refusal("lora", **attention, lora_dropout=0.1) == ""


@pytest.mark.parametrize("method", ["dora", "rslora", "loraplus", "adalora", "ia3", "oft", "miss"])
def test_runs_on_a_quantised_base(method: str) -> None:
    assert refusal(method, quantization="nf4") == ""


def test_a_refusal_stops_the_estimate() -> None:
    with pytest.raises(UnsupportedError, match="float weights"):
        estimate_memory(plan("pissa", quantization="nf4"), spec("llama"), CARD)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_head_and_embedding_take_no_adapter(target: str) -> None:
    with pytest.raises(InvalidInputError, match="takes no adapter") as error:
        get_method("lora").trainable_parameters(spec("llama"), plan("lora", target_modules=[target]))
    assert "modules_to_save" in error.value.hint


def test_modules_to_save_are_full_copies() -> None:
    model, lora = spec("llama"), get_method("lora")
    with_copies = plan("lora", method_options={"modules_to_save": ["lm_head", "embed_tokens"]})
    extra = lora.trainable_parameters(model, with_copies) - lora.trainable_parameters(model, plan("lora"))
    assert extra == 2 * 100 * 64
    with pytest.raises(InvalidInputError, match="neither"):
        lora.trainable_parameters(model, plan("lora", method_options={"modules_to_save": ["q_proj"]}))


def test_memory_follows_what_is_trained() -> None:
    model = spec("llama")
    lora = estimate_memory(plan("lora", micro_batch_size=1, seq_len=64), model, CARD).allocated.expected
    saved = plan("lora", micro_batch_size=1, seq_len=64, method_options={"modules_to_save": ["lm_head"]})
    assert estimate_memory(saved, model, CARD).allocated.expected > lora


def test_freezing_more_layers_takes_less() -> None:
    model = spec("llama")
    peaks = [
        estimate_memory(
            plan("freeze", seq_len=128, method_options={"freeze_trainable_layers": n}), model, CARD
        ).allocated.expected
        for n in (1, 2, 3)
    ]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[2]


def test_factorization_as_lokr_chooses() -> None:
    assert [factorization(n, -1) for n in (256, 128, 127)] == [(16, 16), (8, 16), (1, 127)]
    assert factorization(128, 4) == (4, 32)


def test_nearest_divisor_prefers_the_lower() -> None:
    assert [nearest_divisor(96, n) for n in (32, 7, 10, 200)] == [32, 6, 8, 96]


@pytest.mark.platform
def test_trainable_parameters_are_peft_s() -> None:
    """Every method on four tiny models built by transformers and wrapped by PEFT, on the CPU."""
    pytest.importorskip("peft")
    seen: set[str] = set()
    cases = 0
    for name in CONFIGS:
        model = spec(name)
        for method in methods():
            for options in _options(method):
                asked = plan(method, name, method_options=options)
                if get_method(method).refusal(model, asked):
                    continue
                wrapped = _wrapped(name, asked, model)
                real = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
                assert get_method(method).trainable_parameters(model, asked) == real, (name, method, options)
                seen.add(method)
                cases += 1
    assert seen == set(methods())
    assert cases == 117


def _options(method: str) -> list[dict[str, Any]]:
    more: dict[str, list[dict[str, Any]]] = {
        "lora": [{"use_dora": True}, {"modules_to_save": ["lm_head"]}],
        "oft": [{"r": 4, "oft_block_size": 0}, {"block_share": True}],
        "lokr": [{"decompose_factor": 4}, {"decompose_both": True}],
        "freeze": [{"freeze_trainable_layers": 1}],
        "llama_pro": [{"num_expand": 3}],
    }
    return [{}, *more.get(method, [])]


def _wrapped(name: str, asked: Plan, model: ModelSpec) -> Any:
    """The model as PEFT wraps it; methods that are LoRA to PEFT, or that quantise, go by LoRA's name."""
    import peft
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from estimators.regime import resolve_regime
    from estimators.simulate.adapters import wrap

    model = get_method(asked.method).extended(model, asked)
    config = AutoConfig.for_model(**model.config)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if asked.method == "miss":
        return peft.get_peft_model(base, peft.MissConfig(r=asked.lora_rank, target_modules="all-linear"))
    if asked.method == "fourierft":
        return peft.get_peft_model(base, peft.FourierFTConfig(target_modules="all-linear"))
    if asked.method in ("qlora", "loraplus"):
        asked = asked.replace(method="lora", quantization="bf16")
    return wrap(base, asked, model, resolve_regime(asked, model, CARD.gpu))


MOE_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "vocab_size": 300, "num_experts_per_tok": 2, "tie_word_embeddings": False,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "n_routed_experts": 4, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}  # fmt: skip
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "qwen2_moe": {"num_experts": 4, "num_key_value_heads": 2, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {"num_experts": 4, "num_key_value_heads": 2, "head_dim": 16},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "glm4_moe": {
        "n_routed_experts": 4, "num_key_value_heads": 2, "head_dim": 16, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
}  # fmt: skip


@pytest.mark.platform
@pytest.mark.parametrize("family", EXPERTS)
def test_lora_on_all_linears_of_fused_experts_is_peft_s(family: str) -> None:
    """PEFT takes all-linear to mean the experts too, in the families whose experts were modules once."""
    peft = pytest.importorskip("peft")
    import transformers

    config = {"model_type": family, **MOE_SIZES, **EXPERTS[family]}
    made = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    spec = describe_model({**config, "architectures": [type(made).__name__]}, family)
    adapted = peft.get_peft_model(made, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert get_method("lora").trainable_parameters(spec, Plan(model="m", lora_rank=8)) == trainable


@pytest.mark.platform
@pytest.mark.parametrize("family", EXPERTS)
def test_llamafactory_s_peft_leaves_fused_experts_alone(family: str) -> None:
    import transformers

    from estimators.regime import resolve_regime
    from estimators.simulate.adapters import wrap

    config = {"model_type": family, **MOE_SIZES, **EXPERTS[family]}
    made = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    spec = describe_model({**config, "architectures": [type(made).__name__]}, family)
    asked = Plan(model="m", platform="llamafactory", lora_rank=8)
    adapted = wrap(made, asked, spec, resolve_regime(asked, spec, CARD.gpu))
    assert not [name for name, p in adapted.named_parameters() if p.requires_grad and "experts.lora" in name]
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert get_method("lora").trainable_parameters(spec, asked) == trainable

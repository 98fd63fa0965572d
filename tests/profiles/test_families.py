"""Families against the real transformers classes (meta device), and against broken configs."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import profiles.families
from profiles.errors import AdviseError, InvalidModelError, UnsupportedError
from profiles.families import COMPOSITES, FAMILIES, FAMILY_OF, describe_model
from profiles.model import Linear, ModelSpec, Norm

# Small configs, each with what its family can vary: at least two kinds of layers where there are kinds.
BASE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 128,
}  # fmt: skip
MOE = {"num_key_value_heads": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MLA = {
    "n_routed_experts": 4, "first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 12, "q_lora_rank": 20, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LAYER_TYPES = ["sliding_attention", "full_attention", "full_attention", "full_attention"]
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 128, "n_positions": 32}
CASES: dict[str, dict[str, Any]] = {
    "llama": BASE | {"num_key_value_heads": 2},
    "llama biased": BASE | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 24},
    "internlm3": BASE | {"qkv_bias": True, "bias": True},
    "mistral": BASE | {"num_key_value_heads": 2},
    "ministral": BASE | {"layer_types": LAYER_TYPES, "num_key_value_heads": 2, "head_dim": 16},
    "ministral3": BASE | {"num_key_value_heads": 4},
    "qwen2": BASE | {"num_key_value_heads": 2, "use_sliding_window": True, "max_window_layers": 3},
    "qwen3": BASE | {"num_key_value_heads": 2, "attention_bias": True},
    "smollm3": BASE | {"pad_token_id": 0},
    "granite": BASE | {"num_key_value_heads": 2},
    "helium": BASE | {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": True},
    "olmo": BASE,
    "olmo2": BASE | {"num_key_value_heads": 2},
    "olmo3": BASE,
    "cohere": BASE | {"use_qk_norm": True},
    "cohere2": BASE | {"num_key_value_heads": 2},
    "gemma": BASE | {"num_key_value_heads": 1},
    "gemma2": BASE | {"num_key_value_heads": 2, "head_dim": 32},
    "gemma3_text": BASE | {"sliding_window_pattern": 2},
    "phi": BASE | {"qk_layernorm": True},
    "phi3": BASE | {"num_key_value_heads": 2, "pad_token_id": 0},
    "glm": BASE | {"pad_token_id": 0},
    "glm4": BASE | {"pad_token_id": 0},
    "gpt2": GPT2,
    "gpt_neox": BASE,
    "gpt_neo": {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "vocab_size": 128}
    | {"attention_types": [[["global", "local"], 2]]},
    "gptj": GPT2 | {"rotary_dim": 8},
    "stablelm": BASE | {"num_key_value_heads": 2, "use_qkv_bias": True},
    "stablelm parallel": BASE | {"num_key_value_heads": 4, "use_parallel_residual": True},
    "starcoder2": BASE | {"sliding_window": 64},
    "bloom": {"n_embed": 64, "n_layer": 3, "n_head": 4, "vocab_size": 128},
    "opt": BASE | {"ffn_dim": 96},
    "opt post-norm": BASE | {"ffn_dim": 96, "do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "falcon": BASE,
    "falcon new": BASE | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon sequential": BASE | {"parallel_attn": False, "alibi": True, "multi_query": False},
    "mixtral": BASE | {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": BASE | MOE | {"num_experts": 4, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]},
    "qwen3_moe": BASE | MOE | {"num_experts": 4, "decoder_sparse_step": 2},
    "deepseek_v2": BASE | MOE | MLA | {"num_key_value_heads": 4, "q_lora_rank": None, "attention_bias": True},
    "deepseek_v3": BASE | MOE | MLA | {"num_key_value_heads": 4, "attention_bias": True},
    "glm4_moe": BASE | MOE | {"n_routed_experts": 4, "use_qk_norm": True, "attention_bias": True},
    "gpt_oss": BASE | {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": BASE
    | {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "head_dim": 16}
    | {"num_key_value_heads": 2, "intermediate_size_mlp": 72, "pad_token_id": 0},
    "bert": BASE,
    "roberta": BASE | {"max_position_embeddings": 34},
    "xlm-roberta": BASE | {"max_position_embeddings": 34, "tie_word_embeddings": True},
    "deberta-v2": BASE | {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
    | {"share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False},
    "deberta-v2 own keys": BASE | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 2},
    "modernbert": BASE | {"pad_token_id": 0},
    "distilbert": {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, "vocab_size": 128},
}  # fmt: skip


def config_of(case: str) -> dict[str, Any]:
    return {"model_type": case.split()[0], **CASES[case]}


def real_model(config: dict[str, Any], spec: ModelSpec) -> Any:
    """The class that the spec names, on the meta device."""
    import torch
    import transformers

    model_type = config["model_type"]
    auto = transformers.AutoModelForMaskedLM if spec.kind == "encoder" else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        made = transformers.AutoConfig.for_model(model_type, **{k: v for k, v in config.items() if k != "model_type"})
        return auto.from_config(made)


def real_parts(model: Any) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[Any, ...]], dict[str, int]]:
    """(linears, norms, bare parameters) by full name."""
    import torch
    from transformers.pytorch_utils import Conv1D

    linears, norms, seen = {}, {}, set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            flip = isinstance(module, Conv1D)
            shape = tuple(module.weight.shape)
            kind = "conv1d" if flip else "linear" if type(module) is torch.nn.Linear else "subclass"
            linears[name] = (*(shape if flip else shape[::-1]), module.bias is not None, kind)
        elif isinstance(module, torch.nn.Embedding):
            pass
        elif getattr(module, "weight", None) is not None and "norm" in type(module).__name__.lower():
            bias = getattr(module, "bias", None) is not None
            norms[name] = (module.weight.numel(), bias, "rmsnorm" if "RMS" in type(module).__name__ else "layernorm")
        else:
            continue
        seen |= {f"{name}.weight", f"{name}.bias"}
    tables = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Embedding)}
    bare = {n: p.numel() for n, p in model.named_parameters() if n not in seen | tables}
    return linears, norms, bare


def all_of(spec: ModelSpec) -> tuple[list[tuple[int, Linear]], list[tuple[int, Norm]]]:
    """Every linear and norm with how often it is there, the head included."""
    linears = [(g.count, x) for g in spec.layers for x in g.block.linears] + [(1, x) for x in spec.extra_linears]
    norms = [(g.count, n) for g in spec.layers for n in g.block.norms] + [(1, n) for n in spec.extra_norms]
    return linears + ([(1, spec.head)] if spec.head else []), norms


def counted(pairs: list[tuple[int, Any]]) -> dict[Any, int]:
    total: dict[Any, int] = {}
    for n, key in pairs:
        total[key] = total.get(key, 0) + n
    return total


def inside(name: str, spec: ModelSpec) -> str:
    """The path inside the layer, or the whole name."""
    prefix = f"{spec.layers_path}."
    return name.removeprefix(prefix).split(".", 1)[1] if name.startswith(prefix) else name


def test_registry_is_the_folder() -> None:
    folder = {p.stem for p in Path(profiles.families.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(FAMILIES) == folder
    assert len(folder) == 26
    assert {case.split()[0] for case in CASES} == set(FAMILY_OF)
    assert len(FAMILY_OF) == sum(len(types) for types in FAMILIES.values()) == 45


@pytest.mark.platform
@pytest.mark.parametrize("case", CASES)
def test_shapes_are_those_of_the_real_class(case: str) -> None:
    config = config_of(case)
    spec = describe_model(config, case)
    model = real_model(config, spec)
    linears, norms, bare = real_parts(model)
    ours, our_norms = all_of(spec)

    assert type(model).__name__ == spec.architecture
    assert counted([(n, (x.name, x.in_features, x.out_features, x.bias, x.kind)) for n, x in ours
                    if x.kind != "parameter"]) == counted(
        [(1, (inside(name, spec), *shape)) for name, shape in linears.items()])  # fmt: skip
    assert counted([(n, (x.name, x.size, x.bias, x.kind)) for n, x in our_norms if x.affine]) == counted(
        [(1, (inside(name, spec), *shape)) for name, shape in norms.items()])  # fmt: skip
    tensors = {n: x.weight_parameters for _, x in ours if x.kind == "parameter" for n in [x.name]}
    assert tensors == {n: size for name, size in bare.items() if (n := inside(name, spec)) in tensors}
    assert {e.name: (e.rows, e.width) for e in spec.embeddings} == {
        n: tuple(m.weight.shape) for n, m in model.named_modules()
        if type(m).__name__.endswith("Embedding") and getattr(m, "weight", None) is not None
    }  # fmt: skip

    assert spec.parameters == sum(p.numel() for p in model.parameters())
    assert spec.bias_parameters == sum(p.numel() for n, p in model.named_parameters() if n.endswith(".bias"))
    assert spec.num_hidden_layers == model.config.num_hidden_layers
    assert spec.tie_word_embeddings == model.config.tie_word_embeddings
    assert spec.config == config


LLAMA = {"model_type": "llama", **CASES["llama"]}


@pytest.mark.parametrize("key", [*BASE, "num_key_value_heads", "head_dim", "max_position_embeddings"])
@pytest.mark.parametrize(
    "value", ["64", 64.0, True, 0, -1, 10**18, 10**5000, [64], {"a": 1}, float("nan")], ids=lambda v: type(v).__name__
)
def test_a_broken_size_is_named(key: str, value: Any) -> None:
    with pytest.raises(InvalidModelError) as caught:
        describe_model({**LLAMA, key: value}, "mine")
    assert caught.value.message.startswith(f"mine: {key}: must be")
    assert len(caught.value.message) < 200
    assert caught.value.hint


@pytest.mark.parametrize("key", BASE)
def test_a_missing_size_is_named(key: str) -> None:
    with pytest.raises(InvalidModelError, match=f"mine: {key}: is missing"):
        describe_model({k: v for k, v in LLAMA.items() if k != key}, "mine")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads: hidden_size 64 is not a multiple"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 4 attention heads cannot share 3"),
        ({"attention_bias": "yes"}, "attention_bias: must be true or false"),
        ({"hidden_act": 3}, "hidden_act: must be a string"),
        ({"model_type": "ministral", "layer_types": ["full_attention"]}, "layer_types: has 1 entries for 4 layers"),
        ({"model_type": "ministral", "layer_types": "full"}, "layer_types: must be a list of str"),
        ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "partial_rotary_factor: must be above 0"),
        ({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok: 3 of 2"),
        ({"model_type": "roberta", "max_position_embeddings": 2}, "max_position_embeddings: 2 leaves no position"),
        (
            {"model_type": "gpt_neo", "num_heads": 4, "attention_types": [["global", 4]]},
            "attention_types: must be like",
        ),
        ({"model_type": "gpt_neo", "num_heads": 4, "attention_types": [[["local"], 3]]}, "has 3 entries for 4 layers"),
        ({"model_type": 7}, "model_type: is missing or not a string"),
        ({"model_type": "gemma3"}, "text_config: is missing"),
        ({"model_type": "gemma3", "text_config": {"model_type": "llama4"}}, "is no language model"),
    ],
)
def test_an_impossible_config_is_explained(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidModelError) as caught:
        describe_model({**LLAMA, **changes}, "mine")
    assert complaint in caught.value.message


@pytest.mark.parametrize("config", [None, [], "llama", {1: 2}])
def test_what_is_no_object_is_refused(config: Any) -> None:
    with pytest.raises(InvalidModelError, match="not a JSON object"):
        describe_model(config, "mine")


def test_an_unknown_architecture_is_never_guessed() -> None:
    with pytest.raises(UnsupportedError) as caught:
        describe_model({**LLAMA, "model_type": "baichuan", "auto_map": {"AutoConfig": "x.Y"}}, "mine")
    assert "'baichuan' is not known" in caught.value.message
    assert "auto_map" in caught.value.message
    assert all(name in caught.value.hint for name in FAMILY_OF)


@pytest.mark.parametrize(
    ("whole", "part"), [("gemma3", "gemma3_text"), ("mistral3", "mistral"), ("llama4", "llama4_text")]
)
def test_of_a_multimodal_model_the_language_part_is_described(whole: str, part: str) -> None:
    text = {"model_type": part, **CASES[part]}
    spec = describe_model({"model_type": whole, "text_config": text, "vision_config": {"hidden_size": 8}}, "mine")
    assert spec.parameters == describe_model(text, "mine").parameters
    assert len(COMPOSITES) == 3
    assert COMPOSITES[whole] in spec.notes[0]


@pytest.mark.parametrize(
    ("case", "windows"),
    [
        ("mistral", {4096: 4}),
        ("ministral", {4096: 1, None: 3}),
        ("qwen2", {4096: 1, None: 3}),
        ("gemma2", {4096: 2, None: 2}),
        ("gemma3_text", {4096: 2, None: 2}),
        ("gpt_oss", {128: 2, None: 2}),
        ("olmo3", {4096: 3, None: 1}),
        ("cohere2", {4096: 3, None: 1}),
        ("llama4_text", {8192: 3, None: 1}),
        ("modernbert", {128: 2, None: 2}),
        ("gpt_neo", {256: 2, None: 2}),
        ("starcoder2", {64: 4}),
    ],
)
def test_which_layers_slide(case: str, windows: dict[int | None, int]) -> None:
    spec = describe_model(config_of(case), case)
    assert counted([(g.count, g.block.attention.sliding_window) for g in spec.layers]) == windows


def test_mixtures_know_their_active_parameters() -> None:
    spec = describe_model(config_of("qwen3_moe"), "moe")
    one_expert = 3 * BASE["hidden_size"] * MOE["moe_intermediate_size"]
    assert spec.parameters - spec.active_parameters == 2 * (4 - 2) * one_expert  # every second layer of four
    assert {g.block.mlp.experts for g in spec.layers} == {0, 4}


class ReadKeys(dict[str, Any]):
    """A config that remembers which keys were asked for."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)


JUNK_VALUES = (None, True, -1, 0, 3, 10**18, 10**5000, 0.5, "", "4096", [], [None, 2], {"partial_rotary_factor": "x"})


def describe_or_refuse(config: dict[str, Any]) -> None:
    """Anything but an AdviseError fails the test that calls this."""
    try:
        spec = describe_model(config, "junk")
    except AdviseError as error:
        assert error.message  # noqa: PT017
    else:
        assert 0 < spec.active_parameters <= spec.parameters


@pytest.mark.parametrize("case", CASES)
def test_every_key_that_is_read_may_hold_junk(case: str) -> None:
    config = ReadKeys(config_of(case))
    describe_model(config, case)
    assert len(config.asked) > 5
    for key in config.asked:
        for value in JUNK_VALUES:
            describe_or_refuse({**config, key: value})


@pytest.mark.parametrize("whole", COMPOSITES)
@pytest.mark.parametrize("text", [*JUNK_VALUES, {"model_type": []}, {"model_type": "llama"}, LLAMA, {1: 2}], ids=type)
def test_a_text_config_may_hold_junk(whole: str, text: Any) -> None:
    describe_or_refuse({"model_type": whole, "text_config": text})


def test_hub_configs_of_gemma_3_lean_on_the_class_defaults() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    config = {"model_type": "gemma3", "text_config": {**text, "sliding_window": 1024}, "vision_config": {}}
    assert describe_model(config, "gemma-3-4b").parameters == 3_880_263_168


def test_a_quantised_checkpoint_says_so() -> None:
    spec = describe_model({**LLAMA, "quantization_config": {"quant_method": "mxfp4"}}, "mine")
    assert spec.parameters == describe_model(LLAMA, "mine").parameters
    assert "mxfp4" in spec.notes[0]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted({key for case in CASES.values() for key in case} | {"rope_parameters", "sliding_window", "text_config"})


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(
    case=st.sampled_from(sorted(CASES)),
    changes=st.dictionaries(st.sampled_from(KEYS), JUNK | st.integers(-2, 10**9), max_size=4),
    dropped=st.sets(st.sampled_from(KEYS), max_size=2),
)
def test_junk_never_escapes_as_anything_but_an_advise_error(
    case: str, changes: dict[str, Any], dropped: set[str]
) -> None:
    config = {k: v for k, v in {**config_of(case), **changes}.items() if k not in dropped}
    describe_or_refuse(config)


@settings(max_examples=100, deadline=None)
@given(config=JUNK)
def test_pure_junk_is_refused(config: Any) -> None:
    with pytest.raises(AdviseError):
        describe_model(config, "junk")

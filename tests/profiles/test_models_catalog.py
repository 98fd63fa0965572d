"""The catalogue's models: exact sizes, names, and every row against the real transformers class."""

import time
from typing import Any

import pytest

from profiles.catalog import find_model_row, load_model_rows
from profiles.families import FAMILY_OF, describe_model
from profiles.model import ModelSpec

ROWS = load_model_rows()
# One row of every kind of layer; the others are built by the slow test.
FAST = (
    "meta-llama/Llama-3.2-3B",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen3-0.6B",
    "google/gemma-2-9b",
    "google/gemma-3-1b-pt",
    "microsoft/phi-4",
    "mistralai/Mixtral-8x7B-v0.1",
    "deepseek-ai/DeepSeek-V2-Lite",
    "openai/gpt-oss-20b",
    "openai-community/gpt2",
    "facebook/opt-350m",
    "bigscience/bloom-560m",
    "tiiuae/falcon-7b",
    "answerdotai/ModernBERT-base",
    "microsoft/deberta-v3-base",
)
# Counts as the hub shows them beside the weights; written down from memory, before the rows were counted.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "01-ai/Yi-34B": 34_388_917_248,
    "zai-org/GLM-4-9B-0414": 9_400_279_040,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "bigscience/bloom-7b1": 7_069_016_064,
    "openai-community/gpt2-xl": 1_557_611_200,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
}


def spec_of(model: str) -> ModelSpec:
    return describe_model(ROWS[model].config, model)


def real_count(config: dict[str, Any], spec: ModelSpec) -> tuple[str, int, int]:
    """(class, parameters, elements of *.bias) of the class that transformers builds, on the meta device."""
    import torch
    import transformers

    auto = transformers.AutoModelForMaskedLM if spec.kind == "encoder" else transformers.AutoModelForCausalLM
    keys = {k: v for k, v in config.items() if k != "model_type"}
    with torch.device("meta"):
        model = auto.from_config(transformers.AutoConfig.for_model(config["model_type"], **keys))
    biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith(".bias"))
    return type(model).__name__, sum(p.numel() for p in model.parameters()), biases


def check_against_the_real_class(model: str) -> None:
    spec = spec_of(model)
    assert real_count(ROWS[model].config, spec) == (spec.architecture, spec.parameters, spec.bias_parameters)


def test_every_description_has_the_recorded_size() -> None:
    assert len(ROWS) == 146
    assert {m: spec_of(m).parameters for m in ROWS} == {m: row.parameters for m, row in ROWS.items()}


def test_sizes_are_the_published_ones() -> None:
    assert {m: ROWS[m].parameters for m in PUBLISHED} == PUBLISHED


def test_sizes_that_others_get_wrong() -> None:
    assert round(spec_of("google/gemma-2-9b").parameters / 1e6) == 9_242
    assert round(spec_of("meta-llama/Llama-3.2-3B").parameters / 1e6) == 3_213


def test_active_parameters_of_mixtures() -> None:
    mixtures = {m: spec_of(m) for m in ROWS if any(g.block.mlp.experts for g in spec_of(m).layers)}
    active = {m: spec.active_parameters / 1e9 for m, spec in mixtures.items()}
    assert active["mistralai/Mixtral-8x7B-v0.1"] == pytest.approx(12.9, abs=0.1)
    assert active["Qwen/Qwen3-30B-A3B"] == pytest.approx(3.3, abs=0.1)
    assert active["Qwen/Qwen3-235B-A22B"] == pytest.approx(22, abs=0.5)
    assert active["openai/gpt-oss-20b"] == pytest.approx(3.6 + 0.6, abs=0.1)  # published without the embedding
    assert active["deepseek-ai/DeepSeek-V3"] == pytest.approx(37, abs=1)
    assert len(active) == 15


@pytest.mark.parametrize(
    ("nickname", "model"),
    [
        ("llama-8b", "meta-llama/Llama-3.1-8B"),
        ("llama3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("unsloth/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B"),
        ("llama-70b", "meta-llama/Llama-3.1-70B"),
        ("llama-3b", "meta-llama/Llama-3.2-3B"),
        ("llama-1b", "meta-llama/Llama-3.2-1B"),
        ("llama-7b", "meta-llama/Llama-2-7b-hf"),
        ("llama-33b", "huggyllama/llama-30b"),
        ("qwen-7b", "Qwen/Qwen2.5-7B"),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B"),
        ("qwen3-8b", "Qwen/Qwen3-8B"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.3"),
        ("gemma-9b", "google/gemma-2-9b"),
        ("gemma-2-2b", "google/gemma-2-2b"),
        ("gemma-2b", "google/gemma-2b"),
        ("phi-4", "microsoft/phi-4"),
        ("qwq-32b", "Qwen/Qwen2.5-32B"),
        ("bert-base", "google-bert/bert-base-uncased"),
    ],
)
def test_nicknames(nickname: str, model: str) -> None:
    assert find_model_row(nickname).id == model


def test_a_name_means_one_model() -> None:
    names = [name.lower() for row in ROWS.values() for name in (row.id, *row.aliases, *row.variants)]
    assert sorted(names) == sorted(set(names))


def test_rows_are_complete() -> None:
    for row in ROWS.values():
        assert row.aliases, row.id
        assert row.license, row.id
        year, month = row.released.split("-")
        assert 2018 <= int(year) <= 2026, row.id
        assert 1 <= int(month) <= 12, row.id
        assert row.config["model_type"] in FAMILY_OF, row.id


def test_describing_a_model_is_quick() -> None:
    spec_of("deepseek-ai/DeepSeek-V3")
    start = time.process_time()
    for model in ROWS:
        spec_of(model)
    assert (time.process_time() - start) / len(ROWS) < 0.01


@pytest.mark.platform
@pytest.mark.parametrize("model", FAST)
def test_the_real_class_has_the_recorded_size(model: str) -> None:
    check_against_the_real_class(model)


@pytest.mark.platform
@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(set(ROWS) - set(FAST)))
def test_the_real_class_of_every_other_row_too(model: str) -> None:
    check_against_the_real_class(model)

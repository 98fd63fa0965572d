import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiles import catalog
from profiles.errors import InvalidInputError, UnknownNameError, UnsupportedError
from profiles.gpu import GpuSpec
from profiles.units import GB, GIB

N_CARDS = 54
N_SIZED = 47
SIZELESS = {"b100", "ascend910b", "m1max", "m2ultra", "m3max", "m4pro", "m4max"}


def _sized() -> list[GpuSpec]:
    cards = list(catalog.load_gpus().values())
    assert len(cards) == N_SIZED
    return cards


def _written_rows() -> list[dict[str, object]]:
    rows = json.loads((catalog.DATA / "gpus.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == N_CARDS
    return list(rows)


def test_every_card_is_there_and_has_a_source() -> None:
    cards = [*_sized(), *(catalog.find_gpu(gpu, memory_gib=64) for gpu in sorted(SIZELESS))]
    assert len(cards) == N_CARDS
    for card in cards:
        assert card.sources, card.id
        assert all(source.url and source.date for source in card.sources), card.id


def test_every_name_of_every_card_finds_it() -> None:
    seen = 0
    for row in _written_rows():
        for name in (row["id"], row["name"], *row["aliases"]):  # type: ignore[misc]
            assert catalog.find_gpu(str(name).upper(), memory_gib=10).id == row["id"]
            seen += 1
    assert seen > 250


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("4090", "rtx4090"),
        ("RTX 4090", "rtx4090"),
        ("nvidia geforce rtx 4090", "rtx4090"),
        ("a100-80g", "a100-80-sxm"),
        ("A100 80GB", "a100-80-sxm"),
        ("NVIDIA A100-PCIE-40GB", "a100-40-pcie"),
        ("NVIDIA A100 80GB PCIe", "a100-80-pcie"),
        ("h100", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("colab-t4", "t4"),
        ("Tesla T4", "t4"),
        ("L4", "l4"),
        ("l40", "l40"),
        ("l40s", "l40s"),
        ("A10", "a10"),
        ("A10G", "a10g"),
    ],
)
def test_names_people_and_drivers_use(name: str, gpu: str) -> None:
    assert catalog.find_gpu(name).id == gpu


def test_bare_name_of_several_sizes_is_the_smallest() -> None:
    assert catalog.find_gpu("A100").memory_marketing_gb == 40
    assert catalog.find_gpu("v100").memory_marketing_gb == 16
    assert [card.memory_marketing_gb for card in catalog.find_gpu_family("a100")] == [40, 80]
    assert catalog.find_gpu_family("h100") == ()


def test_a_name_that_would_promise_the_larger_size_is_refused() -> None:
    with pytest.raises(UnknownNameError) as caught:
        catalog.find_gpu("4060 ti")  # sold with 8 and 16 GB; the catalogue has the 16 GB card only
    assert caught.value.suggestions[0] == "rtx4060ti-16gb"


def test_unknown_gpu_suggests() -> None:
    with pytest.raises(UnknownNameError, match="unknown gpu 'rtx4091'") as caught:
        catalog.find_gpu("rtx4091")
    assert "rtx4090" in caught.value.suggestions


@pytest.mark.parametrize("gpu", sorted(SIZELESS))
def test_card_of_unknown_memory_asks_for_it(gpu: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        catalog.find_gpu(gpu)
    assert "--vram" in caught.value.hint
    assert catalog.find_gpu(gpu, memory_gib=32).memory_gib == 32
    assert gpu not in catalog.load_gpus()


def test_memory_is_below_the_size_on_the_box() -> None:
    for card in _sized():
        assert card.memory_marketing_gb is not None
        assert 0.9 * card.memory_marketing_gb < card.memory_gib < card.memory_marketing_gb, card.id


def test_derived_memory_is_conservative() -> None:
    """A derived figure is never a larger share of the box's than any reported one of its kind (ECC boards aside)."""
    derived = [card for card in _sized() if not card.memory_gib_is_reported]
    assert len(derived) == 18
    for card in derived:
        assert "derived" in card.notes or "taken" in card.notes, card.id
        assert card.memory_marketing_gb is not None
        assert card.memory_gib <= 0.9895 * card.memory_marketing_gb, card.id


@pytest.mark.parametrize(
    ("gpu", "low", "high"),
    [
        ("t4", 14.56, 14.75),
        ("l4", 22.03, 22.17),
        ("rtx3090", 23.68, 23.70),
        ("rtx4090", 23.52, 23.65),
        ("rtx5090", 31.34, 31.37),
        ("a100-40-sxm", 39.49, 39.56),
        ("a100-80-sxm", 79.15, 79.32),
        ("h100-sxm", 79.09, 79.18),
        ("h200", 139.7, 139.8),
        ("mi300x", 191.68, 191.69),
    ],
)
def test_reported_memory_is_the_low_end_of_what_torch_was_seen_to_report(gpu: str, low: float, high: float) -> None:
    card = catalog.find_gpu(gpu)
    assert card.memory_gib_is_reported
    assert low <= card.memory_gib <= high
    assert card.memory_gib - low < 0.011


def test_rates_are_consistent() -> None:
    for card in _sized():
        peaks = card.peak_dense_tflops
        if "bf16" in peaks:
            assert card.bf16, card.id
            assert peaks["bf16"] == peaks["fp16"], card.id
        if card.bf16 is False:
            assert "bf16" not in peaks, card.id
            assert "tf32" not in peaks, card.id
            assert card.flash_attention_2 is False, card.id
        if card.achieved_bf16_tflops is not None and card.id != "rtx5090":  # its real clocks exceed the nominal boost
            assert card.achieved_bf16_tflops < peaks["bf16"], card.id
        if card.vendor == "NVIDIA" and card.compute_capability is not None:
            assert (card.compute_capability >= (8, 0)) == bool(card.bf16), card.id
            assert (card.flash_attention_3 is True) == (card.compute_capability == (9, 0)), card.id


def test_published_figures_reach_the_record_in_base_units() -> None:
    card = catalog.find_gpu("a100-80-sxm")
    assert card.peak_flops("bf16") == 312e12
    assert card.bandwidth == 2039 * GB
    assert card.memory_bytes == round(79.15 * GIB)
    assert card.peak_flops("fp8") is None
    assert card.link_gbps == 600


def test_geforce_rate_is_that_with_fp32_accumulation() -> None:
    assert catalog.find_gpu("4090").peak_flops("bf16") == 165.2e12


def test_mi250x_is_one_of_its_two_devices() -> None:
    card = catalog.find_gpu("mi250x")
    assert card.memory_marketing_gb == 64
    assert card.peak_flops("bf16") == 191.5e12


def test_prices_have_a_card_a_date_and_an_order() -> None:
    priced = [card for card in _sized() if card.price_usd_per_hour]
    assert len(priced) == len(json.loads((catalog.DATA / "prices.json").read_text())["rows"]) == 35
    for card in priced:
        price = card.price_usd_per_hour
        assert price is not None
        assert price.low <= price.high, card.id
        assert price.source.date.startswith("2026"), card.id
    rtx3080 = catalog.find_gpu("3080").price_usd_per_hour
    assert rtx3080 is not None
    assert rtx3080.source.note.endswith("3080/3080 Ti bucket")


def test_marketed_size_gives_all_such_cards_least_memory_first() -> None:
    cards = catalog.find_gpus_by_marketed_size(24)
    assert {card.id for card in cards} == {"rtx3090", "rtx4090", "a5000", "l4", "a10", "a10g", "a30"}
    assert cards[0].id == "a10"
    assert catalog.find_gpus_by_marketed_size(23) == ()


def test_quantizations_are_what_a_plan_can_name() -> None:
    from typing import get_args

    from profiles.plan import FOUR_BIT, Quantization

    specs = catalog.load_quantizations()
    assert set(specs) == set(get_args(Quantization))
    assert {q.id for q in specs.values() if q.bits_per_weight == 4} == FOUR_BIT
    for spec in specs.values():
        assert spec.trainable == (spec.backend == "none")
    double = catalog.get_quantization("NF4 DQ")
    assert (double.block_size, double.absmax_bits, double.nested_block_size) == (64, 8, 256)


def test_unknown_quantization_lists_all() -> None:
    with pytest.raises(UnknownNameError, match="unknown quantization 'nf5'") as caught:
        catalog.get_quantization("nf5")
    assert "nf4-dq" in caught.value.hint


def test_optimizers() -> None:
    specs = catalog.load_optimizers()
    assert len(specs) == 14
    assert catalog.get_optimizer("adamw_bnb_8bit").id == "adamw_8bit"
    for spec in specs.values():
        assert spec.paged == spec.id.startswith("paged_")
        assert (spec.block_size == 256) == spec.id.endswith("_8bit") == spec.embeddings_fp32
    with pytest.raises(UnknownNameError) as caught:
        catalog.get_optimizer("adamw")
    assert "adamw_torch" in caught.value.suggestions


@pytest.mark.platform
def test_optimizer_ids_are_transformers_names() -> None:
    from transformers.training_args import OptimizerNames

    known = {str(name.value) for name in OptimizerNames}
    specs = catalog.load_optimizers()
    assert set(specs) - known == {"adamw_torch_forloop", "muon"}  # torch's own loop; LLaMA-Factory's
    assert {alias for spec in specs.values() for alias in spec.aliases} <= known


@pytest.mark.platform
@pytest.mark.parametrize("quantization", ["nf4", "nf4-dq", "fp4", "int8"])
def test_quantization_rows_match_bitsandbytes(quantization: str) -> None:
    """bitsandbytes' own tensors, made on the CPU, have the sizes that the row says."""
    import torch
    from bitsandbytes import functional

    spec = catalog.get_quantization(quantization)
    rows, columns = 128, 512
    weight = torch.randn(rows, columns, dtype=torch.float16)
    if spec.per_row_scale:
        codes, scale, _ = functional.int8_vectorwise_quant(weight)
        assert codes.nbytes == weight.numel() * spec.bits_per_weight / 8
        assert (scale.dtype, scale.numel()) == (torch.float32, rows)
        return
    codes, state = functional.quantize_4bit(
        weight, quant_type=quantization[:3], compress_statistics=spec.nested_block_size > 0
    )
    assert codes.nbytes == weight.numel() * spec.bits_per_weight / 8
    blocks = weight.numel() // spec.block_size
    assert state.absmax.nbytes == blocks * spec.absmax_bits / 8
    if spec.nested_block_size:
        assert state.state2.absmax.dtype == torch.float32
        assert state.state2.absmax.numel() == blocks // spec.nested_block_size


@pytest.mark.platform
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit"])
@pytest.mark.parametrize("elements", [4095, 4096, 10_000])
def test_optimizer_rows_match_bitsandbytes(optimizer: str, elements: int) -> None:
    """The states that bitsandbytes makes for one bf16 tensor, in bytes."""
    import bitsandbytes
    import torch

    spec = catalog.get_optimizer(optimizer)
    kind = bitsandbytes.optim.AdamW if "adamw" in optimizer else bitsandbytes.optim.Lion
    parameter = torch.nn.Parameter(torch.ones(elements, dtype=torch.bfloat16))
    made = kind([parameter], optim_bits=8 if spec.block_size else 32)
    made.init_state(made.param_groups[0], parameter, 0, 0)
    states = [value for key, value in made.state[parameter].items() if key.startswith(("state", "absmax"))]
    expected = elements * (spec.state_bytes or 0)
    if spec.block_size and elements < spec.small_tensor_limit:
        expected = elements * 4 * spec.state_tensors
    elif spec.block_size:
        expected += spec.state_tensors * 4 * -(-elements // spec.block_size)
    assert sum(state.nbytes for state in states) == expected


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty catalogue folder of this test's own."""
    monkeypatch.setattr(catalog, "DATA", tmp_path)
    caches = [value for value in vars(catalog).values() if hasattr(value, "cache_clear")]
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


def _write(folder: Path, stem: str, **content: object) -> None:
    (folder / f"{stem}.json").write_text(json.dumps({"sources": {}, **content}))


SOURCE = {"url": "a paper", "date": "2026-01-01"}
SGD = {"id": "sgd", "name": "SGD", "state_tensors": 0, "source": SOURCE}


def test_unknown_key_is_refused_with_file_and_row(own_data: Path) -> None:
    _write(own_data, "optimizers", rows=[SGD, {**SGD, "id": "lion", "momentun": 1}])
    with pytest.raises(InvalidInputError, match=r"^optimizers\.json: lion\.momentun: unknown key"):
        catalog.load_optimizers()


def test_wrong_value_is_refused_with_file_and_row(own_data: Path) -> None:
    _write(own_data, "optimizers", rows=[{**SGD, "state_tensors": -1}])
    with pytest.raises(InvalidInputError, match=r"^optimizers\.json: sgd\.state_tensors: "):
        catalog.load_optimizers()


def test_missing_source_is_refused(own_data: Path) -> None:
    _write(own_data, "optimizers", rows=[{**SGD, "source": "nowhere"}])
    with pytest.raises(InvalidInputError, match="source 'nowhere' is not among the file's sources"):
        catalog.load_optimizers()


@pytest.mark.parametrize("rows", [[SGD, SGD], [{"name": "no id"}]])
def test_rows_need_ids_of_their_own(own_data: Path, rows: list[dict[str, object]]) -> None:
    _write(own_data, "optimizers", rows=rows)
    with pytest.raises(InvalidInputError, match=r"^optimizers\.json: a row has no id"):
        catalog.load_optimizers()


def test_model_rows_are_found_by_id_alias_variant_and_short_name(own_data: Path) -> None:
    row = {"parameters": 8_030_261_248, "config": {"model_type": "llama"}, "source": SOURCE}
    first = {
        **row,
        "id": "meta-llama/Llama-3.1-8B",
        "aliases": ["llama-8b"],
        "variants": ["meta-llama/Llama-3.1-8B-Instruct"],
    }
    others = [{**row, "id": "one/twin"}, {**row, "id": "two/twin"}]
    _write(own_data, "models", rows=[first, *others])
    for name in ("llama-8b", "Llama 8B", "META-LLAMA/llama-3.1-8b", "llama-3.1-8b", "llama-3.1-8b-instruct"):
        assert catalog.find_model_row(name).id == "meta-llama/Llama-3.1-8B"
    with pytest.raises(UnknownNameError) as caught:
        catalog.find_model_row("twin")  # two organisations have one: neither is guessed
    assert set(caught.value.suggestions) == {"one/twin", "two/twin"}

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor import detection
from advisor.hardware import driver_reserve_gib, parse_gpu, resolve_hardware
from profiles.catalog import find_gpus_by_marketed_size, load_gpus
from profiles.errors import AdviseError, InvalidInputError, UnknownNameError, UnsupportedError
from profiles.gpu import GpuSpec, Hardware


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("4090", None, "4090"),
        ("2x a100-80g", 2, "a100-80g"),
        ("8xH100", 8, "H100"),
        ("4 x 4090", 4, "4090"),
        ("2×h100", 2, "h100"),
        ("2*h100", 2, "h100"),
        ("a100 x4", 4, "a100"),
        ("mi300x", None, "mi300x"),
        ("2x mi300x", 2, "mi300x"),
        (" rtx 3060 ", None, "rtx 3060"),
    ],
)
def test_parse_gpu(text: str, count: int | None, name: str) -> None:
    assert parse_gpu(text) == (count, name)


COUNTS = ["3x", "0x a100", "-1x a100", "1.5x a100", "2x2x a100", "two a100", "99999999999999999x a100", "..x a100"]


@pytest.mark.parametrize("text", ["", "  ", *COUNTS, "2x (", "a\nb", "a\x00b", "a" * 200])
def test_unreadable_gpu_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^gpu: ") as caught:
        resolve_hardware(text)
    assert caught.value.hint


def test_named_card_counts_from_text_or_argument() -> None:
    assert resolve_hardware("2x a100-80g").n_gpus == 2
    assert resolve_hardware("a100-80g", n_gpus=4).n_gpus == 4
    assert resolve_hardware("2x a100-80g", n_gpus=2).n_gpus == 2
    with pytest.raises(InvalidInputError, match=r"n_gpus: 3 contradicts"):
        resolve_hardware("2x a100-80g", n_gpus=3)


def test_named_card_assumes_nothing() -> None:
    found = resolve_hardware("rtx-4090")
    assert found == Hardware(gpu=load_gpus()["rtx4090"])


def test_bare_name_of_two_sizes_says_which_was_taken() -> None:
    found = resolve_hardware("a100")
    assert found.gpu.id == "a100-40-sxm"
    assert found.assumptions == ("a100 is sold with 40 and 80 GB: the smallest is assumed (NVIDIA A100 SXM4 40GB)",)


def test_derived_memory_is_said() -> None:
    assert "derived" in resolve_hardware("gh200").assumptions[0]


def test_unknown_card_and_card_without_memory() -> None:
    with pytest.raises(UnknownNameError):
        resolve_hardware("rtx9090")
    with pytest.raises(UnsupportedError):
        resolve_hardware("m4max")
    assert resolve_hardware("m4max", 48).gpu.memory_gib == 48


def test_size_alone_is_the_least_that_such_cards_report() -> None:
    found = resolve_hardware(vram_gib=24)
    assert found.gpu.memory_gib == 22.02
    assert found.gpu.vendor == "unnamed"
    assert found.candidates[0] == "a10"
    assert len(found.candidates) == 7
    assert "22.02 to 23.68 GiB" in found.assumptions[0]
    assert found.gpu.bf16 is True
    assert found.gpu.peak_dense_tflops == {}


def test_size_alone_never_promises_more_than_any_such_card_has() -> None:
    sizes = {card.memory_marketing_gb for card in load_gpus().values()}
    assert len(sizes) == 19
    for size in sizes:
        assert size is not None
        budget = resolve_hardware(vram_gib=size).gpu.memory_gib
        assert budget == min(card.memory_gib for card in find_gpus_by_marketed_size(size))


def test_what_candidates_disagree_on_stays_unknown() -> None:
    assert resolve_hardware(vram_gib=16).gpu.bf16 is None  # T4, V100, P100: no; RTX 4080: yes


def test_size_of_no_known_card_loses_a_driver_reserve() -> None:
    found = resolve_hardware(vram_gib=20, n_gpus=2)
    assert found.gpu.memory_gib == 19.3
    assert found.candidates == ()
    assert found.n_gpus == 2
    assert "0.7 GiB that the driver keeps" in found.assumptions[0]


def test_driver_reserve_covers_every_card_without_ecc_loss() -> None:
    checked = 0
    for card in load_gpus().values():
        size = card.memory_marketing_gb
        assert size is not None
        if card.memory_gib_is_reported and card.memory_gib / size > 0.963:
            assert size - driver_reserve_gib(size) <= card.memory_gib, card.id
            checked += 1
    assert checked >= 15


@pytest.mark.parametrize(
    ("vram", "memory", "said"),
    [
        (24, 23.52, "24 GB is the size on the box"),
        (23.52, 23.52, "as given"),
        (12, 12.0, "as given"),
        (48, 47.3, "warning: 48 GiB is more than"),
    ],
)
def test_card_and_size_together(vram: float, memory: float, said: str) -> None:
    found = resolve_hardware("4090", vram)
    assert (found.gpu.id, found.gpu.memory_gib) == ("rtx4090", memory)
    assert said in found.assumptions[0]
    assert found.gpu.peak_flops("bf16") == 165.2e12


def test_size_picks_the_member_of_a_family() -> None:
    assert resolve_hardware("a100", 80).gpu.id == "a100-80-sxm"


@pytest.mark.parametrize("vram", [0, -1, math.nan, math.inf, 24_576, True, "24", 0.5])
def test_bad_size_is_refused(vram: object) -> None:
    with pytest.raises(InvalidInputError, match=r"^vram: ") as caught:
        resolve_hardware(vram_gib=vram)  # type: ignore[arg-type]
    assert "--vram 24" in caught.value.hint


@pytest.mark.parametrize("count", [0, -2, 10**9, True, 1.5])
def test_bad_count_is_refused(count: object) -> None:
    with pytest.raises(InvalidInputError, match=r"^n_gpus: "):
        resolve_hardware("4090", n_gpus=count)  # type: ignore[arg-type]


def test_inline_card() -> None:
    found = resolve_hardware({"memory_gib": 40, "peak_dense_tflops": {"bf16": 100}}, n_gpus=2)
    assert (found.gpu.memory_gib, found.gpu.peak_flops("bf16"), found.n_gpus) == (40, 100e12, 2)
    assert resolve_hardware({"name": "mine"}, 12).gpu.name == "mine"


def test_dumped_card_comes_back_whole() -> None:
    card = load_gpus()["h100-sxm"]
    assert resolve_hardware(card.model_dump(mode="json")).gpu == card


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({}, r"gpu\.memory_gib: is missing"),
        ({"memory_gib": -1}, r"gpu\.memory_gib: "),
        ({"memory_gib": math.nan}, r"gpu\.memory_gib: "),
        ({"memory_gib": 10**6}, r"gpu\.memory_gib: "),
        ({"memory_gib": 24, "vram": 1}, r"gpu\.vram: unknown key"),
        ({"memory_gib": 24, "peak_dense_tflops": {"bf17": 1}}, r"gpu\.peak_dense_tflops\.bf17"),
    ],
)
def test_bad_inline_card_is_refused(fields: dict[str, object], where: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{where}"):
        resolve_hardware(fields)


CPU = Hardware(gpu=GpuSpec(id="cpu", name="CPU", vendor="CPU", memory_gib=16), origin="cpu")
TWO = Hardware(gpu=load_gpus()["rtx3090"], n_gpus=2, origin="detected")


def test_nothing_given_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "detect_hardware", lambda: TWO)
    assert resolve_hardware() is TWO
    assert resolve_hardware(n_gpus=2) is TWO
    four = resolve_hardware(n_gpus=4)
    assert four.n_gpus == 4
    assert "this machine has 2" in four.assumptions[-1]


def test_several_cards_on_a_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "detect_hardware", lambda: CPU)
    with pytest.raises(InvalidInputError, match=r"^n_gpus: 4 cards on a CPU"):
        resolve_hardware(n_gpus=4)


def test_cpu_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "detect_cpu", lambda: CPU)
    assert resolve_hardware("CPU") is CPU


@given(
    st.one_of(st.text(max_size=30), st.from_regex(r"[0-9.]{0,3} ?x? ?(a100|4090|h100|t4)[ -]?[0-9gb]*", fullmatch=True))
)
def test_any_text_is_a_card_or_an_error_with_a_hint(text: str) -> None:
    try:
        found = resolve_hardware(text, vram_gib=16)
    except AdviseError as error:
        hint = error.hint
    else:
        hint = found.gpu.name
    assert hint


@given(st.floats(0.1, 4096))
def test_unnamed_card_has_less_than_its_size(size: float) -> None:
    try:
        found = resolve_hardware(vram_gib=size)
    except InvalidInputError:
        assert size <= 1.4
    else:
        assert 0 < found.gpu.memory_gib < size


@given(st.floats(0.1, 4096))
def test_named_card_never_gets_more_than_was_given(size: float) -> None:
    assert resolve_hardware("4090", max(size, 2.0)).gpu.memory_gib <= max(size, 2.0)

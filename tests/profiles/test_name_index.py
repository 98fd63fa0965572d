import pytest

from profiles.errors import UnknownNameError
from profiles.name_index import NameIndex, normalize_name


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("RTX 4090", "rtx4090"),
        ("rtx-4090", "rtx4090"),
        ("  NVIDIA GeForce RTX 4090 ", "nvidiageforcertx4090"),
        ("A100-SXM4-80GB", "a100sxm4-80gb"),
        ("a100_80gb", "a100-80gb"),
        ("meta-llama/Llama-3.1-8B", "metallamallama3.1-8b"),
        ("Straße", "strasse"),
        ("", ""),
    ],
)
def test_normalize_name(typed: str, key: str) -> None:
    assert normalize_name(typed) == key


def test_separators_between_digits_keep_models_apart() -> None:
    assert normalize_name("Qwen2.5-7B") != normalize_name("Qwen2-57B")
    assert normalize_name("qwen2-1.5b") != normalize_name("qwen2-15b")


def test_two_rows_cannot_claim_one_name() -> None:
    with pytest.raises(ValueError, match=r"'A 1' belongs to both 'one' and 'two'"):
        NameIndex("gpu", {"one": ["a1"], "two": ["A 1"]}, "")


def test_find_is_exact_and_does_not_depend_on_order() -> None:
    rows = {"a10": ["nvidia a10"], "a100": [], "a10g": []}
    for names in (rows, dict(reversed(rows.items()))):
        index = NameIndex("gpu", names, "")
        assert [index.find(name) for name in ("A10", "a-100", "A10G")] == ["a10", "a100", "a10g"]
        assert index.get("a1") is None


def test_unknown_name_suggests_near_ids_once_each() -> None:
    index = NameIndex("gpu", {"rtx4090": ["4090", "rtx 4090 24gb"], "h100": []}, "All: rtx4090, h100.")
    with pytest.raises(UnknownNameError) as caught:
        index.find("rtx 4091")
    assert caught.value.suggestions == ("rtx4090",)
    assert caught.value.code == "unknown-gpu"
    assert caught.value.hint == "Did you mean rtx4090? All: rtx4090, h100."

from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from profiles.dataset import DatasetFacts, LengthDistribution

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=300)
SEQ_LEN = st.integers(1, 8000)


def distribution(lengths):
    return LengthDistribution.from_lengths(lengths, counted_by="test")


def skewed(n=20_000, seed=1):
    random = Random(seed)
    return [int(random.lognormvariate(5, 1)) + 1 for _ in range(n)]


def bimodal():
    return [50] * 500 + [3000] * 500


@given(LENGTHS)
def test_keeps_minimum_maximum_and_mean(lengths):
    d = distribution(lengths)
    assert d.quantile(0) == min(lengths)
    assert d.max == d.quantile(1) == max(lengths)
    assert d.mean == pytest.approx(mean(lengths))
    assert d.examples == len(lengths)


@given(LENGTHS, SEQ_LEN, SEQ_LEN)
def test_truncation_is_bounded_and_monotone(lengths, a, b):
    d = distribution(lengths)
    short, long = d.truncated(min(a, b)), d.truncated(max(a, b))
    assert 0 <= long.tokens_lost <= short.tokens_lost + 1e-9 <= 1 + 1e-9
    assert 0 <= long.examples_cut <= short.examples_cut + 1e-9
    assert d.mean_len(min(a, b)) <= d.mean_len(max(a, b)) + 1e-9
    assert d.mean_len(a) <= min(a, d.mean) + 1e-6


@given(LENGTHS)
def test_nothing_is_cut_at_the_longest(lengths):
    cut = distribution(lengths).truncated(max(lengths))
    assert cut.examples_cut == 0
    assert cut.tokens_lost == pytest.approx(0, abs=1e-9)


@given(LENGTHS, SEQ_LEN, st.integers(1, 64), st.integers(1, 64))
def test_padding_is_bounded_and_grows_with_the_batch(lengths, seq_len, a, b):
    d = distribution(lengths)
    small, large = d.padded_mean(seq_len, min(a, b)), d.padded_mean(seq_len, max(a, b))
    assert d.mean_len(seq_len) - 1e-6 <= small <= large + 1e-6
    assert large <= min(seq_len, d.max) + 1e-6
    grouped = d.padded_mean(seq_len, a, group_by_length=True)
    assert d.mean_len(seq_len) - 1e-6 <= grouped <= d.padded_mean(seq_len, a) + 1e-6


@given(LENGTHS, SEQ_LEN)
def test_a_batch_of_one_is_not_padded(lengths, seq_len):
    d = distribution(lengths)
    assert d.padded_mean(seq_len, 1) == pytest.approx(d.mean_len(seq_len))


@given(LENGTHS, SEQ_LEN)
def test_packing_fills_more_than_half_of_all_rows_but_the_last(lengths, seq_len):
    efficiency = distribution(lengths).packing_efficiency(seq_len, len(lengths))
    assert 0 < efficiency <= 1
    total = sum(min(x, seq_len) for x in lengths)
    if total >= 4 * seq_len:
        assert efficiency > 0.4


@pytest.mark.parametrize("lengths", [skewed(), bimodal(), [100] * 9999 + [100_000], list(range(1, 2001))])
@pytest.mark.parametrize("seq_len", [64, 512, 4096])
def test_against_brute_force(lengths, seq_len):
    d, random, k = distribution(lengths), Random(2), 8
    cut = [min(x, seq_len) for x in lengths]
    assert d.mean_len(seq_len) == pytest.approx(mean(cut), rel=0.01)
    truncation = d.truncated(seq_len)
    assert truncation.tokens_lost == pytest.approx(1 - sum(cut) / sum(lengths), abs=0.01)
    assert truncation.examples_cut == pytest.approx(mean(x > seq_len for x in lengths), abs=0.01)
    padded = mean(max(random.choices(cut, k=k)) for _ in range(8000))
    assert d.padded_mean(seq_len, k) == pytest.approx(padded, rel=0.04)
    grouped = []
    for _ in range(40):  # what LengthGroupedSampler does: sort within 50 batches
        grouped += sorted(random.choices(cut, k=50 * k))[k - 1 :: k]
    assert d.padded_mean(seq_len, k, group_by_length=True) == pytest.approx(mean(grouped), rel=0.05)


def pack_brutally(lengths, seq_len):
    """Best fit decreasing, the slow way."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [s for s in spaces if s >= length]
        if fitting:
            spaces.remove(min(fitting))
            spaces.append(min(fitting) - length)
        else:
            spaces.append(seq_len - length)
    return sum(lengths) / (len(spaces) * seq_len)


@pytest.mark.parametrize("lengths", [skewed(1000), bimodal(), [7] * 1000])
@pytest.mark.parametrize("seq_len", [64, 512, 4096])
def test_packing_against_brute_force(lengths, seq_len):
    expected = pack_brutally([min(x, seq_len) for x in lengths], seq_len)
    assert distribution(lengths).packing_efficiency(seq_len) == pytest.approx(expected, abs=0.03)


@pytest.mark.platform
@pytest.mark.parametrize("seq_len", [256, 1024])
def test_packing_against_trl(seq_len):
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    lengths = skewed(3000, seed=3)
    rows = pack_dataset(Dataset.from_dict({"input_ids": [[0] * n for n in lengths]}), seq_len, "bfd")
    expected = sum(min(n, seq_len) for n in lengths) / (len(rows) * seq_len)
    assert distribution(lengths).packing_efficiency(seq_len, len(lengths)) == pytest.approx(expected, abs=0.02)


def test_a_known_case():
    d = distribution([3, 9])
    assert (d.p50, d.mean, d.max) == (3, 6, 9)
    assert d.truncated(5).examples_cut == 0.5
    assert d.truncated(5).tokens_lost == pytest.approx(4 / 12)
    assert d.padded_mean(100, 2) == pytest.approx(0.25 * 3 + 0.75 * 9)


def test_a_known_longest_changes_nothing_but_the_maximum():
    d = distribution([10, 20, 30])
    longer = d.with_longest(500)
    assert longer.max == longer.quantile(1) == 500
    assert longer.mean == pytest.approx(d.mean)
    assert longer.truncated(40).examples_cut == 0
    assert d.with_longest(5) == d


@pytest.mark.parametrize(
    "changes", [{"levels": (0.0, 0.5)}, {"lengths": (3.0, 2.0)}, {"lengths": (1.0,)}, {"levels": (0.1, 1.0)}]
)
def test_refuses_curves_that_cannot_be(changes):
    with pytest.raises(ValidationError):
        LengthDistribution(**{"examples": 2, "levels": (0, 1), "lengths": (1, 2), "counted_by": "test", **changes})


def test_refuses_no_lengths_and_bad_shares():
    with pytest.raises(ValueError, match="at least one"):
        distribution([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        distribution([1]).quantile(1.5)


def test_facts_survive_json():
    facts = DatasetFacts(
        path="a.jsonl",
        format="alpaca",
        form="prompt-completion",
        examples=1000,
        characters=9,
        lengths=distribution(skewed(1000)),
        fingerprint="0" * 64,
    )
    text = facts.model_dump_json()
    assert DatasetFacts.model_validate_json(text) == facts
    assert len(text) < 4000
    assert facts.tokens == pytest.approx(1000 * facts.lengths.mean)

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advisor.dataset import read_dataset, split
from profiles.errors import InvalidInputError


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    texts=st.lists(st.integers(0, 30).map(str), min_size=2, max_size=80).filter(lambda x: len(set(x)) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_sides_are_disjoint_complete_and_not_empty(tmp_path, texts, fraction, seed):
    dataset = read_dataset(write(tmp_path / "a.jsonl", texts))
    train, evaluation = split(dataset, fraction, seed)
    left, right = [e["text"] for e in train], [e["text"] for e in evaluation]
    assert left
    assert right
    assert not set(left) & set(right)
    assert sorted(left + right) == sorted(texts)
    assert (len(train), len(evaluation)) == (len(left), len(right))


def test_the_fraction_is_met_where_all_examples_differ(tmp_path):
    dataset = read_dataset(write(tmp_path / "a.jsonl", map(str, range(1000))))
    train, evaluation = split(dataset, 0.05, 42)
    assert (len(train), len(evaluation)) == (950, 50)
    assert train.fingerprint != evaluation.fingerprint


def test_a_seed_gives_one_split(tmp_path):
    dataset = read_dataset(write(tmp_path / "a.jsonl", map(str, range(100))))
    first, again, other = (list(split(dataset, 0.2, seed).evaluation) for seed in (1, 1, 2))
    assert first == again != other


def test_a_split_of_a_split_stays_inside_it(tmp_path):
    dataset = read_dataset(write(tmp_path / "a.jsonl", map(str, range(100))))
    train, evaluation = split(dataset, 0.2, 1)
    smaller, test = split(train, 0.25, 1)
    sides = [{e["text"] for e in side} for side in (smaller, test, evaluation)]
    assert [len(side) for side in sides] == [60, 20, 20]
    assert len(set.union(*sides)) == 100


def test_many_copies_do_not_blow_up_the_evaluation_side(tmp_path):
    dataset = read_dataset(write(tmp_path / "a.jsonl", ["copy"] * 900 + list(map(str, range(100)))))
    sizes = {len(split(dataset, 0.02, seed).evaluation) for seed in range(20)}
    assert sizes == {20}
    dataset = read_dataset(write(tmp_path / "b.jsonl", ["a"] * 900 + ["b"] * 100))
    assert len(split(dataset, 0.02, 1).evaluation) == 100


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, float("nan")])
def test_refuses_impossible_fractions(tmp_path, fraction):
    dataset = read_dataset(write(tmp_path / "a.jsonl", ["a", "b"]))
    with pytest.raises(InvalidInputError, match="eval_fraction"):
        split(dataset, fraction, 1)


def test_refuses_what_cannot_be_split(tmp_path):
    dataset = read_dataset(write(tmp_path / "a.jsonl", ["a", "a", "a"]))
    with pytest.raises(InvalidInputError, match="fewer than two different examples"):
        split(dataset, 0.5, 1)

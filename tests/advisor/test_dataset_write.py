import json

import pytest

from advisor.dataset import read_dataset, split, write_normalised
from profiles.errors import InvalidInputError, UnsupportedError

ALPACA = [{"instruction": f"q{i}", "input": "", "output": f"r{i} é"} for i in range(20)]
CHAT = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}]


def read(tmp_path, rows, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_dataset(path)


def test_what_is_written_is_what_was_read(tmp_path):
    dataset = read(tmp_path, ALPACA)
    out = tmp_path / "new" / "train.jsonl"
    assert write_normalised(dataset, out) == 20
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines == list(dataset)
    assert read_dataset(out).fingerprint == dataset.fingerprint
    assert [path.name for path in out.parent.iterdir()] == ["train.jsonl"]


def test_views_are_written_apart(tmp_path):
    train, evaluation = split(read(tmp_path, ALPACA), 0.25, 1)
    assert write_normalised(train, tmp_path / "train.jsonl") == 15
    assert write_normalised(evaluation, tmp_path / "eval.jsonl") == 5


def test_without_a_chat_template_alpaca_becomes_plain_text(tmp_path):
    write_normalised(read(tmp_path, ALPACA), tmp_path / "out.jsonl", chat_template=False)
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first["completion"] == "r0 é"
    assert "### Instruction:\nq0\n\n### Response:\n" in first["prompt"]


def test_without_a_chat_template_conversations_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="no chat template"):
        write_normalised(read(tmp_path, CHAT), tmp_path / "out.jsonl", chat_template=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_the_data_is_never_overwritten(tmp_path):
    dataset = read(tmp_path, ALPACA)
    with pytest.raises(InvalidInputError, match="would overwrite"):
        write_normalised(dataset, dataset.path)


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    dataset = read(tmp_path, ALPACA)
    out = tmp_path / "train.jsonl"
    out.write_text("old")
    dataset.path.write_text("changed")
    with pytest.raises(InvalidInputError, match="changed on disk"):
        write_normalised(dataset, out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "train.jsonl"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        write_normalised(read(tmp_path, ALPACA), tmp_path / "file" / "train.jsonl")


@pytest.mark.platform
@pytest.mark.parametrize("rows", [ALPACA, CHAT, [{"prompt": "q", "completion": "r"}], [{"text": "t"}]])
def test_trl_understands_what_is_written(tmp_path, rows):
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    dataset = read(tmp_path, rows)
    write_normalised(dataset, tmp_path / "train.jsonl")
    files = str(tmp_path / "train.jsonl")
    loaded = load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(rows)
    assert set(loaded.column_names) in ({"prompt", "completion"}, {"messages"}, {"text"})
    assert is_conversational(loaded[0]) == (rows is ALPACA or rows is CHAT)

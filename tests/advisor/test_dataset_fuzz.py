"""Whatever the bytes, reading ends in a dataset or in an error that a user can act on."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from advisor.dataset import measure_lengths, read_dataset, write_normalised
from profiles.errors import InvalidInputError

CHAT = {"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}], "tools": None}
ROWS = [{"instruction": "a", "input": "", "output": "b"}, {"instruction": "c\n", "input": "d", "output": "好"}]
SEEDS = {
    "jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "json": json.dumps([CHAT, CHAT], ensure_ascii=False, indent=1).encode(),
    "csv": b'prompt,completion\na,b\n"c,\nd","e ""f"""\n',
    "txt": b"one\n\ntwo\nthree",
    "jsonl.gz": gzip.compress(b'{"text": "a"}\n{"text": "b"}\n', mtime=0),
}
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)


def read_or_refuse(path, tmp_path):
    """The message of a refusal, empty if all went well."""
    try:
        dataset = read_dataset(path)
    except InvalidInputError as error:
        return error.message
    assert len(list(dataset)) == len(dataset) > 0
    assert write_normalised(dataset, tmp_path / "out.jsonl") == len(dataset)
    assert read_dataset(tmp_path / "out.jsonl").fingerprint == dataset.fingerprint
    facts = dataset.facts(measure_lengths(dataset, None))
    assert facts.lengths.max > 0
    return ""


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", SEEDS)
@FUZZ
@given(data=st.data())
def test_damaged_bytes(tmp_path, suffix, data):
    content = bytearray(SEEDS[suffix])
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 8, len(content))))
        content[start:end] = data.draw(st.binary(max_size=4) | st.sampled_from([b"\n", b'"', b"{", b"]", b",", b"\0"]))
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(content)
    assert path.name in (read_or_refuse(path, tmp_path) or path.name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls", "type", "text"]), inner)
    ),
    max_leaves=8,
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": JSON})
COLUMNS = ["instruction", "input", "output", "system", "history", "messages", "conversations", "tools", "prompt"]
COLUMNS += ["completion", "chosen", "rejected", "text", "label", "images"]


@FUZZ
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(COLUMNS), JSON | st.lists(TURN, max_size=3) | st.just("x"), max_size=6),
        max_size=4,
    )
)
@example(rows=[{"messages": [{"role": ["user"], "content": "x"}]}])
@example(rows=[{"prompt": "p", "chosen": {"role": "assistant", "content": "x"}, "rejected": {}}])
@example(rows=[{"text": "t", "label": []}])
@example(rows=[{"prompt": "p", "completion": "c", "label": []}])
@example(rows=[{"prompt": "p", "completion": "c", "label": {}}])
def test_rows_of_any_values(tmp_path, rows):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert path.name in (read_or_refuse(path, tmp_path) or path.name)

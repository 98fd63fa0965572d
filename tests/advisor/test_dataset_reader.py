"""Reading: every file kind, every way in which a file can be broken, and what the messages say."""

import csv
import gzip
import json
import os
import time
from pathlib import Path

import pytest

from advisor.dataset import read_dataset
from advisor.dataset import reader as reader_module
from advisor.dataset.lines import MAX_ROW_BYTES
from profiles.errors import AdviseError, InvalidInputError

ROWS = [{"instruction": f"Say {i}", "input": "", "output": f"{i}, gladly — 好"} for i in range(5)]


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def write_json(path, rows):
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return path


def write_json_data(path, rows):
    path.write_text(json.dumps({"version": 1, "data": rows}), encoding="utf-8")
    return path


def write_csv(path, rows):
    delimiter = "\t" if ".tsv" in path.name else ","
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


WRITERS = [
    ("a.jsonl", write_jsonl),
    ("a.ndjson", write_jsonl),
    ("a.json", write_json),
    ("b.json", write_json_data),
    ("a.csv", write_csv),
    ("a.tsv", write_csv),
    ("a.parquet", write_parquet),
]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_every_file_kind_gives_the_same_dataset(tmp_path, name, write):
    expected = read_dataset(write_jsonl(tmp_path / "reference.jsonl", ROWS))
    dataset = read_dataset(write(tmp_path / name, ROWS))
    assert dataset.format.name == "alpaca"
    assert len(dataset) == 5
    assert list(dataset) == list(expected)
    assert dataset.fingerprint == expected.fingerprint


@pytest.mark.parametrize(("name", "write"), [w for w in WRITERS if w[0] != "a.parquet"])
def test_every_text_kind_may_be_compressed(tmp_path, name, write):
    plain = write(tmp_path / name, ROWS)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_dataset(packed)) == list(read_dataset(plain))


@pytest.mark.parametrize(
    ("name", "write", "place"),
    [
        ("a.jsonl", write_jsonl, "a.jsonl:3"),
        ("a.json", write_json, "a.json:12 (item 3)"),
        ("b.json", write_json_data, "b.json:item 3"),
        ("a.csv", write_csv, "a.csv:row 3"),
        ("a.parquet", write_parquet, "a.parquet:row 3"),
    ],
)
def test_a_broken_row_is_named(tmp_path, name, write, place):
    rows = [*ROWS[:2], {**ROWS[2], "output": " "}, *ROWS[3:]]
    with pytest.raises(InvalidInputError) as caught:
        read_dataset(write(tmp_path / name, rows))
    assert caught.value.message == f"{tmp_path / place}: output is empty"
    assert "alpaca" in caught.value.hint
    assert "instruction, output" in caught.value.hint


def test_all_broken_rows_are_counted_and_the_first_five_named(tmp_path):
    rows = [ROWS[0], *[{"instruction": "x", "output": 3}] * 7, ROWS[1]]
    with pytest.raises(InvalidInputError) as caught:
        read_dataset(write_jsonl(tmp_path / "a.jsonl", rows))
    message = caught.value.message
    assert message.startswith(f"{tmp_path}/a.jsonl:2: output must be text, found a number")
    assert message.count("a.jsonl:") == 5
    assert "and 2 more" in message
    assert "7 of 9 rows are broken" in message


def test_broken_rows_are_left_out_on_request(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], {"instruction": "x", "output": ""}, ROWS[1]])
    dataset = read_dataset(path, skip_invalid=True)
    assert (len(dataset), dataset.skipped) == (2, 1)
    assert [e["completion"][0]["content"] for e in dataset] == [ROWS[0]["output"], ROWS[1]["output"]]
    assert [where for _, where, _ in dataset.located()] == [f"{path}:1", f"{path}:3"]


def test_mixed_formats_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], {"text": "something else"}])
    with pytest.raises(InvalidInputError, match=r"a.jsonl:2: instruction, output missing; it looks like text, and"):
        read_dataset(path)


BROKEN_FILES = {
    "empty": ("a.jsonl", b"", "holds no examples"),
    "only blank lines": ("a.jsonl", b"\n\n  \n", "holds no examples"),
    "an empty array": ("a.json", b"[]", "holds no examples"),
    "only a header": ("a.csv", b"text\n", "holds no examples"),
    "blank documents": ("a.jsonl", b'{"text": " "}\n', r"holds no examples \(1 blank ones\)"),
    "utf-16": ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is utf-16 text"),
    "utf-16 without a mark": ("a.jsonl", '{"text": "a"}'.encode("utf-16-le"), "NUL byte at byte 1"),
    "latin-1": ("a.csv", "text\ncafé\n".encode("latin-1"), r"a.csv:2: byte 8 \(0xe9\) is not valid utf-8"),
    "NUL": ("a.jsonl", b'{"text": "a"}\n{"text": "\0"}\n', "a.jsonl:2: NUL byte at byte 24"),
    "cut-off line": ("a.jsonl", b'{"text": "a"}\n{"text": "b', r"a.jsonl:2: the JSON is cut off"),
    "cut-off array": ("a.json", b'[{"text": "a"},\n{"text": "b', r"a.json:2 \(item 2\): the JSON is cut off"),
    "array without an end": ("a.json", b'[{"text": "a"}', r"\(item 1\): the file is cut off inside the array"),
    "array without a comma": ("a.json", b'[{"text": "a"} {"text": "b"}]', "a comma is missing"),
    "trailing comma": ("a.json", b'[{"text": "a"},]', r"\(item 2\): not valid JSON"),
    "text after the array": ("a.json", b'[{"text": "a"}] x', "more text after the end"),
    "one object": ("a.json", b'{"a": 1}', "is one JSON object with the keys a"),
    "lines called .json": ("a.json", b'{"text": "a"}\n{"text": "b"}\n', "several JSON values"),
    "not JSON": ("a.json", b"hello", "neither a JSON array"),
    "an array called .jsonl": ("a.jsonl", b'[\n{"text": "a"}\n]\n', "holds a JSON array"),
    "a number a line": ("a.jsonl", b"1\n2\n", "a JSON object is expected, found a number"),
    "two values a line": ("a.jsonl", b'{"text": "a"} {"text": "b"}\n', "more text after the JSON value"),
    "bad JSON": ("a.jsonl", b"{'text': 'a'}\n", "not valid JSON: .* at column 2"),
    "NaN": ("a.jsonl", b'{"text": "a", "x": NaN}\n', "NaN is not JSON"),
    "a key twice": ("a.jsonl", b'{"text": "a", "text": "b"}\n', "the key 'text' stands twice"),
    "nested deeply": ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "nested too deeply"),
    "half a surrogate pair": ("a.jsonl", b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
    "unknown columns": ("a.jsonl", b'{"q": "a", "r": "b"}\n', "the columns q, r are of no known format"),
    "a column twice": ("a.csv", b"text,text\na,b\n", "the header names 'text' twice"),
    "semicolons": ("a.csv", b"prompt;completion\na;b\n", "the header is one cell"),
    "too many cells": ("a.csv", b"prompt,completion\na,b,c\n", "a.csv:row 1: 3 cells, the header has 2"),
    "an open quote": ("a.csv", b'text\n"abc\n', "broken quoting"),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-12], "gzip data is damaged or cut off"),
    "not gzip": ("a.jsonl.gz", b'{"text": "a"}\n', "gzip data is damaged or cut off"),
    "not parquet": ("a.parquet", b"PAR1 nonsense", "is not readable parquet"),
    "an unknown kind": ("a.docx", b"x", "no known kind '.docx'"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_file_is_refused_with_a_reason(tmp_path, case):
    name, content, message = BROKEN_FILES[case]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_dataset(tmp_path / name)
    assert name in caught.value.message


def test_a_missing_path_and_a_bad_limit(tmp_path):
    with pytest.raises(InvalidInputError, match="does not exist"):
        read_dataset(tmp_path / "nowhere.jsonl")
    with pytest.raises(InvalidInputError, match="limit"):
        read_dataset(write_jsonl(tmp_path / "a.jsonl", ROWS), limit=0)


def test_a_gigantic_line_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "short"}, {"text": "x" * MAX_ROW_BYTES}])
    with pytest.raises(InvalidInputError, match=r"a.jsonl:2: the line is longer than 16.0 MiB"):
        read_dataset(path)


def test_a_parquet_file_without_pyarrow(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(AdviseError, match="needs pyarrow") as caught:
        read_dataset(path)
    assert caught.value.code == "missing-package"


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext\r\nhello\r\n")
    assert list(read_dataset(path)) == [{"text": "hello"}]


def test_csv_cells_may_hold_line_breaks_and_message_lists(tmp_path):
    chat = json.dumps([{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}])
    path = write_csv(tmp_path / "a.csv", [{"messages": chat}])
    assert list(read_dataset(path)) == [{"messages": json.loads(chat)}]
    path = write_csv(tmp_path / "b.csv", [{"text": "a\n\nb"}])
    assert list(read_dataset(path)) == [{"text": "a\n\nb"}]


def test_plain_text_is_separated_by_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\nstill one\n\n\n  \ntwo\n")
    dataset = read_dataset(path)
    assert list(dataset) == [{"text": "one\nstill one"}, {"text": "two\n"}]
    assert [where for _, where, _ in dataset.located()] == [f"{path}:1", f"{path}:6"]


def test_plain_text_without_blank_lines_is_one_document_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree")
    assert [e["text"] for e in read_dataset(path)] == ["one", "two", "three"]


def test_a_folder_of_texts_is_one_document_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\nstill one")
    (tmp_path / "b.txt").write_text("two")
    assert [e["text"] for e in read_dataset(tmp_path)] == ["one\n\nstill one", "two"]


def test_a_folder_is_read_in_order_and_other_files_are_passed_over(tmp_path):
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "sub" / "2.jsonl", ROWS[3:])
    write_jsonl(tmp_path / "1.jsonl", ROWS[:3])
    write_json(tmp_path / "dataset_info.json", {"x": {}})
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.jsonl").write_text("x")
    dataset = read_dataset(tmp_path)
    assert [file.name for file in dataset.files] == ["1.jsonl", "2.jsonl"]
    assert list(dataset) == list(read_dataset(write_jsonl(tmp_path / "sub" / "all.jsonl", ROWS)))


@pytest.mark.parametrize("name", ["test.jsonl", "validation-00000-of-00001.jsonl", "dev/a.jsonl"])
def test_test_data_beside_training_data_is_noticed(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_jsonl(tmp_path / name, ROWS)
    assert len(read_dataset(tmp_path)) == 5
    write_jsonl(tmp_path / "contest_developers.jsonl", ROWS)
    with pytest.raises(InvalidInputError, match="holds test data") as caught:
        read_dataset(tmp_path)
    assert name in caught.value.message


def test_an_empty_folder(tmp_path):
    with pytest.raises(InvalidInputError, match="holds no data files"):
        read_dataset(tmp_path)


def test_limit_stops_early_and_says_so(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"broken": 1}])
    dataset = read_dataset(path, limit=3)
    assert (len(dataset), len(list(dataset)), dataset.complete) == (3, 3, False)
    assert read_dataset(write_jsonl(path, ROWS), limit=5).complete


def test_facts_count_duplicates_blanks_characters_and_columns(tmp_path):
    from advisor.dataset import measure_lengths

    rows = [{"text": "abc", "id": 1}, {"text": "  ", "id": 2}, {"text": "abc", "id": 3}, {"text": "xy"}]
    dataset = read_dataset(write_jsonl(tmp_path / "a.jsonl", rows))
    facts = dataset.facts(measure_lengths(dataset, None))
    assert (facts.examples, facts.duplicates, facts.empty, facts.characters) == (3, 1, 1, 8)
    assert facts.ignored_columns == ("id",)
    assert facts.path == str(tmp_path / "a.jsonl")
    assert len(facts.fingerprint) == 64


def test_the_fingerprint_follows_the_content_only(tmp_path):
    a = read_dataset(write_jsonl(tmp_path / "a.jsonl", ROWS)).fingerprint
    assert read_dataset(write_jsonl(tmp_path / "b.jsonl", [{**row, "id": 7} for row in ROWS])).fingerprint == a
    assert read_dataset(write_jsonl(tmp_path / "c.jsonl", ROWS[::-1])).fingerprint != a


def test_a_file_that_changed_is_noticed(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    dataset = read_dataset(path)
    write_jsonl(path, [*ROWS, *ROWS])
    with pytest.raises(InvalidInputError, match="changed on disk"):
        list(dataset)


def test_progress_is_silent_at_first_and_then_rises(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"row {i}"} for i in range(5000)])
    calls = []
    read_dataset(path, progress=lambda examples, share: calls.append((examples, share)))
    assert not calls
    monkeypatch.setattr(reader_module, "PROGRESS_AFTER", 0)
    monkeypatch.setattr(reader_module, "PROGRESS_EVERY", 0)
    read_dataset(path, progress=lambda examples, share: calls.append((examples, share)))
    assert len(calls) > 10
    assert calls == sorted(calls)
    assert 0 < calls[0][1] < calls[-1][1] <= 1


@pytest.mark.thorough
def test_fifty_thousand_rows_take_seconds(tmp_path):
    rows = [{"instruction": f"Question {i}", "input": "", "output": "word " * 100} for i in range(50_000)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    start = time.process_time()
    assert len(read_dataset(path)) == 50_000
    assert time.process_time() - start < 10  # about 1 s on a free core


DEMO = os.environ.get("FTADVISE_DEMO_DATA")  # the data folder of the llamafactory 0.9.5 source distribution

DEMO_FILES = {
    "alpaca_en_demo.json": (999, "alpaca"),
    "alpaca_zh_demo.json": (1000, "alpaca"),
    "c4_demo.jsonl": (300, "text"),
    "dpo_en_demo.json": (300, "preference"),
    "glaive_toolcall_en_demo.json": (300, "sharegpt"),
    "kto_en_demo.json": (300, "kto"),
    "v1_sft_demo.jsonl": (500, "messages"),
    "wiki_demo.txt": (30, "text"),
}


@pytest.mark.skipif(not DEMO, reason="FTADVISE_DEMO_DATA is not set")
@pytest.mark.parametrize("name", DEMO_FILES)
def test_real_demo_data(name):
    dataset = read_dataset(Path(DEMO or "") / name)
    assert (len(dataset), dataset.format.name) == DEMO_FILES[name]

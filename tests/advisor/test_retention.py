import json
import math
from pathlib import Path

import pytest

from advisor.feedback import compare, measure_run
from advisor.general_text import FILE, write_general_text
from advisor.launch.metrics import read_course
from advisor.retention import FORGOTTEN, describe_retention, judge_retention, show_perplexity
from profiles.errors import InvalidInputError
from tests.advisor.test_launch_feedback import gpu_events, make_run

BEFORE = (2.0, 3.0, 2.5, 4.0)


def after(*rises: float) -> tuple[float, ...]:
    return tuple(b + r for b, r in zip(BEFORE, rises, strict=True))


def test_the_noise_is_the_standard_error_over_passages() -> None:
    found = judge_retention(BEFORE, after(0.1, 0.3, 0.1, 0.3))
    assert found is not None
    assert found.loss_after - found.loss_before == pytest.approx(0.2)
    assert found.noise == pytest.approx(0.2 / math.sqrt(3) / 2)  # standard deviation 0.1 sqrt(4/3), over sqrt(4)


@pytest.mark.parametrize(
    ("rises", "verdict"),
    [
        ((0.0, 0.0, 0.0, 0.0), "kept"),
        ((-0.5, -0.4, -0.5, -0.4), "kept"),
        ((0.4, -0.3, 0.4, -0.3), "kept"),  # a mean rise of .05, which chance explains
        ((0.05, 0.06, 0.05, 0.06), "slightly worse"),
        ((FORGOTTEN - 0.001,) * 4, "slightly worse"),
        ((FORGOTTEN + 0.001,) * 4, "forgotten"),
        ((1.0, 1.2, 0.9, 1.4), "forgotten"),
    ],
)
def test_verdicts(rises: tuple[float, ...], verdict: str) -> None:
    found = judge_retention(BEFORE, after(*rises))
    assert found is not None
    assert found.verdict == verdict
    assert verdict in describe_retention(found)


@pytest.mark.parametrize(
    ("before", "later"), [((), ()), ((1.0,), (1.0,)), ((1.0, 2.0), (1.0,)), ((1.0, 2.0), (1.0, math.nan))]
)
def test_what_cannot_be_compared_gets_no_verdict(before: tuple[float, ...], later: tuple[float, ...]) -> None:
    assert judge_retention(before, later) is None


def general(step: int, losses: tuple[float, ...]) -> dict[str, object]:
    return {"event": "general", "step": step, "losses": losses}


def test_a_run_tells_it(tmp_path: Path) -> None:
    start, *rest, end = gpu_events()
    folder = make_run(tmp_path / "run", [start, general(0, BEFORE), *rest, general(4, after(1, 1, 1, 1)), end])
    found = measure_run(folder)
    assert found.retention is not None
    assert found.retention.verdict == "forgotten"
    assert compare(found, None)[-1].startswith("general text: perplexity 17.73 before, 48.18 after (forgotten: +1.000")


def test_perplexities_are_readable_however_large() -> None:
    assert [show_perplexity(loss) for loss in (2.875, 9.0, 12.1652)] == ["17.73", "8103", "192K"]


def test_no_verdict_before_the_end_or_without_passages(tmp_path: Path) -> None:
    start, *rest = gpu_events()
    assert measure_run(make_run(tmp_path / "a", [start, general(0, BEFORE), *rest])).retention is None
    assert measure_run(make_run(tmp_path / "b", [start, *rest])).retention is None


def test_a_resumed_run_is_compared_with_its_first_beginning(tmp_path: Path) -> None:
    start, *rest, end = gpu_events()
    again = {**start, "step": 2}
    events = [start, general(0, BEFORE), *rest[:3], again, *rest[3:], general(4, after(0, 0, 0, 0)), end]
    course = read_course(make_run(tmp_path / "run", events) / "runs" / "metrics.jsonl")
    assert course.retention is not None
    assert course.retention.verdict == "kept"


def test_the_shipped_passages_are_many_and_different(tmp_path: Path) -> None:
    write_general_text(tmp_path / "data", None)
    rows = [json.loads(line) for line in (tmp_path / "data" / FILE).read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == len(texts) == 24
    assert all(len(text) > 200 for text in texts)
    assert sum(map(len, texts)) > 15_000


def test_own_texts_take_their_place(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("one line\nanother line\n")
    write_general_text(tmp_path / "data", str(tmp_path / "mine.txt"))
    lines = (tmp_path / "data" / FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "one line"}, {"text": "another line"}]
    write_general_text(tmp_path / "none", "none")
    assert not (tmp_path / "none").exists()


def test_rows_of_another_kind_are_no_texts(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(InvalidInputError, match="prompt-completion rows"):
        write_general_text(tmp_path / "data", str(tmp_path / "pairs.jsonl"))

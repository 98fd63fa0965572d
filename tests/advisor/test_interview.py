"""Questions that are asked are those that split the winners, by deciding every combination anew."""

from itertools import product

import pytest
import yaml

from advisor.api import advise
from advisor.cli.main import run
from advisor.cli.profile_file import dump_profile, read_profile
from advisor.interview import QUESTIONS, Interview
from advisor.request import Request
from profiles.errors import InvalidInputError, UnsupportedError

CASES = [
    {"model": "llama-1b", "gpu": "rtx4090"},
    {"model": "llama-8b", "gpu": "t4", "seq_len": 512},
    {"model": "bert-base", "gpu": "t4"},
    {"model": "llama-405b", "gpu": "t4"},
]


def winner(request):
    try:
        best = advise(request).best
    except UnsupportedError:
        return None
    if best is None:
        return None
    plan = best.plan
    return (*best.key, plan.gradient_checkpointing, plan.packing, plan.n_gpus, plan.sharding, plan.micro_batch_size)


@pytest.mark.parametrize("fields", CASES, ids=lambda f: f"{f['model']}-{f['gpu']}")
@pytest.mark.thorough
def test_a_question_is_asked_only_if_it_splits_the_winners(fields):
    request = Request(offline=True, **fields)
    interview = Interview(request)
    answered = {}
    while (question := interview.next_question(answered)) is not None:
        answered[question.field] = question.options[-1][0]
    left = [q for q in interview.open if q.field not in answered]
    combinations = product(*([value for value, _ in q.options] for q in left))
    chosen = [{**answered, **dict(zip((q.field for q in left), c, strict=True))} for c in combinations]
    if any(c.get("task") == "pretrain" for c in chosen) and fields["model"] == "bert-base":
        pytest.fail("an encoder is not asked for its task")
    assert len({winner(request.replace(**c)) for c in chosen}) == 1


def test_what_is_asked_does_change_the_answer():
    interview = Interview(Request(model="llama-1b", gpu="rtx4090", offline=True))
    assert interview.next_question({}) is not None
    assert {q.field for q in QUESTIONS} == {"task", "goal", "skill", "deployment"}


def test_nothing_is_asked_where_nothing_fits():
    interview = Interview(Request(model="llama-405b", gpu="t4", offline=True))
    assert interview.next_question({}) is None


def test_what_the_request_says_is_not_asked_again():
    interview = Interview(Request(model="llama-1b", gpu="rtx4090", goal="fast", skill="code", offline=True))
    assert {q.field for q in interview.open} == {"task", "deployment"}


def test_in_a_pipe_it_ends_with_the_command_and_the_profile(monkeypatch, capsys, tmp_path):
    import io
    import sys

    answers = "llama-1b\nrtx4090\n2000\nmany\n300\n\n" + "1\n" * 4
    monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
    path = tmp_path / "profile.yaml"
    assert run(["interview", "--offline", "--save", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "'many' is not a number." in err
    assert "\x1b" not in out
    line = next(x for x in out.splitlines() if x.startswith("The same as: "))
    assert "--model llama-1b --gpu rtx4090 --examples 2000 --mean-len 300" in line
    saved = Request(**yaml.safe_load(path.read_text()))
    assert saved.examples == 2000
    assert run(["--profile", str(path)]) == 0
    assert capsys.readouterr().out in out


def test_a_profile_reads_back_and_flags_override_it(tmp_path, capsys):
    fields = {"prefer": ("time", "ease"), "max_hours": 2.5, "packing": False, "offline": True}
    request = Request(model="llama-8b", gpu="rtx4090", **fields)
    path = tmp_path / "p.yaml"
    path.write_text(dump_profile(request))
    assert Request(**read_profile(str(path))) == request
    assert run(["--profile", str(path), "--gpu", "a100-80g"]) == 0
    assert "A100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("modl: x\n", "modl", "model"),
        ("model: x\nmax_hours: -1\n", "max_hours", ""),
        ("model: [\n", ":2", "profile"),
        ("- a\n- b\n", "mapping", "profile"),
        ("1: 2\n", "mapping", "profile"),
        ("", "mapping", "profile"),
    ],
)
def test_one_clear_error_with_file_and_field(tmp_path, text, where, hint):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError) as error:
        read_profile(str(path))
    assert str(path) in error.value.message
    assert where in error.value.message
    assert hint in error.value.hint

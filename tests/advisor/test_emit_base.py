import os
from pathlib import Path

import pytest

import advisor.emit
from advisor.emit import Emission, RunFile, Source, base, emit, emitters, write_emission
from advisor.launch import load_run_file
from profiles.errors import InvalidInputError
from profiles.families import describe_model
from profiles.plan import Plan

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 512,
}
MODEL = describe_model(CONFIG, "tiny")
PLAN = Plan(model="tiny", gpu="rtx4090")
SOURCE = Source(model_ref="org/tiny")


def emission(**files: str) -> Emission:
    texts = {name.replace("_", "/"): text for name, text in files.items()}
    return Emission(platform="hf", plan=PLAN, files=texts, command=("python", "train.py"))


def snapshot(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_every_platform_has_its_file() -> None:
    folder = Path(advisor.emit.__file__).parent
    with_emitter = [p for p in folder.glob("*.py") if "EMITTER = " in p.read_text()]
    assert len(with_emitter) == len(emitters()) == 3
    assert set(emitters()) == {"hf", "llamafactory", "unsloth"}


def test_the_plan_comes_back_from_the_folder(tmp_path: Path) -> None:
    plan = PLAN.replace(method="adalora", method_options={"init_r": 24}, learning_rate=3e-4)
    out = write_emission(emit(plan, MODEL, SOURCE), tmp_path / "run")
    run = load_run_file(out)
    assert isinstance(run, RunFile)
    assert run.plan == plan
    assert run.model_parameters == MODEL.parameters
    assert "trl==1.16.0" in run.requirements


def test_emission_is_pure() -> None:
    assert emit(PLAN, MODEL, SOURCE) == emit(PLAN, MODEL, SOURCE)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "", ".", "a\\..\\b", "a\0b"])
def test_no_path_leaves_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        Emission(platform="hf", plan=PLAN, files={name: ""}, command=())


def test_a_lone_surrogate_is_refused_before_anything_is_written() -> None:
    with pytest.raises(InvalidInputError, match="Unicode"):
        emit(PLAN, MODEL, Source(model_ref="bad\ud800name"))


def test_a_new_and_an_empty_folder_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "a" / "new", tmp_path / "empty"):
        write_emission(emission(one="1", sub_two="2"), out)
        assert snapshot(out) == {"one": "1", "sub/two": "2"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty"]


def test_a_folder_with_files_needs_force_which_replaces_only_its_own(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    (tmp_path / "out" / "one").write_text("old")
    with pytest.raises(InvalidInputError, match="not empty"):
        write_emission(emission(one="new"), tmp_path / "out")
    assert snapshot(tmp_path / "out") == {"mine": "precious", "one": "old"}
    write_emission(emission(one="new", two="2"), tmp_path / "out", force=True)
    assert snapshot(tmp_path / "out") == {"mine": "precious", "one": "new", "two": "2"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InvalidInputError, match="is a file"):
        write_emission(emission(one="1"), tmp_path / "out", force=True)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bad row")])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_while_data_are_written_leaves_nothing(tmp_path: Path, error: BaseException, existing: bool) -> None:
    if existing:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "one").write_text("old")

    def add_data(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    expected = InvalidInputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_emission(emission(one="1"), tmp_path / "out", force=existing, add_data=add_data)
    assert snapshot(tmp_path) == ({"out/one": "old"} if existing else {})


def test_a_failure_while_files_are_moved_in_brings_the_old_ones_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a", "b", "c"):
        (out / name).write_text(f"old {name}")
    real = os.replace

    def fail_at_c(source: Path, target: Path) -> None:
        if Path(target) == out / "c" and "new" in Path(source).parts:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(base.os, "replace", fail_at_c)
    with pytest.raises(InvalidInputError, match="Input/output error"):
        write_emission(emission(a="1", b="2", c="3", d="4"), out, force=True)
    assert snapshot(tmp_path) == {"out/a": "old a", "out/b": "old b", "out/c": "old c"}

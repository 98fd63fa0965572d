import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from profiles import store as store_module
from profiles.calibration import Calibration, Fitted
from profiles.errors import AdviseError, InvalidInputError
from profiles.home import data_home
from profiles.measurement import Environment, Measurement
from profiles.plan import Plan
from profiles.store import Store


def measurement(name: str = "run-1", **changes: object) -> Measurement:
    values = {
        "id": name,
        "date": "2026-11-24",
        "plan": Plan(model="m"),
        "environment": Environment(hardware="1x card", versions={"torch": "2.13.0"}),
        "model_parameters": 100,
        "trainable_parameters": 10,
        "steps": 3,
        "step_seconds_median": 0.5,
        "tokens_per_second": None,
        "first_loss": 2.0,
        "last_loss": 1.0,
    }
    return Measurement.model_validate({**values, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_what_is_stored_is_read_back_equal(store: Store) -> None:
    first, second = measurement("b", date="2026-11-23"), measurement("a")
    calibration = Calibration(
        id="c", date="2026-11-24", environment=first.environment, constants={"x": Fitted(value=1.5, n=3, residual=0.1)}
    )
    for record in (second, first):
        store.measurements.add(record)
    store.calibrations.add(calibration)
    again = Store(store.home)
    assert again.measurements.load() == (first, second)
    assert again.calibrations.load() == (calibration,)
    assert again.measurements.remove("a")
    assert not again.measurements.remove("a")
    assert again.measurements.load() == (first,)


def test_an_empty_store_reads_as_nothing_and_writes_nothing(store: Store) -> None:
    assert store.measurements.load() == ()
    assert not store.home.exists()


def test_the_same_record_twice_is_one_and_another_of_its_id_is_refused(store: Store) -> None:
    path = store.measurements.add(measurement())
    before = path.read_bytes()
    assert store.measurements.add(measurement()) == path
    with pytest.raises(InvalidInputError, match="taken by another record"):
        store.measurements.add(measurement(steps=4))
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "a\0b", "x" * 300, "ü"])
def test_an_id_that_is_no_file_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidInputError):
        store.measurements.add(measurement(name))
    assert not store.home.exists() or not list(store.home.rglob("*.json"))


DAMAGED = {
    "cut off": b'{"id": "run-1"',
    "empty": b"",
    "binary": b"\xff\xfe\x00",
    "other JSON": b'{"hello": 1}',
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "newer": json.dumps({**json.loads(measurement().model_dump_json()), "schema_version": 2}).encode(),
    "renamed": measurement("other").model_dump_json().encode(),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_or_foreign_file_is_named_and_left_alone(store: Store, kind: str) -> None:
    path = store.measurements.folder / "run-1.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(InvalidInputError) as read:
        store.measurements.load()
    with pytest.raises(InvalidInputError):
        store.measurements.add(measurement())
    assert str(path) in read.value.message
    assert "left as it is" in read.value.hint
    assert ("newer" in read.value.message) == (kind == "newer")
    assert path.read_bytes() == DAMAGED[kind]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_state_and_says_so(store: Store, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    store.measurements.add(measurement("old"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, step, full)
    with pytest.raises(AdviseError) as error:
        store.measurements.add(measurement("new"))
    monkeypatch.undo()
    assert error.value.code == "store-unwritable"
    assert "No space left" in error.value.message
    assert "FTADVISE_HOME" in error.value.hint
    assert sorted(p.name for p in store.measurements.folder.iterdir()) == [".lock", "old.json"]


def test_a_home_that_is_a_file_gives_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(AdviseError) as error:
        Store(tmp_path / "home").measurements.add(measurement())
    assert error.value.code == "store-unwritable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_home_gives_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AdviseError) as error:
        Store(tmp_path / "home").measurements.add(measurement())
    assert error.value.code == "store-unwritable"


def test_a_lock_that_stays_taken_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    store.measurements.folder.mkdir(parents=True)
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.05)
    with FileLock(store.measurements.folder / ".lock"), pytest.raises(AdviseError) as error:
        store.measurements.add(measurement())
    assert error.value.code == "store-locked"


def test_many_writers_lose_nothing(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: Store(store.home).measurements.add(measurement(f"run-{i}")), range(24)))
    assert len(store.measurements.load()) == 24


def test_a_writer_killed_on_the_way_leaves_a_store_that_can_be_read(store: Store) -> None:
    store.measurements.add(measurement("old"))
    code = (
        "import os, signal, sys\n"
        "from profiles import store\n"
        "from profiles.measurement import Measurement\n"
        "store.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.Store(store.Path(sys.argv[1])).measurements.add(Measurement.model_validate_json(sys.argv[2]))\n"
    )
    record = measurement("new")
    done = subprocess.run([sys.executable, "-c", code, str(store.home), record.model_dump_json()])
    assert done.returncode == -9
    assert [m.id for m in store.measurements.load()] == ["old"]
    store.measurements.add(record)
    assert len(store.measurements.load()) == 2


def test_where_the_store_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FTADVISE_HOME", raising=False)
    for xdg, expected in (
        (None, tmp_path / ".local/share/ftadvise"),
        ("relative", tmp_path / ".local/share/ftadvise"),
        (str(tmp_path / "xdg"), tmp_path / "xdg/ftadvise"),
    ):
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        if xdg is not None:
            monkeypatch.setenv("XDG_DATA_HOME", xdg)
        assert data_home() == expected
    monkeypatch.setenv("FTADVISE_HOME", "~/mine")
    assert data_home() == tmp_path / "mine"

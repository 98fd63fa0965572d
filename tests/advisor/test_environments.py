"""Environments are really built, offline and in seconds: a small lock over wheels that the test makes itself."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from advisor.environments import (
    check_environment,
    create_environment,
    find_environment,
    find_environments,
    remove_environment,
)
from advisor.environments import environment as on_disk
from advisor.environments import lock as locks
from advisor.environments.installer import Progress, count_fetched, diagnose, last_line
from advisor.environments.lock import LEFT_OUT_ON_CPU, LOCKS, load_lock
from advisor.launch.interpreter import choose_interpreter
from profiles.errors import AdviseError, InvalidInputError
from profiles.platform import load_platforms

REAL_PYTHON = sys.executable
ROOT = Path(__file__).parents[2]
PINS = {"torch": "2.13.0", "trl": "1.0", "peft": "1.0", "bitsandbytes": "1.0", "torchvision": "0.28.0"}
LOCK = "# a small one\n" + "".join(f"{name}=={number}\n" for name, number in PINS.items())


def make_wheel(folder: Path, name: str, number: str, *, code: str = "", padding: int = 0) -> None:
    """A wheel of one module."""
    info = f"{name}-{number}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", code)
        wheel.writestr(f"{name}/weights.bin", os.urandom(padding))
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="session")
def quick_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This Python, but `-m venv` copies an environment that was made once: unpacking pip is most of a small build."""
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", folder / "empty"], check=True)
    script = folder / "python"
    script.write_text(f'#!/bin/sh\n[ "$2" = venv ] && exec cp -r {folder}/empty "$3"\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture
def world(tmp_path: Path, quick_python: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, a lock for hf and a folder of wheels that stands for the registry."""
    monkeypatch.setattr(sys, "executable", str(quick_python))
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "hf.txt").write_text(LOCK)
    for name, number in PINS.items():
        make_wheel(tmp_path / "wheels", name, number)
    make_wheel(tmp_path / "wheels", "torch", "2.13.0+cpu")
    monkeypatch.setattr(locks, "LOCKS", tmp_path / "locks")
    for name, value in {
        "FTADVISE_HOME": str(tmp_path / "home"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_CONFIG_FILE": os.devnull,
        "PATH": "/usr/bin:/bin",  # no uv
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def ftadvise(world: Path, *words: str) -> "subprocess.Popen[str]":
    """The command line in a process of its own, in the same small world."""
    code = (
        f"import advisor.environments.lock as l; from pathlib import Path; l.LOCKS = Path({str(world / 'locks')!r})\n"
        f"from advisor.cli.main import main; main({list(words)!r})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def slow_build(world: Path) -> "subprocess.Popen[str]":
    """`env create hf` whose base Python takes its time; returned once the build is under way."""
    slow = world / "slow-python"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *venv*) sleep 30;; esac\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    child = ftadvise(world, "env", "create", "hf", "--python", str(slow))
    while "creating" not in (child.stderr.readline() if child.stderr else "creating"):
        assert child.poll() is None
    return child


def site_of(path: str) -> Path:
    return next(Path(path).glob("lib/python3*/site-packages"))


@pytest.mark.thorough
def test_create_find_break_rebuild_remove(world: Path) -> None:
    assert find_environment("hf") is None
    assert find_environments() == ()
    seen: list[Progress] = []
    built = create_environment("hf", report=seen.append)
    assert (built.state, built.reason, built.cpu) == ("ready", "", False)
    assert find_environments() == (built,)
    assert [p.stage for p in seen][-1] == "checking"
    assert {p.total for p in seen if p.stage == "installing"} == {2 * len(PINS)}
    code = "import trl, torchvision, sys; print(sys.prefix)"
    ran = subprocess.run([built.python, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == built.path
    assert check_environment(built) == built

    # `launch` takes it where the running interpreter is not as tested
    pydantic = f"pydantic=={version('pydantic')}"
    assert choose_interpreter("hf", ["trl==1.0"]) == (built.python, ())
    assert choose_interpreter("hf", ["trl==1.2"]) == (built.python, ("trl 1.0 (tested with 1.2)",))
    assert choose_interpreter("hf", [pydantic]) == (sys.executable, ())
    assert choose_interpreter("hf", ["trl==1.0"], built.python) == (built.python, ())
    with pytest.raises(AdviseError, match="has no pydantic") as caught:
        choose_interpreter("hf", [pydantic, "trl==1.0"])
    assert f"{built.python} -m pip install pydantic" in caught.value.hint

    # what is ready stays, byte for byte
    marker = Path(built.path, on_disk.MARKER)
    before = marker.stat().st_mtime_ns
    assert create_environment("hf") == built
    assert marker.stat().st_mtime_ns == before

    # other versions
    info = site_of(built.path) / "trl-1.0.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("Version: 1.0", "Version: 1.1"))
    found = find_environment("hf")
    assert found is not None
    assert (found.state, found.reason) == ("broken", "trl is 1.1, not 1.0")
    assert create_environment("hf").state == "ready"
    assert "Version: 1.0" in info.read_text()

    # a new ftadvise with another lock
    make_wheel(world / "wheels", "peft", "2.0")
    (world / "locks" / "hf.txt").write_text(LOCK.replace("peft==1.0", "peft==2.0"))
    found = find_environment("hf")
    assert found is not None
    assert found.state == "outdated"
    assert create_environment("hf").state == "ready"
    assert on_disk.installed_packages(Path(built.path))["peft"] == "2.0"

    # an interpreter that is gone
    python = Path(built.python)
    python.unlink()
    python.symlink_to(world / "nowhere")
    found = find_environment("hf")
    assert found is not None
    assert found.state == "broken"
    assert "nowhere is gone" in found.reason

    with pytest.raises(AdviseError, match="has no no-such-thing") as caught:
        choose_interpreter("hf", ["no-such-thing==1.0"])
    assert "`ftadvise env create hf`" in caught.value.hint

    remove_environment("hf")
    assert find_environments() == ()
    with pytest.raises(AdviseError, match="there is no environment hf"):
        remove_environment("hf")


@pytest.mark.thorough
def test_cpu_takes_the_cpu_build_and_leaves_out_what_has_none(world: Path) -> None:
    (world / "locks" / "hf.txt").write_text(LOCK + "torchaudio==2.11.0\n")  # no such wheel: it must not be asked for
    built = create_environment("hf", cpu=True, python=REAL_PYTHON)
    assert (built.state, built.cpu) == ("ready", True)
    assert on_disk.installed_packages(Path(built.path))["torch"] == "2.13.0+cpu"
    assert not (site_of(built.path) / "torchvision").exists()
    ran = subprocess.run(
        [built.python, "-c", "import torchaudio; print(torchaudio.__doc__)"], capture_output=True, text=True, check=True
    )
    assert "Stands in for torchaudio" in ran.stdout
    assert create_environment("hf", cpu=True) == built


@pytest.mark.thorough
def test_an_import_that_fails_leaves_it_half_built(world: Path) -> None:
    make_wheel(world / "wheels", "trl", "1.0", code="raise ImportError('no libfoo')")
    with pytest.raises(AdviseError, match="its import fails: ImportError: no libfoo") as caught:
        create_environment("hf")
    assert caught.value.code == "environment-broken"
    found = find_environment("hf")
    assert found is not None
    assert found.state == "half-built"


@pytest.mark.thorough
def test_a_platform_that_needs_a_gpu_is_not_imported_without_one(world: Path) -> None:
    (world / "locks" / "unsloth.txt").write_text("torch==2.13.0\nunsloth==1.0\n")
    make_wheel(world / "wheels", "unsloth", "1.0", code="raise NotImplementedError('no accelerator')")
    built = create_environment("unsloth", cpu=True)
    assert built.state == "ready"
    assert "not verified without a GPU" in built.reason
    assert check_environment(built) == built


def test_a_package_that_is_not_there(world: Path) -> None:
    (world / "wheels" / "peft-1.0-py3-none-any.whl").unlink()
    with pytest.raises(AdviseError) as caught:
        create_environment("hf")
    assert caught.value.code == "package-not-found"
    assert "hf.log" in caught.value.hint
    log = world / "home" / "environments" / "hf.log"
    assert "No matching distribution found for peft==1.0" in log.read_text()


@pytest.mark.thorough
def test_an_unreachable_registry(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    (world / "wheels" / "peft-1.0-py3-none-any.whl").unlink()
    with pytest.raises(AdviseError) as caught:
        create_environment("hf")
    assert caught.value.code == "registry-unreachable"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.thorough
def test_a_full_disk(world: Path) -> None:
    make_wheel(world / "wheels", "trl", "1.0", padding=60_000_000)
    small = world / "home"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=50m", "none", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.decode()}")
    try:
        with pytest.raises(AdviseError) as caught:
            create_environment("hf")
        found = find_environment("hf")
    finally:
        subprocess.run(["umount", small], check=True)
    assert caught.value.code == "disk-full"
    assert found is not None
    assert found.state == "half-built"


@pytest.mark.thorough
def test_ctrl_c_leaves_a_half_built_one_and_the_next_create_mends_it(world: Path) -> None:
    child = slow_build(world)
    found = find_environment("hf")
    assert found is None or found.state == "building"
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=20) == 130
    (world / "home" / "environments" / "hf").mkdir(exist_ok=True)  # venv had not come so far
    found = find_environment("hf")
    assert found is not None
    assert found.state == "half-built"
    again = ftadvise(world, "env", "create", "hf", "--json")
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert json.loads(out)["answer"][0]["state"] == "ready"


@pytest.mark.thorough
def test_a_second_create_is_kept_out_even_when_the_first_was_killed(world: Path) -> None:
    first = slow_build(world)
    with pytest.raises(AdviseError) as caught:
        create_environment("hf")
    assert caught.value.code == "environment-busy"
    first.kill()  # its installer still runs, and holds the lock
    first.wait()
    with pytest.raises(AdviseError) as caught:
        remove_environment("hf")
    assert caught.value.code == "environment-busy"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes() if path.exists() else b""
        if str(world / "slow-python").encode() in words or words.startswith(b"sleep\x0030"):
            os.kill(int(path.parent.name), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while on_disk.is_building("hf") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert create_environment("hf").state == "ready"


def test_the_base_interpreter_is_looked_at_first(world: Path) -> None:
    old = world / "old-python"
    old.write_text('#!/bin/sh\necho "[3, 10, 2]"\n')
    old.chmod(0o755)
    with pytest.raises(InvalidInputError, match=r"is Python 3\.10\.2"):
        create_environment("hf", python=str(old))
    with pytest.raises(InvalidInputError, match="no interpreter"):
        create_environment("hf", python=str(world / "missing"))
    with pytest.raises(AdviseError, match="unknown platform"):
        create_environment("axolotl")
    assert find_environments() == ()


def test_a_home_that_cannot_be_written(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "file").write_text("")
    monkeypatch.setenv("FTADVISE_HOME", str(world / "file" / "home"))
    with pytest.raises(AdviseError) as caught:
        create_environment("hf")
    assert caught.value.code == "environment-unwritable"


def test_the_shipped_locks_hold_the_tested_versions() -> None:
    platforms = load_platforms()
    assert {path.stem for path in LOCKS.glob("*.txt")} == set(platforms)
    for name, platform in platforms.items():
        lock = load_lock(name)
        assert len(lock.pins) > 40
        assert lock.pins["torch"] == "2.13.0"
        assert {p.replace("_", "-"): v for p, v in platform.versions.items()}.items() <= lock.pins.items()
        assert not [p for p in lock.pins if p.startswith(("nvidia-", "cuda-"))]
        assert not LEFT_OUT_ON_CPU & set(lock.for_cpu().pins)
        assert lock.for_cpu().fingerprint != lock.fingerprint or name == "hf"


def test_what_installers_say_is_understood() -> None:
    pip = (
        "Collecting a==1\n  Downloading a-1-py3-none-any.whl.metadata (3 kB)\n"
        "  Downloading a-1-py3-none-any.whl (3 kB)\n"
        "Collecting b==1\n  Using cached b-1-py3-none-any.whl (3 kB)\nInstalling collected packages: a, b\n"
    )
    assert count_fetched(pip) == 2
    assert last_line(pip) == "Installing collected packages: a, b"
    assert last_line("") == ""
    codes = {
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device": "disk-full",
        "error: Request failed after 3 retries\n  Caused by: error sending request for url": "registry-unreachable",
        "  x No solution found\n  ╰─▶ Because there is no version of torch==9": "package-not-found",
        "The virtual environment was not created successfully because ensurepip is not available.": "no-venv",
        "ERROR: something else": "install-failed",
        "": "install-failed",
    }
    for text, code in codes.items():
        assert diagnose("installing", text, Path("log")).code == code

"""The house rules that no single test sees: layers, units, heavy imports, registries equal to folders."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.emit import emitters
from advisor.launch import launchers
from advisor.readers import readers
from estimators.methods import methods
from profiles.families import FAMILIES

ROOT = Path(__file__).parents[1]
PACKAGES = ("profiles", "estimators", "advisor")
SOURCES = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]


def test_sources_are_seen() -> None:
    assert len(SOURCES) > 150


def test_imports_point_one_way() -> None:
    found = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_size_and_scale_literals_stand_in_units_alone() -> None:
    literal = re.compile(r"(?<![\w.])(1024\s*\*\*|1024\s*\*\s*1024|1e9|1e12|2\*\*30|1 << 30|10\*\*9|10\*\*12)(?![\w.])")
    allowed = {ROOT / "profiles" / "units.py"}
    wrong = [
        f"{path.relative_to(ROOT)}:{n}"
        for path in SOURCES
        if path not in allowed and "emit/data" not in path.as_posix()
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if literal.search(line.split("#")[0]) and "Field(" not in line
    ]
    assert not wrong


def test_no_file_is_a_drawer() -> None:
    names = {path.stem for path in SOURCES}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package: str) -> None:
    files = [p for p in (ROOT / package).rglob("*.py") if p.stat().st_size > 0]
    assert files
    for path in files:
        assert path.read_text().lstrip().startswith(('"""', "#!", "# ")), path


def test_registries_are_their_folders() -> None:
    def stems(folder: str) -> set[str]:
        return {p.stem for p in (ROOT / folder).glob("*.py")}

    assert {type(m).__module__.rsplit(".", 1)[1] for m in methods().values()} <= stems("estimators/methods")
    assert set(FAMILIES) == stems("profiles/families") - {"__init__"}
    assert set(emitters()) == {"hf", "llamafactory", "unsloth"}
    assert set(launchers()) <= stems("advisor/launch")
    assert set(readers()) <= stems("advisor/readers")
    assert len(methods()) >= 8


def test_a_plain_answer_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['ftadvise', '--model', 'llama-8b', '--vram', '24']\n"
        "from advisor.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert e.code == 0, e.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'peft', 'huggingface_hub', 'datasets', 'pandas', 'requests'}\n"
        "found = heavy & set(sys.modules)\nassert not found, found\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr

"""SkyPilot's own parser takes the emitted tasks; nothing is rented. Its interpreter: FTADVISE_SKYPILOT_PYTHON."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from advisor.emit.skypilot import NAMES
from tests.advisor.test_emit_clusters import project

pytestmark = pytest.mark.slow
READ = """
import json, sys
import sky
task = sky.Task.from_yaml("skypilot.yaml")
resources, = task.resources
print(json.dumps([task.num_nodes, resources.accelerators, resources.cpus, bool(task.setup), bool(task.run)]))
"""


@pytest.fixture(scope="module")
def python() -> str:
    found = os.environ.get("FTADVISE_SKYPILOT_PYTHON")
    if found is None:
        pytest.skip("FTADVISE_SKYPILOT_PYTHON does not name an interpreter that has skypilot")
    return found


@pytest.mark.parametrize(
    ("plan", "nodes", "expected"),
    [
        ({"n_gpus": 8, "sharding": "fsdp2"}, 2, [2, {"H100": 4}, None, True, True]),
        ({"gpu": "a100-80-sxm"}, 1, [1, {"A100-80GB": 1}, None, True, True]),
        ({"gpu": "cpu", "quantization": "fp32"}, 1, [1, None, "8+", True, True]),
        ({"platform": "llamafactory", "gpu": "l4"}, 1, [1, {"L4": 1}, None, True, True]),
    ],
)
def test_its_parser_reads_what_was_meant(
    plan: dict[str, Any], nodes: int, expected: list[Any], python: str, tmp_path: Path
) -> None:
    (tmp_path / "skypilot.yaml").write_text(project("skypilot", nodes=nodes, **plan).files["skypilot.yaml"])
    done = subprocess.run([python, "-c", READ], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_the_names_are_those_of_its_catalogue(python: str) -> None:
    script = (
        "import pandas, sky, sys; from pathlib import Path\n"
        "from sky.catalog import common\n"
        "print(*common.read_catalog('common/accelerators.csv')['AcceleratorName'])"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"its catalogue cannot be downloaded: {done.stderr[-200:]}")
    assert set(NAMES.values()) <= set(done.stdout.split())

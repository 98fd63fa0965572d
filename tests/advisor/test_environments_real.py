"""The shipped locks are really built, from the package registry (minutes, gigabytes; `make test-slow`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.environments import check_environment, create_environment, find_environment
from advisor.environments.lock import load_lock
from advisor.launch.interpreter import choose_interpreter
from profiles.errors import AdviseError
from profiles.platform import load_platforms

LIST = """
import importlib.metadata as m
for d in m.distributions():
    print(d.name.lower().replace("_", "-").replace(".", "-"))
"""
pytestmark = [pytest.mark.slow, pytest.mark.platform]


@pytest.fixture(params=["pip", "uv"])
def installer(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either of them alone on the PATH; uv finds what pip is told to find."""
    tools = tmp_path / "tools"
    path = "/usr/bin:/bin"
    if request.param == "uv":
        subprocess.run([sys.executable, "-m", "venv", tools], check=True)
        if subprocess.run([tools / "bin" / "python", "-m", "pip", "install", "-q", "uv"], check=False).returncode:
            pytest.skip("uv cannot be had from the registry")
        path = f"{tools / 'bin'}:{path}"
        monkeypatch.setenv("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))
        monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("FTADVISE_HOME", str(tmp_path / "home"))
    return str(request.param)


@pytest.mark.parametrize("platform", ["hf", "llamafactory"])
def test_a_cpu_environment_is_built_from_the_shipped_lock(platform: str, installer: str) -> None:
    try:
        built = create_environment(platform, cpu=True)
    except AdviseError as error:
        if error.code == "registry-unreachable":
            pytest.skip(error.message)
        raise
    assert (built.state, built.reason) == ("ready", "")
    assert check_environment(built) == built == find_environment(platform)
    wanted = [f"{name}=={version}" for name, version in load_platforms()[platform].versions.items()]
    assert choose_interpreter(platform, wanted, built.python).untested == ()
    listed = subprocess.run([built.python, "-c", LIST], capture_output=True, text=True, check=True)
    extra = set(listed.stdout.split()) - set(load_lock(platform).pins)
    assert extra <= {"pip"}  # the lock is complete

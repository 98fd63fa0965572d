import os
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.hub_cache import find_cached, hub_cache

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME")


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"XDG_CACHE_HOME": "/x"},
        {"XDG_CACHE_HOME": "/x", "HF_HOME": "/h"},
        {"HF_HOME": "~/h"},
        {"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old"},
        {"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"},
        {"HF_HUB_CACHE": "$HOME/new"},
    ],
)
def test_cache_is_where_huggingface_hub_has_it(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES[:-1]:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    said = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert str(hub_cache()) == said.stdout.strip()


def test_find_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import try_to_load_from_cache

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--name"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "config.json").write_text("{}")
    assert find_cached("org/name", "config.json") is None  # no ref names the snapshot
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    found = find_cached("org/name", "config.json")
    assert str(found) == try_to_load_from_cache("org/name", "config.json", cache_dir=tmp_path)
    assert find_cached("org/name", "tokenizer.json") is None
    assert find_cached("org/other", "config.json") is None

"""Findings on machines that the test describes, and on this one."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from advisor.doctor import examine
from advisor.doctor.card import examine_card
from advisor.doctor.disk import examine_disk, nearest
from advisor.doctor.hub import ask_hub, examine_hub
from advisor.doctor.software import examine_environments, judge_torch
from advisor.environments import Environment
from advisor.hardware import resolve_hardware
from advisor.hub_cache import read_token
from profiles.gpu import Hardware
from profiles.platform import load_platforms

TOKEN = "hf_a_good_one"


def detected(name: str, driver: str = "580.65", cuda: str = "13.0") -> Hardware:
    return resolve_hardware(name).replace(origin="detected", driver_version=driver, cuda_version=cuda)


def test_this_machine() -> None:
    findings = examine()
    assert {f.topic for f in findings} >= {"GPU", "disk", "hub cache", *(f"env {p}" for p in load_platforms())}
    assert all(f.meaning for f in findings)
    assert all(f.mend for f in findings if f.level == "problem")


def test_a_card_and_what_it_can() -> None:
    new = {f.topic: f for f in examine_card(detected("rtx4090"))}
    assert new["GPU"].found.startswith("1 x GeForce RTX 4090") or "4090" in new["GPU"].found
    assert "driver 580.65, CUDA up to 13.0" in new["GPU"].found
    assert (new["bf16"].level, new["attention"].level) == ("ok", "ok")
    old = {f.topic: f for f in examine_card(detected("t4"))}
    assert (old["bf16"].level, old["attention"].level) == ("note", "note")
    assert "fp16" in old["bf16"].meaning


def test_torch_against_card_and_driver() -> None:
    assert judge_torch("torch", "2.13.0", "13.0", detected("rtx4090")).level == "ok"
    without = judge_torch("torch", "2.13.0+cpu", None, detected("rtx4090"))
    assert (without.level, without.meaning) == ("problem", "the GPU would not be used")
    old = judge_torch("torch", "2.13.0", "13.0", detected("rtx4090", driver="550.54", cuda="12.4"))
    assert old.level == "problem"
    assert "580" in old.mend
    assert judge_torch("torch", "2.13.0+cpu", None, resolve_hardware("cpu")).level == "ok"


def test_environments(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    (site / "torch-2.13.0.dist-info").mkdir(parents=True)
    (site / "torch-2.13.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n")
    ready = Environment(platform="hf", path=str(tmp_path), python="py", state="ready")
    broken = Environment(platform="unsloth", path="x", python="py", state="broken", reason="peft is missing")
    found = {f.topic: f for f in examine_environments([ready, broken], detected("rtx4090"))}
    assert len(found) == 3
    assert found["env hf"].found == "torch 2.13.0, built for CUDA 13.0"
    assert (found["env llamafactory"].level, found["env llamafactory"].found) == ("note", "not built")
    assert found["env unsloth"].level == "problem"
    assert found["env unsloth"].mend == "`ftadvise env create unsloth`"
    old = {f.topic: f for f in examine_environments([ready], detected("rtx4090", cuda="12.2"))}
    assert old["env hf"].level == "problem"


def test_disk_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nearest(tmp_path / "a" / "b") == tmp_path
    assert 1 <= len(list(examine_disk())) <= 3
    monkeypatch.setattr("advisor.doctor.disk.LOW_DISK", 1 << 60)
    assert all(f.level == "note" and f.mend for f in examine_disk())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    cache = next(iter(examine_hub(ask=False)))
    assert (cache.topic, cache.level) == ("hub cache", "problem")


def test_the_token_is_found_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert read_token() is None
    assert "no token" in [f.found for f in examine_hub(ask=False)]
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token() == TOKEN
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert read_token() == "hf_another"
    assert "hf_another" not in str(list(examine_hub(ask=False)))
    for name, value in (("TRANSFORMERS_OFFLINE", "yes"), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
        assert f"{name} is set" in [f.found for f in examine_hub(ask=True)]


class Hub(BaseHTTPRequestHandler):
    """Knows one token."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.send_response(200 if known else 401)
        self.end_headers()

    def do_HEAD(self) -> None:
        self.send_response(405)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_asking_the_hub(endpoint: str) -> None:
    assert ask_hub(endpoint, None).level == "ok"
    assert ask_hub(endpoint, TOKEN).level == "ok"
    refused = ask_hub(endpoint, "hf_a_bad_one")
    assert (refused.level, "hf_a_bad_one" in str(refused)) == ("problem", False)
    assert ask_hub("http://127.0.0.1:9", None).level == "note"
    assert ask_hub("no url", TOKEN).level == "note"

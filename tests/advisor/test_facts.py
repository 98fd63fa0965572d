import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from advisor.facts import MAX_CONFIG_BYTES, find_known, find_tokenizer, fingerprint, resolve_model
from profiles.errors import AdviseError, InvalidInputError, InvalidModelError, UnknownNameError, UnsupportedError
from profiles.gpu import GpuSpec
from profiles.units import GIB

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
# Embeddings and head; per layer q, k, v, o = 64 x (64 + 32 + 32 + 64), MLP 3 x 64 x 128, two norms; the last norm.
TINY_PARAMETERS = 2 * 256 * 64 + 2 * (64 * 192 + 3 * 64 * 128 + 2 * 64) + 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


# The catalogue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "llama-3.1-8b", "Llama 3.1 8B"])
def test_catalogue_names_need_no_network(name: str) -> None:
    spec = resolve_model(name, offline=True)
    assert (spec.name, spec.parameters) == ("meta-llama/Llama-3.1-8B", 8_030_261_248)


def test_catalogue_wins_over_a_folder_of_that_name_but_a_path_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "llama-3.1-8b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    assert resolve_model("llama-3.1-8b").parameters == 8_030_261_248
    assert resolve_model("./llama-3.1-8b").parameters == TINY_PARAMETERS


def test_catalogue_answer_imports_nothing_heavy(ask: "Asker", hub: ThreadingHTTPServer) -> None:
    answer = ask("llama-3.1-8b")
    assert (answer["parameters"], answer["imported"]) == (8_030_261_248, [])
    assert _seen(hub) == []


def test_near_miss_suggests_names() -> None:
    with pytest.raises(AdviseError) as caught:
        resolve_model("llama-3.1-8c", offline=True)
    assert caught.value.code == "model-offline"
    assert "meta-llama/Llama-3.1-8B" in caught.value.hint


# A config, inline or on disk -------------------------------------------------------------------------------------


def test_inline_config() -> None:
    assert resolve_model(TINY).parameters == TINY_PARAMETERS
    assert resolve_model({**TINY, "_name_or_path": "me/tiny"}).name == "me/tiny"
    with pytest.raises(InvalidModelError, match="model_type"):
        resolve_model({})


def test_folder_file_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    config = folder / "config.json"
    config.write_text(json.dumps(TINY))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for ref in (folder, config, "~/my model", "./my model", "my model"):
        spec = resolve_model(str(ref))
        assert (spec.name, spec.parameters) == ("my model", TINY_PARAMETERS)
    other = tmp_path / "tiny.json"
    other.write_text("\ufeff" + json.dumps(TINY), encoding="utf-8")  # a byte order mark, as Windows editors write it
    assert resolve_model(str(other)).name == "tiny.json"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"config\.json:1: is not JSON"),
        (b'{\n "model_type": "llama",\n', r"config\.json:3: is not JSON"),
        (b'{"a": 1}\n{"b": 2}', r"config\.json:2: is not JSON"),
        (b"[1, 2]", "holds no JSON object"),
        (b'"text"', "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b"\x80\x81\xff\x00", "is not text"),
        (b'{"hidden_size": NaN}', "NaN is no size"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "is not a usable config"),
        (b'{"a":' * 100_000, "is not a usable config"),
        (b" " * (MAX_CONFIG_BYTES + 1), "no config.json is as large"),
    ],
)
def test_broken_config_is_refused_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InvalidModelError, match=said) as caught:
        resolve_model(str(tmp_path))
    assert caught.value.hint


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"there is no config\.json in it"):
        resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidModelError, match="is an adapter, not a model"):
        resolve_model(str(tmp_path))
    with pytest.raises(InvalidModelError, match="there is no such file or folder"):
        resolve_model(str(tmp_path / "nothing"))


@pytest.mark.skipif(os.name != "posix", reason="FIFOs")
def test_a_pipe_is_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InvalidModelError):
        resolve_model(str(tmp_path))


# Names that are none ---------------------------------------------------------------------------------------------

HOSTILE = ["", "   ", "a\nb/c", "a\x00b", "org/na'me", 'org/na"me', "org/name; rm -rf", "$(id)", "`id`", "org/name|x"]
HOSTILE += ["a/b/c", "org/..", "org/na..me", "-rf", "org/--name", "org/name?x=1", "https://huggingface.co/org/name"]
HOSTILE += ["org/name@main", "ørg/name", "x" * 200, "org/" + "x" * 97, "x" * 5000]


@pytest.mark.parametrize("ref", HOSTILE)
def test_hostile_name_is_refused_before_any_look_up(ref: str) -> None:
    for offline in (True, False):
        with pytest.raises(InvalidInputError, match=r"^model: ") as caught:
            resolve_model(ref, offline=offline)
        assert caught.value.hint


@pytest.mark.parametrize("ref", ["../../etc/passwd", "/etc/shadow/..", "..\\secret", "/dev/zero"])
def test_a_path_is_only_ever_read_as_a_config(ref: str) -> None:
    with pytest.raises(InvalidModelError):
        resolve_model(ref)


@given(st.text(max_size=40))
@example("~0")
def test_any_text_is_a_model_or_an_error_with_a_hint(text: str) -> None:
    try:
        hint = resolve_model(text, offline=True).name
    except AdviseError as error:
        hint = error.hint
    assert hint


@pytest.mark.thorough
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_on_disk_is_a_model_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(AdviseError):
        resolve_model(str(path))


def test_find_known_is_exact() -> None:
    known = find_known("llama-3.1-8b")
    assert known is not None
    assert known.id == "meta-llama/Llama-3.1-8B"
    assert find_known("llama-3.1-8") is None
    assert find_known("./llama-3.1-8b") is None
    assert find_known("llama-3.1-8b'") is None


# The hub, as a server of this test that answers like it -----------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """/org/<behaviour>/resolve/main/config.json; what it was asked is kept in `seen`."""

    seen: list[tuple[str, str, str | None]]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        self.seen.append((self.command, self.path, self.headers.get("authorization")))
        repo = self.path.split("/")[2]
        if repo == "slow" or (repo == "slow-body" and body):
            time.sleep(30)
            return None
        if repo == "gated" and self.headers.get("authorization") != "Bearer hf_good":
            return self._send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        if repo == "missing":
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if repo == "private":
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username"})
        if repo == "weights-only":
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        if repo == "down":
            return self._send(500, b"", {})
        if repo == "no-hub":
            return self._send(200, b"<html>captive portal</html>" if body else b"", {})
        if repo == "huge":
            return self._send(200, b"", {"X-Repo-Commit": COMMIT, "ETag": '"1"', "Content-Length": str(5 * GIB)})
        content = b'{"model_type": ' if repo == "broken" else json.dumps(TINY).encode()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{COMMIT}{len(content)}"', "Content-Length": str(len(content))}
        return self._send(200, content if body else b"", headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    handler = type("OwnHub", (Hub,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


ASK = """
import json, sys, time
from advisor.facts import find_tokenizer, resolve_model
from profiles.errors import AdviseError
start = time.monotonic()
try:
    spec = resolve_model(sys.argv[1], **json.loads(sys.argv[2]))
    answer = {"name": spec.name, "parameters": spec.parameters}
except AdviseError as error:
    answer = {"class": type(error).__name__, **error.to_dict()}
tokenizer = find_tokenizer(sys.argv[1])
heavy = ("torch", "transformers", "numpy", "yaml", "huggingface_hub", "httpx", "requests")
imported = [name for name in heavy if name in sys.modules]
print(json.dumps({**answer, "seconds": time.monotonic() - start, "imported": imported, "tokenizer": str(tokenizer)}))
"""


class Asker:
    """Asks in a process of its own (huggingface_hub reads its environment when imported), with a cache of its own."""

    def __init__(self, endpoint: str, cache: Path) -> None:
        self.endpoint, self.cache = endpoint, cache

    def __call__(self, ref: str, env: dict[str, str] | None = None, **arguments: object) -> dict[str, object]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HUB_CACHE": str(self.cache), "HF_HOME": str(self.cache / "home")}
        done = subprocess.run(
            [sys.executable, "-c", ASK, ref, json.dumps(arguments)],
            env={**kept, **own, "HF_HUB_DISABLE_TELEMETRY": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return answer


@pytest.fixture
def ask(hub: ThreadingHTTPServer, tmp_path: Path) -> Asker:
    return Asker(f"http://127.0.0.1:{hub.server_port}", tmp_path / "cache")


def _seen(hub: ThreadingHTTPServer) -> list[tuple[str, str, str | None]]:
    return hub.RequestHandlerClass.seen  # type: ignore[attr-defined,no-any-return]


def test_hub_model_then_from_the_cache_when_offline(ask: Asker, hub: ThreadingHTTPServer) -> None:
    online = ask("org/tiny")
    assert (online["name"], online["parameters"]) == ("org/tiny", TINY_PARAMETERS)
    assert not {"torch", "transformers", "numpy"} & set(online["imported"])  # type: ignore[call-overload]
    assert {path for _, path, _ in _seen(hub)} == {"/org/tiny/resolve/main/config.json"}
    asked = len(_seen(hub))
    offline = ask("org/tiny", offline=True)
    assert (offline["parameters"], offline["imported"]) == (TINY_PARAMETERS, [])
    assert ask("org/tiny", {"HF_HUB_OFFLINE": "1"})["parameters"] == TINY_PARAMETERS
    assert len(_seen(hub)) == asked


@pytest.mark.parametrize(("arguments", "env"), [({"offline": True}, {}), ({}, {"HF_HUB_OFFLINE": "1"})])
def test_offline_and_not_cached(
    ask: Asker, hub: ThreadingHTTPServer, arguments: dict[str, object], env: dict[str, str]
) -> None:
    answer = ask("org/tiny", env, **arguments)
    assert answer["code"] == "model-offline"
    assert _seen(hub) == []


@pytest.mark.thorough
def test_gated_model_and_the_token_that_opens_it(ask: Asker, hub: ThreadingHTTPServer) -> None:
    refused = ask("org/gated")
    assert refused["code"] == "model-gated"
    assert f"{ask.endpoint}/org/gated" in str(refused["hint"])
    assert ask("org/gated", {"HF_TOKEN": "hf_good"})["parameters"] == TINY_PARAMETERS
    assert ask("org/gated", token="hf_good")["parameters"] == TINY_PARAMETERS
    wrong = ask("org/gated", {"HF_HUB_CACHE": str(ask.cache / "other")}, token="hf_secret")
    assert wrong["code"] == "model-gated"
    assert "hf_secret" not in json.dumps(wrong)


@pytest.mark.parametrize("repo", ["missing", "private"])
def test_unknown_repository(ask: Asker, repo: str) -> None:
    answer = ask(f"org/{repo}")
    assert (answer["class"], answer["code"]) == ("UnknownNameError", "unknown-model")
    assert "HF_TOKEN" in str(answer["hint"])


def test_repository_without_config(ask: Asker) -> None:
    answer = ask("org/weights-only")
    assert answer["code"] == "invalid-model"
    assert "no config.json" in str(answer["message"])


@pytest.mark.thorough
@pytest.mark.parametrize("repo", ["down", "no-hub"])
def test_hub_that_is_down_or_is_none(ask: Asker, repo: str) -> None:
    answer = ask(f"org/{repo}")
    assert answer["code"] == "hub-unreachable"
    assert "HF_ENDPOINT" in str(answer["hint"])


def test_nobody_listens(ask: Asker, hub: ThreadingHTTPServer) -> None:
    answer = ask("org/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert answer["code"] == "hub-unreachable"
    assert float(str(answer["seconds"])) < 10


@pytest.mark.thorough
@pytest.mark.parametrize(("repo", "low", "high"), [("slow", 1, 15), ("slow-body", 3, 15)])
def test_slow_hub_is_given_up(ask: Asker, repo: str, low: float, high: float) -> None:
    answer = ask(f"org/{repo}", {"HF_HUB_ETAG_TIMEOUT": "1"})
    assert answer["code"] == "hub-unreachable"
    assert low <= float(str(answer["seconds"])) < high


def test_config_of_absurd_size_is_not_downloaded(ask: Asker, hub: ThreadingHTTPServer) -> None:
    answer = ask("org/huge")
    assert answer["code"] == "invalid-model"
    assert {method for method, _, _ in _seen(hub)} == {"HEAD"}


def test_broken_config_on_the_hub(ask: Asker) -> None:
    answer = ask("org/broken")
    assert answer["code"] == "invalid-model"
    assert "config.json:1" in str(answer["message"])


# Tokenizer, fingerprint ------------------------------------------------------------------------------------------


def test_tokenizer_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert find_tokenizer(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_tokenizer(str(tmp_path)) == tmp_path / "tokenizer.json"
    assert find_tokenizer(TINY) is None


def test_tokenizer_in_the_hub_cache(ask: Asker, hub: ThreadingHTTPServer) -> None:
    for repo, ref in [("org--tiny", "org/tiny"), ("meta-llama--Llama-3.1-8B-Instruct", "llama-3.1-8b")]:
        assert ask(ref, offline=True)["tokenizer"] == "None"
        snapshot = ask.cache / f"models--{repo}" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (snapshot / "tokenizer.json").write_text("{}")
        refs = ask.cache / f"models--{repo}" / "refs"
        refs.mkdir()
        (refs / "main").write_text(COMMIT)
        assert ask(ref, offline=True)["tokenizer"] == str(snapshot / "tokenizer.json")
    assert _seen(hub) == []


def test_fingerprint_follows_every_field() -> None:
    card = GpuSpec(id="a", name="a", vendor="NVIDIA", memory_gib=24)
    assert fingerprint(card) == fingerprint(GpuSpec(memory_gib=24.0, vendor="NVIDIA", name="a", id="a"))
    assert fingerprint(card) != fingerprint(card.replace(memory_gib=24.5))
    assert len(fingerprint(card)) == 12
    assert fingerprint(resolve_model(TINY)) != fingerprint(resolve_model({**TINY, "vocab_size": 257}))


def test_unknown_architecture_is_unsupported() -> None:
    with pytest.raises((UnsupportedError, UnknownNameError)):
        resolve_model({**TINY, "model_type": "not-a-model"})

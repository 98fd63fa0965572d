"""The facts about a model, from the catalogue, a local folder, or the hub: the only place that reads config.json.

Only config.json is ever fetched: never weights, never a repository's code.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from advisor.hub_cache import find_cached, offline_switch
from profiles.catalog import ModelRow, find_exact_model_row, load_model_rows, model_index
from profiles.errors import AdviseError, InvalidInputError, InvalidModelError, UnknownNameError
from profiles.families import describe_model
from profiles.model import ModelSpec
from profiles.record import Record
from profiles.units import MIB

MAX_CONFIG_BYTES = 4 * MIB  # the largest real ones hold long label maps and stay below 1 MiB
HUB_TIMEOUT_S = 5.0  # for the first word, three times that for the file; HF_HUB_ETAG_TIMEOUT overrides it
CONFIG = "config.json"

# The hub's own rule (huggingface_hub validate_repo_id), for one optional organisation and one name.
_HUB_ID = re.compile(r"^(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}$", re.ASCII)
_CATALOGUE_NAME = re.compile(r"^[\w.:+/ -]{1,100}$", re.ASCII)
_NAME_HINT = "A model is a catalogue name, a hub id (org/name), a folder with a config.json, or a config.json."


def resolve_model(ref: str | dict[str, Any], *, offline: bool = False, token: str | None = None) -> ModelSpec:
    """Describe the model that `ref` means: a catalogue name, a folder or config.json, a hub id, or a config itself.

    The catalogue and local files need no network. Raises InvalidInputError, InvalidModelError, UnsupportedError,
    UnknownNameError, and AdviseError with code model-gated, model-offline or hub-unreachable.
    """
    return describe_model(*model_config(ref, offline=offline, token=token))


def model_config(
    ref: str | dict[str, Any], *, offline: bool = False, token: str | None = None
) -> tuple[dict[str, Any], str]:
    """(config.json's content, name) of what `ref` means. Raises as `resolve_model` does."""
    if isinstance(ref, dict):
        return ref, str(ref.get("_name_or_path") or "config")[:100]
    name = _checked(ref)
    path = _local(name)
    if path is not None:
        return _read_config(path), path.parent.resolve().name if path.name == CONFIG else path.name
    row = find_known(name)
    if row is not None:
        return dict(row.config), row.id
    if not _HUB_ID.match(name) or ".." in name or "--" in name:
        raise InvalidInputError("model", f"{name!r} is neither a name, a hub id nor a folder", _NAME_HINT)
    return _read_config(_download_config(name, offline, token)), name


def find_known(ref: str) -> ModelRow | None:
    """The catalogue's row for `ref`, or None: never the network."""
    if not _CATALOGUE_NAME.match(ref) or _is_path(ref):
        return None
    exact = find_exact_model_row(ref)
    if exact is not None:
        return exact
    known = model_index().get(ref)
    return load_model_rows()[known] if known else None


def find_tokenizer(ref: str | dict[str, Any]) -> Path | None:
    """The tokenizer.json of that model on this machine: in its folder, or in the hub's cache. Never downloads."""
    if isinstance(ref, dict):
        return None
    name = _checked(ref)
    path = _local(name)
    if path is not None:
        tokenizer = path.parent / "tokenizer.json"
        return tokenizer if tokenizer.is_file() else None
    row = find_known(name)
    hub_ids = (row.id, *row.variants) if row else (name,)
    cached = (find_cached(hub_id, "tokenizer.json") for hub_id in hub_ids if _HUB_ID.match(hub_id))
    return next((path for path in cached if path), None)


def fingerprint(record: Record) -> str:
    """12 hex digits that change when any field does: sha256 of the record's canonical JSON."""
    text = json.dumps(record.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _checked(ref: str) -> str:
    name = ref.strip()
    if not name:
        raise InvalidInputError("model", "is empty", _NAME_HINT)
    if not name.isprintable() or len(name) > 4096:
        raise InvalidInputError("model", f"{name[:60]!r} is no model's name", _NAME_HINT)
    return name


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.endswith((".json", "/"))


def _local(name: str) -> Path | None:
    """The config.json that `name` points at. A catalogue name wins over a folder of that name; './' says folder.

    Raises InvalidModelError where a path is meant and there is no config.json.
    """
    if not _is_path(name) and (find_known(name) or not os.path.isdir(name)):
        return None
    path = Path(os.path.expanduser(name))  # leaves an unknown ~user as it is
    config = path / CONFIG if path.is_dir() else path
    if config.is_file():
        return config
    if not path.exists():
        raise InvalidModelError(name, "there is no such file or folder", _NAME_HINT)
    if (path / "adapter_config.json").is_file():
        raise InvalidModelError(
            name, "is an adapter, not a model", "Name the base model that its adapter_config.json names."
        )
    raise InvalidModelError(name, "there is no config.json in it", _NAME_HINT)


def _read_config(path: Path) -> dict[str, Any]:
    """The object in a config.json. Raises InvalidModelError with the line of the mistake."""
    hint = "Take config.json as the model's hub page has it."
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise InvalidModelError(path, f"has {size:,} bytes, no config.json is as large", hint)
        config = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except OSError as error:
        raise InvalidModelError(path, f"cannot be read: {error.strerror}", hint) from None
    except UnicodeDecodeError:
        raise InvalidModelError(path, "is not text (UTF-8): weights or an archive?", hint) from None
    except json.JSONDecodeError as error:
        raise InvalidModelError(f"{path}:{error.lineno}", f"is not JSON: {error.msg}", hint) from None
    except (ValueError, RecursionError) as error:  # NaN, integers of thousands of digits, absurd nesting
        raise InvalidModelError(path, f"is not a usable config: {str(error)[:100]}", hint) from None
    if not isinstance(config, dict):
        raise InvalidModelError(path, "holds no JSON object", hint)
    return config


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no size")


def _download_config(hub_id: str, offline: bool, token: str | None) -> Path:
    """config.json of a hub repository. HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN count.

    The hub's cache answers first: the shapes of a published model do not change. A HEAD request goes ahead of the
    download because hf_hub_download retries for a minute where this one answers at once.
    """
    cached = find_cached(hub_id, CONFIG)
    if cached is not None:
        return cached
    if offline or offline_switch():
        raise _offline(hub_id)
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    timeout = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else HUB_TIMEOUT_S
    try:
        metadata = get_hf_file_metadata(hf_hub_url(hub_id, CONFIG), token=token, timeout=timeout)
        if (metadata.size or 0) > MAX_CONFIG_BYTES:
            raise InvalidModelError(hub_id, f"its config.json has {metadata.size:,} bytes: it is none")
        return _fetch(hub_id, token, 3 * timeout)
    except AdviseError:
        raise
    except errors.GatedRepoError:
        raise AdviseError(
            "model-gated",
            f"{hub_id} is gated: the hub shows its config.json only to those who accepted its terms",
            f"Accept them on {constants.ENDPOINT}/{hub_id}, then `hf auth login` or set HF_TOKEN; "
            "or name a local folder that holds its config.json.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise _unknown(hub_id) from None
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(hub_id, error.__cause__ or error) from None
    except errors.EntryNotFoundError:
        raise InvalidModelError(
            hub_id, "its repository has no config.json", "Name the base model: adapters and GGUF files have none."
        ) from None
    except Exception as error:  # the HTTP library below differs between huggingface_hub's versions
        raise _unreachable(hub_id, error) from None


def _fetch(hub_id: str, token: str | None, deadline_s: float) -> Path:
    """Download config.json into the hub's cache, quietly. Raises TimeoutError after `deadline_s` seconds."""
    import logging
    from queue import Empty, Queue
    from threading import Thread

    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    done: Queue[str | Exception] = Queue()

    def download() -> None:
        try:
            done.put(hf_hub_download(hub_id, CONFIG, token=token))
        except Exception as error:
            done.put(error)

    Thread(target=download, daemon=True).start()
    try:
        result = done.get(timeout=deadline_s)
    except Empty:
        raise TimeoutError(f"no answer in {deadline_s:g} s") from None
    if isinstance(result, Exception):
        raise result
    return Path(result)


def _unknown(name: str) -> UnknownNameError:
    listing = f"The hub has no such public repository; a private one needs HF_TOKEN. {_NAME_HINT}"
    return UnknownNameError("model", name, model_index().suggest(name), listing)


def _near(name: str) -> str:
    near = model_index().suggest(name)
    return f"Did you mean {', '.join(near)}? " if near else ""


def _offline(name: str) -> AdviseError:
    return AdviseError(
        "model-offline",
        f"{name} is neither in the catalogue nor in the hub's cache, and the network is off",
        f"{_near(name)}Go online once, or name a local folder that holds its config.json.",
    )


def _unreachable(name: str, error: BaseException) -> AdviseError:
    said = " ".join(str(error).split())[:160] or type(error).__name__
    return AdviseError(
        "hub-unreachable",
        f"{name} is not in the catalogue, and the hub gave no config.json for it: {said}",
        f"{_near(name)}Check the network and HF_ENDPOINT, or name a local folder that holds its config.json.",
    )

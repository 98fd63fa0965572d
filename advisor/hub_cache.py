"""Files in the hub's cache, found without importing huggingface_hub (which costs as much as a whole plain answer).

The layout is documented: huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

import os
from pathlib import Path


def hub_cache() -> Path:
    """Where huggingface_hub keeps repositories, by the same environment variables."""
    cache = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(_hub_home(), "hub"))
    return _expand(os.environ.get("HF_HUB_CACHE", cache))


def offline_switch() -> str | None:
    """The environment variable that switches the network off, if one does; huggingface_hub looks but on its import."""
    name = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), None)
    return name if name and os.environ[name].upper() in ("1", "ON", "YES", "TRUE") else None


def read_token() -> str | None:
    """The user's access token, from where huggingface_hub takes it; for a request's header only, never to be shown."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name, "").strip():
            return token
    try:
        path = _expand(os.environ.get("HF_TOKEN_PATH", os.path.join(_hub_home(), "token")))
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def find_cached(hub_id: str, filename: str) -> Path | None:
    """That file of the main revision of a model's repository, if it was downloaded before."""
    repository = hub_cache() / f"models--{hub_id.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = repository / "snapshots" / commit / filename
    return path if path.is_file() else None


def _hub_home() -> str:
    return os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path)))

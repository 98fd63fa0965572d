"""Files in the hub's cache, found without importing huggingface_hub (which costs as much as a whole plain answer).

The layout is documented: huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

import os
from pathlib import Path


def hub_cache() -> Path:
    """Where huggingface_hub keeps repositories, by the same environment variables."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(home, "huggingface"))
    cache = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return Path(os.path.expandvars(os.path.expanduser(os.environ.get("HF_HUB_CACHE", cache))))


def find_cached(hub_id: str, filename: str) -> Path | None:
    """That file of the main revision of a model's repository, if it was downloaded before."""
    repository = hub_cache() / f"models--{hub_id.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = repository / "snapshots" / commit / filename
    return path if path.is_file() else None

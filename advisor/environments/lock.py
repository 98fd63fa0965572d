"""A platform's lock: every package of its environment in the one version that was tested."""

import hashlib
import sys
from functools import cached_property
from pathlib import Path

from profiles.record import Record

LOCKS = Path(__file__).parent / "data"

# Linked against CUDA, or written in Triton: beside a CPU build of torch they break the import, or are of no use.
LEFT_OUT_ON_CPU = frozenset({"liger-kernel", "torchaudio", "torchcodec", "torchvision", "xformers"})
CPU_TAG = "" if sys.platform == "darwin" else "+cpu"  # the local version of PyTorch's CPU builds; macOS has no other


class Lock(Record):
    """Versions by normalised name. `fingerprint` changes with any of them."""

    pins: dict[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """Short digest of all pins."""
        return hashlib.sha256(self.requirements.encode()).hexdigest()[:16]

    @cached_property
    def requirements(self) -> str:
        """The pins as a requirements file."""
        return "".join(f"{name}=={version}\n" for name, version in sorted(self.pins.items()))

    def for_cpu(self) -> "Lock":
        """The same without what has no CPU build on PyPI."""
        return Lock(pins={name: version for name, version in self.pins.items() if name not in LEFT_OUT_ON_CPU})


def load_lock(platform: str) -> Lock:
    """The lock that ships for a platform."""
    lines = (LOCKS / f"{platform}.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return Lock(pins={normalize(name): version for name, version in pairs})


def normalize(name: str) -> str:
    """A distribution's name as all spellings of it are compared (PEP 503, with PEP 625's underscore for a dash)."""
    return name.lower().replace("_", "-").replace(".", "-")

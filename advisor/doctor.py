"""The state of this machine for fine-tuning. Nothing heavy is imported: versions come from package metadata."""

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from advisor.hardware import resolve_hardware
from profiles.platform import load_platforms
from profiles.record import Record
from profiles.units import bytes_from_gib, format_bytes

LOW_DISK = bytes_from_gib(20)  # an 8B model in bf16 is 15 GiB on disk, before any checkpoint
HUB_TIMEOUT_S = 3.0


class Finding(Record):
    """One thing looked at: what it is, and what it means for a run."""

    topic: str
    level: Literal["ok", "note", "problem"]
    found: str
    meaning: str


def examine(*, ask_hub: bool = False) -> tuple[Finding, ...]:
    """Look at everything. The network is used only if `ask_hub`."""
    return (*_hardware(), *_torch(), *_versions(), *_disk(), *_hub(ask_hub))


def _hardware() -> Iterator[Finding]:
    hardware = resolve_hardware()
    gpu = hardware.gpu
    if hardware.origin == "cpu":
        yield Finding(
            topic="GPU",
            level="note",
            found=f"none; {gpu.name}, {format_bytes(gpu.memory_bytes)} of memory",
            meaning="small models can be trained; for another machine name its card with --gpu or --vram",
        )
    else:
        driver = f", driver {hardware.driver_version}" if hardware.driver_version else ""
        cuda = f", CUDA up to {hardware.cuda_version}" if hardware.cuda_version else ""
        yield Finding(
            topic="GPU",
            level="ok",
            found=f"{hardware.n_gpus} x {gpu.name}, {format_bytes(gpu.memory_bytes)}{driver}{cuda}",
            meaning="plans are made for this card unless another is named",
        )
    for said in hardware.assumptions:
        yield Finding(topic="GPU", level="note", found=said, meaning="the plans take this into account")


def _torch() -> Iterator[Finding]:
    found = _version("torch")
    if found is None:
        yield Finding(
            topic="torch",
            level="note",
            found="not installed",
            meaning="advice works without it; runs need it: pip install 'ftadvise[train]'",
        )
        return
    gpu = resolve_hardware().origin == "detected"
    if gpu and found.endswith("+cpu"):
        yield Finding(
            topic="torch",
            level="problem",
            found=f"{found}, a build without CUDA",
            meaning="the GPU would not be used: install a CUDA build of the same version",
        )
    else:
        build = "a build without CUDA" if found.endswith("+cpu") else "with CUDA"
        yield Finding(topic="torch", level="ok", found=f"{found}, {build}", meaning="fits this machine")


def _versions() -> Iterator[Finding]:
    """The versions that the Hugging Face platform was tested with."""
    for name, tested in load_platforms()["hf"].versions.items():
        found = _version(name)
        if name == "torch" or found == tested:
            continue
        if found is None:
            meaning = f"runs need it: tested with {tested}"
            yield Finding(topic=name, level="note", found="not installed", meaning=meaning)
        else:
            meaning = f"tested with {tested}; the emitted requirements pin that"
            yield Finding(topic=name, level="note", found=found, meaning=meaning)


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    low = free < LOW_DISK
    yield Finding(
        topic="disk",
        level="note" if low else "ok",
        found=f"{format_bytes(free)} free here",
        meaning="an 8B model and its checkpoints may not fit" if low else "room for weights and checkpoints",
    )


def _hub(ask: bool) -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "").casefold() in ("1", "true", "yes", "on"):
        yield Finding(
            topic="hub", level="note", found="HF_HUB_OFFLINE is set", meaning="catalogue, cache and folders only"
        )
        return
    token = bool(os.environ.get("HF_TOKEN")) or (Path.home() / ".cache/huggingface/token").is_file()
    yield Finding(
        topic="hub",
        level="ok" if token else "note",
        found="a token is set" if token else "no token",
        meaning="gated models can be asked for" if token else "gated models need one: `hf auth login`",
    )
    if ask:
        yield _ask_hub(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


def _ask_hub(endpoint: str) -> Finding:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_S):
            pass
    except HTTPError:  # it answers, whatever it says to HEAD
        pass
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))[:80]
        return Finding(
            topic="hub", level="note", found=f"{endpoint}: {reason}", meaning="catalogue, cache and folders still work"
        )
    return Finding(topic="hub", level="ok", found=f"{endpoint} answers", meaning="any public model can be named")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

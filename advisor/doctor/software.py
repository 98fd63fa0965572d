"""What would run: torch and its CUDA, the tested versions, the platforms' environments."""

import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from advisor.doctor.finding import Finding
from advisor.environments import Environment
from profiles.gpu import Hardware
from profiles.platform import load_platforms

# The oldest driver of a CUDA generation (NVIDIA, CUDA Compatibility, table "minor version compatibility").
OLDEST_DRIVER = {"11": "450", "12": "525", "13": "580"}


def examine_own_packages(hardware: Hardware) -> Iterator[Finding]:
    """torch and the tested versions of Hugging Face, in the Python that runs ftadvise."""
    found = _own_version("torch")
    if found is None:
        yield Finding(
            topic="torch",
            level="note",
            found="not beside ftadvise",
            meaning="advice works without it; runs take a platform's environment",
            mend="`ftadvise env create hf`",
        )
        return
    yield judge_torch("torch", found, _cuda_of(metadata.distribution("torch").locate_file("")), hardware)
    for name, tested in load_platforms()["hf"].versions.items():
        version = _own_version(name)
        if name != "torch" and version != tested:
            yield Finding(
                topic=name,
                level="note",
                found=version or "not installed",
                meaning=f"tested with {tested}: a run here would differ, so `launch` prefers a platform's environment",
                mend=f"pip install {name}=={tested}, or `ftadvise env create hf`",
            )


def examine_environments(environments: Sequence[Environment], hardware: Hardware) -> Iterator[Finding]:
    """Each platform's environment: whether it can be used, and whether its torch suits the card."""
    found: dict[str, Environment] = {environment.platform: environment for environment in environments}
    for platform, spec in load_platforms().items():
        environment = found.get(spec.id)
        create = f"`ftadvise env create {platform}`"
        topic = f"env {platform}"
        if environment is None:
            yield Finding(
                topic=topic, level="note", found="not built", meaning=f"{spec.name} runs from there", mend=create
            )
        elif environment.state == "building":
            yield Finding(topic=topic, level="note", found="being built", meaning="it can be used in some minutes")
        elif environment.state != "ready":
            yield Finding(
                topic=topic,
                level="problem",
                found=f"{environment.state}: {environment.reason}",
                meaning="`launch` does not use it",
                mend=create,
            )
        else:
            site = next(Path(environment.path).glob("lib/python3*/site-packages"))
            version = next(d.version for d in metadata.distributions(path=[str(site)]) if d.name == "torch")
            yield judge_torch(topic, version, _cuda_of(site), hardware)


def judge_torch(topic: str, version: str, cuda: str | None, hardware: Hardware) -> Finding:
    """Whether a torch built for `cuda` (None: without) uses this machine's card and is let by its driver. Pure."""
    build = f"torch {version}, built {f'for CUDA {cuda}' if cuda else 'without CUDA'}"
    if hardware.origin != "detected" or hardware.gpu.vendor != "NVIDIA":
        return Finding(topic=topic, level="ok", found=build, meaning="ready for this machine")
    if cuda is None:
        return Finding(
            topic=topic,
            level="problem",
            found=build,
            meaning="the GPU would not be used",
            mend="`ftadvise env create` without --cpu builds an environment with CUDA",
        )
    generation, allowed = cuda.split(".")[0], (hardware.cuda_version or cuda).split(".")[0]
    if int(allowed) < int(generation):
        return Finding(
            topic=topic,
            level="problem",
            found=f"{build}; the driver goes up to CUDA {hardware.cuda_version}",
            meaning="torch would not see the GPU",
            mend=f"update the driver to {OLDEST_DRIVER.get(generation, 'the newest')} or later",
        )
    return Finding(topic=topic, level="ok", found=build, meaning="the driver runs it")


def _cuda_of(site: object) -> str | None:
    """The CUDA version in torch/version.py, which the local version of PyPI's wheels does not tell."""
    try:
        text = Path(str(site), "torch", "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b.*= '(\d+\.\d+)'", text, re.MULTILINE)
    return found[1] if found else None


def _own_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

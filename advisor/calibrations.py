"""Which stored calibration speaks for some hardware. On the path of every answer: without a store it costs nothing."""

import re
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

from profiles.calibration import Calibration, widened
from profiles.errors import AdviseError
from profiles.gpu import GpuSpec, Hardware
from profiles.measurement import Environment
from profiles.store import Store

PACKAGES = ("torch", "transformers", "peft")  # what decides how fast a step is


def hardware_name(gpu: GpuSpec) -> str:
    """The card's name; of a CPU the cores and the make, since all CPUs have one id."""
    return f"{gpu.name} ({gpu.arch})" if gpu.vendor == "CPU" and gpu.arch else gpu.name


def environment_of(hardware: Hardware, versions: Mapping[str, str] | None = None) -> Environment:
    """This hardware with the versions given, else with those installed here."""
    found = installed_versions() if versions is None else {p: versions[p] for p in PACKAGES if p in versions}
    return Environment(
        hardware=hardware_name(hardware.gpu), driver_version=hardware.driver_version, versions=dict(found)
    )


def installed_versions() -> dict[str, str]:
    """Of PACKAGES, those that are installed, from their metadata."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def calibration_id(environment: Environment) -> str:
    """The file name: readable hardware and a hash of all of it, so that other versions have another calibration."""
    return f"{_slug(environment.hardware)}.{sha256(environment.model_dump_json().encode()).hexdigest()[:10]}"


def find_calibration(hardware: Hardware, store: Store | None = None) -> tuple[Calibration | None, tuple[str, ...]]:
    """The calibration of this hardware, and what has to be said about the search.

    With other versions or another driver than here it is still used, with a wider interval and a note. A file that
    cannot be read is left alone and said.
    """
    shelf = (store or Store()).calibrations
    if hardware.candidates or not shelf.folder.is_dir():
        return None, ()
    own = hardware_name(hardware.gpu)
    found, said = [], []
    for path in sorted(shelf.folder.glob(f"{_slug(own)}.*.json")):
        try:
            calibration = shelf.get(path.stem)
        except AdviseError as error:
            said.append(f"{error.message}; its calibration is not used")
            continue
        if calibration is not None and calibration.environment.hardware == own:
            found.append(calibration)
    if not found:
        return None, tuple(said)
    chosen = min(found, key=lambda c: (len(_differences(c, hardware)), _newest_first(c)))
    differences = _differences(chosen, hardware)
    if differences:
        return widened(chosen, f"calibrated with {', '.join(differences)}: the interval is wider"), tuple(said)
    return chosen, tuple(said)


def _differences(calibration: Calibration, hardware: Hardware) -> list[str]:
    """Where the calibration's environment is not this one. A package that is not installed here says nothing."""
    here, there = installed_versions(), calibration.environment
    found = [f"{p} {v} (here {here[p]})" for p, v in there.versions.items() if p in here and here[p] != v]
    if hardware.driver_version and there.driver_version and hardware.driver_version != there.driver_version:
        found.append(f"driver {there.driver_version} (here {hardware.driver_version})")
    return found


def _newest_first(calibration: Calibration) -> tuple[int, ...]:
    return tuple(-int(part) for part in re.findall(r"\d+", calibration.date))


def _slug(hardware: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", hardware.casefold()).strip("-")[:80] or "unnamed"

"""What this machine has: NVML first (milliseconds), torch only where NVML cannot see the card, else the CPU."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from advisor.hardware import driver_reserve_gib
from profiles.catalog import find_gpu, gpu_index, load_gpus
from profiles.gpu import GpuSpec, Hardware
from profiles.name_index import normalize_name
from profiles.units import KIB, bytes_from_gib, gib_from_bytes

# Accelerators that NVML does not see: AMD's kernel driver, Huawei's. (Apple: by platform.)
OTHER_DEVICES = (Path("/dev/kfd"), Path("/dev/davinci0"))
FLASH_ATTENTION_2_CAPABILITY = (8, 0)  # sm80, Ampere (flash-attention README)
IN_USE_WORTH_SAYING_GIB = 0.5


class Card(NamedTuple):
    """One device as its driver describes it; memory in bytes, None where it does not say (unified memory)."""

    name: str
    uuid: str
    total: int | None
    reserved: int
    free: int | None
    capability: tuple[int, int] | None
    mig: bool = False
    seen_by_torch: bool = False  # total is torch's own figure: nothing more to take off

    @property
    def used(self) -> int | None:
        """What programs hold."""
        return None if self.total is None or self.free is None else self.total - self.reserved - self.free


def detect_hardware() -> Hardware:
    """The cards of this machine that a program would see (CUDA_VISIBLE_DEVICES counts), else its CPU."""
    nvml = _load_nvml()
    if nvml is not None:
        with _nvml_session(nvml):
            cards = list(_nvml_cards(nvml))
            driver, cuda = _text(nvml.nvmlSystemGetDriverVersion()), _cuda_version(nvml)
        visible, said = _visible(cards)
        if visible:
            return _describe(visible, said, driver, cuda)
        return detect_cpu((*said, "no NVIDIA card is visible")) if said else detect_cpu()
    if _torch_may_see_more():
        cards = _torch_cards()
        if cards:
            return _describe(cards, (), None, None)
    return detect_cpu()


@contextmanager
def open_cards() -> Iterator[Callable[[], tuple[Card, ...]]]:
    """A reader of the NVIDIA cards that a program would see, as they are at each call; none where NVML is missing."""
    nvml = _load_nvml()
    if nvml is None:
        yield tuple
        return
    with _nvml_session(nvml):
        yield lambda: tuple(_visible(list(_nvml_cards(nvml)))[0])


def detect_cpu(assumptions: tuple[str, ...] = ()) -> Hardware:
    """This machine's CPU: memory is its RAM or the container's limit, whichever is less; no peak rate is claimed."""
    total, available = _ram()
    limit, used = _cgroup_memory()
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - used)
    cores = _cores()
    card = GpuSpec(
        id="cpu",
        name=f"CPU, {cores} core{'s' if cores > 1 else ''}",
        vendor="CPU",
        arch=_cpu_model(),
        memory_gib=gib_from_bytes(total),
        sm_count=cores,
        bf16=True,
        flash_attention_2=False,
        flash_attention_3=False,
        notes=f"{cores} cores",
    )
    return Hardware(gpu=card, origin="cpu", free_gib=gib_from_bytes(max(available, 0)), assumptions=assumptions)


def _describe(cards: list[Card], said: tuple[str, ...], driver: str | None, cuda: str | None) -> Hardware:
    """Equal cards as they are; of unequal ones all count, and the one with the least memory stands for each."""
    smallest = min(cards, key=lambda card: card.total or 0)
    assumptions = list(said)
    n_gpus = len(cards)
    if len({card.name for card in cards}) > 1:
        names = ", ".join(sorted({card.name for card in cards}))
        assumptions.append(f"cards differ ({names}): all are taken for the smallest, {smallest.name}")
    if any(card.mig for card in cards):
        n_gpus = 1
        assumptions.append(
            f"MIG is on ({len(cards)} visible): a program can use one instance only; planned for one of the smallest, "
            "whose rates are not known"
        )
    spec, said_of_card = _spec(smallest)
    free = min((card.free for card in cards if card.free is not None), default=None)
    in_use = [gib_from_bytes(card.used) for card in cards if card.used is not None]
    if in_use and max(in_use) > IN_USE_WORTH_SAYING_GIB:
        assumptions.append(f"other programs hold {max(in_use):.1f} GiB now; the budget is the whole card")
    return Hardware(
        gpu=spec,
        n_gpus=n_gpus,
        origin="detected",
        driver_version=driver,
        cuda_version=cuda,
        free_gib=None if free is None else gib_from_bytes(free),
        assumptions=(*assumptions, *said_of_card),
    )


def _spec(card: Card) -> tuple[GpuSpec, tuple[str, ...]]:
    """The catalogue's row of that exact name with this card's memory; without a row, only what the driver says."""
    row = gpu_index().get(card.name)
    known = load_gpus().get(row) if row else None
    if card.total is None:
        if known is None:
            total, _ = _ram()
            spec = _bare_spec(card, gib_from_bytes(total) - driver_reserve_gib(gib_from_bytes(total)))
            return spec, (f"the driver states no memory for {card.name}: the machine's RAM is taken",)
        return known, (f"the driver states no memory for {card.name}: the catalogue's figure is taken",)
    total_gib = gib_from_bytes(card.total)
    reserve = 0.0 if card.seen_by_torch else max(gib_from_bytes(card.reserved), driver_reserve_gib(total_gib))
    usable = total_gib - reserve
    if row is None or card.mig:
        return _bare_spec(card, usable), (f"{card.name} is not in the catalogue: its rates are not known",)
    if known is not None and known.memory_gib_is_reported and usable <= known.memory_gib <= total_gib:
        return known, ()
    return find_gpu(row, memory_gib=round(usable, 2)), (
        f"memory is the driver's {total_gib:.2f} GiB less {reserve:.2f} GiB that it keeps",
    )


def _bare_spec(card: Card, memory_gib: float) -> GpuSpec:
    ampere = None if card.capability is None else card.capability >= FLASH_ATTENTION_2_CAPABILITY
    return GpuSpec(
        id=normalize_name(card.name),
        name=card.name,
        vendor="NVIDIA" if card.capability is not None else "unnamed",
        compute_capability=card.capability,
        memory_gib=round(memory_gib, 2),
        memory_gib_is_reported=False,
        bf16=ampere,
        flash_attention_2=ampere,
    )


def _visible(cards: list[Card]) -> tuple[list[Card], tuple[str, ...]]:
    """The cards that CUDA_VISIBLE_DEVICES leaves (NVML itself ignores it). As in CUDA, a wrong entry ends the list."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return cards, ()
    chosen: list[Card] = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.isdecimal() and int(entry) < len(cards):
            card = cards[int(entry)]
        else:
            named = [card for card in cards if entry.startswith(("GPU-", "MIG-")) and card.uuid.startswith(entry)]
            if len(named) != 1:
                break
            card = named[0]
        chosen.append(card)
    return chosen, (f"CUDA_VISIBLE_DEVICES={wanted} leaves {len(chosen)} of {len(cards)} cards",)


def _load_nvml() -> ModuleType | None:
    """pynvml where it and the driver's library are there and start, else None."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return pynvml  # type: ignore[no-any-return]


@contextmanager
def _nvml_session(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _nvml_cards(nvml: Any) -> Iterator[Card]:
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
            instances = list(_mig_instances(nvml, handle))
            for device in instances or [handle]:
                total, reserved, free = _nvml_memory(nvml, device)
                name, uuid = _text(nvml.nvmlDeviceGetName(device)), _text(nvml.nvmlDeviceGetUUID(device))
                yield Card(name, uuid, total, reserved, free, capability, mig=bool(instances))
        except nvml.NVMLError:  # a card that fell off the bus, or one that this user may not see
            continue


def _mig_instances(nvml: Any, handle: Any) -> Iterator[Any]:
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != 1:
            return
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:  # not supported: most cards
        return
    for index in range(count):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:  # an empty slot
            continue


def _nvml_memory(nvml: Any, device: Any) -> tuple[int | None, int, int | None]:
    """(total, reserved by the driver, free) in bytes; old drivers have no version 2, unified memory has neither."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2)
        return memory.total, memory.reserved, memory.free
    except nvml.NVMLError:
        pass
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(device)
        return memory.total, bytes_from_gib(driver_reserve_gib(gib_from_bytes(memory.total))), memory.free
    except nvml.NVMLError:
        return None, 0, None


def _cuda_version(nvml: Any) -> str | None:
    try:
        version = nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError:
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _torch_may_see_more() -> bool:
    """Importing torch takes seconds, so only where it is loaded already or another vendor's device shows itself."""
    apple = sys.platform == "darwin" and os.uname().machine == "arm64"
    return "torch" in sys.modules or apple or any(path.exists() for path in OTHER_DEVICES)


def _torch_cards() -> list[Card]:
    """AMD (ROCm) cards, or Apple's GPU with the memory that Metal recommends."""
    try:
        import torch
    except ImportError:
        return []
    if torch.cuda.is_available():
        cards = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, _ = torch.cuda.mem_get_info(index)
            cards.append(Card(properties.name, "", properties.total_memory, 0, free, None, seen_by_torch=True))
        return cards
    if torch.backends.mps.is_available():
        return [Card("Apple GPU", "", torch.mps.recommended_max_memory(), 0, None, None, seen_by_torch=True)]
    return []


def _ram(meminfo: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """(total, available) bytes of RAM."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return tuple(int(lines[key].split()[0]) * KIB for key in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total


def _cgroup_memory(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> tuple[int | None, int]:
    """(limit, used) bytes of the tightest control group around this process, version 2 or 1; (None, 0): none."""
    tightest: tuple[int | None, int] = (None, 0)
    for folder, limit_name, used_name in _cgroup_folders(own, root):
        try:
            limit = int((folder / limit_name).read_text())
            used = int((folder / used_name).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        if tightest[0] is None or limit < tightest[0]:
            tightest = (limit, used)
    return tightest


def _cgroup_folders(own: Path, root: Path) -> Iterator[tuple[Path, str, str]]:
    """Every folder that may limit this process: its own group's and all above it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent == top or top in parent.parents)):
            yield folder, *names


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the CPU calls itself ('AMD EPYC 7763 64-Core Processor'), or only its architecture."""
    try:
        with cpuinfo.open() as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return os.uname().machine if hasattr(os, "uname") else ""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from advisor import detection
from advisor.detection import detect_cpu, detect_hardware
from profiles.units import GIB, MIB


class FakeNvmlError(Exception):
    """Stands for pynvml.NVMLError."""


class FakeNvml:
    """The calls of pynvml that detection makes, over plain dicts: name, total and used in MiB, what is unsupported."""

    NVMLError = FakeNvmlError
    nvmlMemory_v2 = 2  # noqa: N815

    def __init__(self, *cards: dict[str, Any], broken: bool = False) -> None:
        self.cards = cards
        self.broken = broken
        self.sessions = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise FakeNvmlError("NVML Shared Library Not Found")
        self.sessions += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.sessions -= 1

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"580.65.06"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 13020

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        if self.cards[index].get("lost"):
            raise FakeNvmlError("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetCudaComputeCapability(self, card: dict[str, Any]) -> list[int]:  # noqa: N802
        return card.get("capability", [8, 9])

    def nvmlDeviceGetName(self, card: dict[str, Any]) -> str:  # noqa: N802
        return str(card["name"])

    def nvmlDeviceGetUUID(self, card: dict[str, Any]) -> str:  # noqa: N802
        return str(card.get("uuid", "GPU-0"))

    def nvmlDeviceGetMigMode(self, card: dict[str, Any]) -> list[int]:  # noqa: N802
        if "mig" not in card:
            raise FakeNvmlError("Not Supported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: dict[str, Any]) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: dict[str, Any], index: int) -> dict[str, Any]:  # noqa: N802
        if index >= len(card["mig"]):
            raise FakeNvmlError("Not Found")
        return dict(card["mig"][index])

    def nvmlDeviceGetMemoryInfo(self, card: dict[str, Any], version: int | None = None) -> SimpleNamespace:  # noqa: N802
        if card["total"] is None or (version and "reserved" not in card):
            raise FakeNvmlError("Not Supported")
        total, reserved = card["total"] * MIB, card.get("reserved", 0) * MIB
        return SimpleNamespace(total=total, reserved=reserved, free=total - reserved - card.get("used", 0) * MIB)


def _gib(mib: float) -> float:
    return mib * MIB / GIB


RTX4090 = {"name": "NVIDIA GeForce RTX 4090", "total": 24564, "reserved": 357, "uuid": "GPU-aaaa"}
RTX3090 = {"name": "NVIDIA GeForce RTX 3090", "total": 24576, "reserved": 319, "uuid": "GPU-bbbb"}
RTX4080 = {"name": "NVIDIA GeForce RTX 4080", "total": 16376, "reserved": 300, "uuid": "GPU-cccc"}


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No torch loaded, no other vendor's device, no CUDA_VISIBLE_DEVICES."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(detection, "OTHER_DEVICES", ())
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def _with(monkeypatch: pytest.MonkeyPatch, *cards: dict[str, Any]) -> FakeNvml:
    nvml = FakeNvml(*cards)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def test_known_card_takes_the_catalogues_row(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _with(monkeypatch, RTX4090)
    found = detect_hardware()
    assert (found.gpu.id, found.n_gpus, found.origin) == ("rtx4090", 1, "detected")
    assert found.gpu.memory_gib == 23.52
    assert (found.driver_version, found.cuda_version) == ("580.65.06", "13.2")
    assert found.free_gib == pytest.approx(_gib(24564 - 357))
    assert found.assumptions == ()
    assert nvml.sessions == 0


def test_equal_cards_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, RTX4090, RTX4090, RTX4090)
    found = detect_hardware()
    assert (found.gpu.id, found.n_gpus, found.assumptions) == ("rtx4090", 3, ())


def test_of_mixed_cards_the_smallest_decides_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, RTX4090, RTX4080)
    found = detect_hardware()
    assert (found.gpu.id, found.n_gpus) == ("rtx4080", 2)
    assert "cards differ" in found.assumptions[0]
    assert "smallest, NVIDIA GeForce RTX 4080" in found.assumptions[0]


def test_same_name_with_less_memory_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, {"name": "NVIDIA GeForce RTX 4060 Ti", "total": 8188, "reserved": 250})
    found = detect_hardware()
    assert found.gpu.id == "rtx4060ti-16gb"
    assert found.gpu.memory_gib == pytest.approx(_gib(8188) - 0.7, abs=0.01)
    assert "less 0.70 GiB that it keeps" in found.assumptions[0]


def test_ecc_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, {"name": "NVIDIA RTX A6000", "total": 46068, "reserved": 500, "capability": [8, 6]})
    assert detect_hardware().gpu.memory_gib == pytest.approx(_gib(46068) - 0.7, abs=0.01)


def test_old_driver_without_reserved_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, {"name": "Tesla T4", "total": 15360, "capability": [7, 5]})
    found = detect_hardware()
    assert (found.gpu.id, found.gpu.memory_gib) == ("t4", 14.56)
    assert found.assumptions == ()


def test_unknown_card_claims_no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, {"name": "NVIDIA GeForce RTX 4090 Laptop GPU", "total": 16376, "reserved": 300})
    found = detect_hardware()
    assert found.gpu.name == "NVIDIA GeForce RTX 4090 Laptop GPU"
    assert found.gpu.peak_dense_tflops == {}
    assert found.gpu.compute_capability == (8, 9)
    assert found.gpu.bf16 is True
    assert found.gpu.memory_gib < _gib(16376)
    assert "not in the catalogue" in found.assumptions[0]


def test_turing_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, {"name": "Quadro RTX 5000", "total": 16384, "reserved": 300, "capability": [7, 5]})
    assert detect_hardware().gpu.bf16 is False


def test_mig_instance_is_one_small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "total": 4864, "reserved": 20, "uuid": "MIG-1"}
    large = {"name": "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "total": 19968, "reserved": 20, "uuid": "MIG-2"}
    whole = {"name": "NVIDIA A100-SXM4-40GB", "total": 40960, "reserved": 500, "capability": [8, 0]}
    _with(monkeypatch, {**whole, "mig": [large, small]})
    found = detect_hardware()
    assert found.n_gpus == 1
    assert found.gpu.memory_gib == pytest.approx(_gib(4864) - 0.7, abs=0.01)
    assert found.gpu.peak_dense_tflops == {}
    assert any("MIG is on" in said for said in found.assumptions)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-2")
    assert detect_hardware().gpu.memory_gib == pytest.approx(_gib(19968) - 0.7, abs=0.01)


def test_unified_memory_that_the_driver_does_not_state(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, {"name": "NVIDIA GB10", "total": None, "capability": [12, 1]})
    found = detect_hardware()
    assert (found.gpu.id, found.gpu.memory_gib, found.free_gib) == ("gb10", 116.8, None)
    assert "states no memory" in found.assumptions[0]


def test_memory_in_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, {**RTX4090, "used": 2048})
    found = detect_hardware()
    assert "other programs hold 2.0 GiB" in found.assumptions[0]
    assert found.gpu.memory_gib == 23.52


@pytest.mark.parametrize(
    ("value", "n_gpus", "gpu"),
    [("1", 1, "rtx3090"), ("0,1", 2, "rtx4090"), ("GPU-bb", 1, "rtx3090"), ("0,7,1", 1, "rtx4090")],
)
def test_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch, value: str, n_gpus: int, gpu: str) -> None:
    _with(monkeypatch, RTX4090, RTX3090)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = detect_hardware()
    assert (found.n_gpus, found.gpu.id) == (n_gpus, gpu)
    assert found.assumptions[0] == f"CUDA_VISIBLE_DEVICES={value} leaves {n_gpus} of 2 cards"


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_hidden_cards_leave_the_cpu(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    _with(monkeypatch, RTX4090)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = detect_hardware()
    assert found.origin == "cpu"
    assert "leaves 0 of 1 cards" in found.assumptions[0]


def test_lost_card_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, {**RTX4090, "lost": True}, RTX3090)
    assert (detect_hardware().gpu.id, detect_hardware().n_gpus) == ("rtx3090", 1)


@pytest.mark.parametrize("module", [FakeNvml(broken=True), None, FakeNvml()])
def test_no_driver_no_package_or_no_card_is_the_cpu(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)  # None: the import fails
    found = detect_hardware()
    assert (found.origin, found.gpu.vendor, found.n_gpus) == ("cpu", "CPU", 1)
    assert found.gpu.peak_dense_tflops == {}
    assert "torch" not in sys.modules


def test_torch_is_asked_only_where_another_vendors_device_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    device = tmp_path / "kfd"
    device.touch()
    monkeypatch.setattr(detection, "OTHER_DEVICES", (device,))
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_properties=lambda _: SimpleNamespace(name="AMD Instinct MI300X", total_memory=int(191.69 * GIB)),
        mem_get_info=lambda _: (int(190 * GIB), int(191.69 * GIB)),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = detect_hardware()
    assert (found.gpu.id, found.n_gpus) == ("mi300x", 2)
    assert found.gpu.memory_gib == pytest.approx(191.69, abs=0.01)


def test_cpu_memory_is_the_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "_ram", lambda: (64 * GIB, 50 * GIB))
    monkeypatch.setattr(detection, "_cgroup_memory", lambda: (None, 0))
    monkeypatch.setattr(detection, "_cores", lambda: 8)
    found = detect_cpu()
    assert (found.gpu.memory_gib, found.free_gib, found.gpu.name) == (64, 50, "CPU, 8 cores")


def test_cpu_memory_honours_the_containers_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "_ram", lambda: (64 * GIB, 50 * GIB))
    monkeypatch.setattr(detection, "_cgroup_memory", lambda: (8 * GIB, 3 * GIB))
    found = detect_cpu()
    assert (found.gpu.memory_gib, found.free_gib) == (8, 5)


def _group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_tightest_cgroup_v2_limit_above_the_process_counts(tmp_path: Path) -> None:
    _group(tmp_path / "user" / "job", memory__max="max\n", memory__current="5\n")
    _group(tmp_path / "user", memory__max="1000\n", memory__current="400\n")
    own = tmp_path / "own"
    own.write_text("0::/user/job\n")
    assert detection._cgroup_memory(own, tmp_path) == (1000, 400)


def test_cgroup_v1_limit(tmp_path: Path) -> None:
    _group(tmp_path / "memory" / "docker", memory__limit_in_bytes="2000", memory__usage_in_bytes="10")
    own = tmp_path / "own"
    own.write_text("5:cpu:/docker\n4:memory:/docker\n")
    assert detection._cgroup_memory(own, tmp_path) == (2000, 10)


def test_limit_at_the_root_of_a_container(tmp_path: Path) -> None:
    """Inside a container the path of /proc/self/cgroup may not exist; the limit stands at the root."""
    _group(tmp_path, memory__max="3000", memory__current="1")
    own = tmp_path / "own"
    own.write_text("0::/docker/abc\n")
    assert detection._cgroup_memory(own, tmp_path) == (3000, 1)
    assert detection._cgroup_memory(tmp_path / "missing", tmp_path) == (None, 0)


def test_ram_of_this_machine_and_without_meminfo(tmp_path: Path) -> None:
    total, available = detection._ram()
    assert 0 < available <= total
    without, _ = detection._ram(tmp_path / "missing")
    assert without == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

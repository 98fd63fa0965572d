"""GpuSpec: one accelerator's published facts, and Hardware: what a plan runs on."""

from functools import cached_property
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from profiles.record import Record
from profiles.source import Source
from profiles.units import GIB, bytes_per_s_from_gbps, flops_from_tflops

DType = Literal["fp32", "tf32", "bf16", "fp16", "int8", "fp8"]


class PriceRange(Record):
    """USD per GPU hour, lowest and highest seen on `source.date`."""

    low: PositiveFloat
    high: PositiveFloat
    source: Source


class GpuSpec(Record):
    """A card. `None` means not known, never zero.

    `memory_gib` is what the driver reports to torch (total_memory); `memory_marketing_gb` what the box says.
    Peaks are dense, with fp32 accumulation.
    """

    id: str
    name: str
    vendor: Literal["NVIDIA", "AMD", "Apple", "Huawei", "CPU", "unnamed"]
    aliases: tuple[str, ...] = ()
    arch: str = ""
    compute_capability: tuple[int, int] | None = None
    memory_gib: PositiveFloat
    memory_gib_is_reported: bool = True  # False: derived from the marketing figure
    memory_marketing_gb: PositiveFloat | None = None
    memory_bandwidth_gbps: PositiveFloat | None = None
    peak_dense_tflops: dict[DType, PositiveFloat] = Field(default_factory=dict)
    achieved_bf16_tflops: PositiveFloat | None = None  # best matmul rate measured by others
    bf16: bool | None = None
    flash_attention_2: bool | None = None
    flash_attention_3: bool | None = None
    link_gbps: PositiveFloat | None = None  # NVLink or like, both directions together
    pcie: str = ""
    tdp_w: PositiveFloat | None = None
    l2_mb: PositiveFloat | None = None
    sm_count: PositiveInt | None = None
    price_usd_per_hour: PriceRange | None = None
    notes: str = ""
    sources: tuple[Source, ...] = ()

    @cached_property
    def memory_bytes(self) -> int:
        """Bytes that the driver reports in total."""
        return round(self.memory_gib * GIB)

    @cached_property
    def bandwidth(self) -> float | None:
        """Memory bandwidth, bytes/s."""
        return None if self.memory_bandwidth_gbps is None else bytes_per_s_from_gbps(self.memory_bandwidth_gbps)

    def peak_flops(self, dtype: DType) -> float | None:
        """Dense peak of a matmul in `dtype`, FLOP/s."""
        tflops = self.peak_dense_tflops.get(dtype)
        return None if tflops is None else flops_from_tflops(tflops)


class Hardware(Record):
    """`n_gpus` equal cards in one node (or a CPU), how they were found, and what was assumed about them.

    `candidates` are ids of the catalogue's cards that an unnamed card (`--vram 24`) may be.
    """

    gpu: GpuSpec
    n_gpus: PositiveInt = 1
    origin: Literal["named", "memory-only", "detected", "cpu"] = "named"
    candidates: tuple[str, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    free_gib: float | None = None
    assumptions: tuple[str, ...] = ()

"""The card: driver, memory, bf16, flash attention."""

from collections.abc import Iterator

from advisor.doctor.finding import Finding
from profiles.gpu import GpuSpec, Hardware
from profiles.units import format_bytes


def examine_card(hardware: Hardware) -> Iterator[Finding]:
    """What the plans are made for."""
    gpu = hardware.gpu
    if hardware.origin == "cpu":
        yield Finding(
            topic="GPU",
            level="note",
            found=f"none; {gpu.name}, {format_bytes(gpu.memory_bytes)} of memory",
            meaning="small models can be trained; plans can be made for any card",
            mend="name another machine's card with --gpu or --vram; if this one has a card, install NVIDIA's driver",
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
        yield _bf16(gpu)
        yield _attention(gpu)
    for said in hardware.assumptions:
        yield Finding(topic="GPU", level="note", found=said, meaning="the plans take this into account")


def _bf16(gpu: GpuSpec) -> Finding:
    if gpu.bf16:
        return Finding(topic="bf16", level="ok", found="in hardware", meaning="runs compute in bf16")
    known = "not in hardware" if gpu.bf16 is False else "not known for this card"
    return Finding(
        topic="bf16",
        level="note",
        found=known,
        meaning="runs compute in fp16 with a gradient scaler, which full fine-tuning takes less well",
        mend="nothing, on this card; Ampere (2020) and later have bf16",
    )


def _attention(gpu: GpuSpec) -> Finding:
    if gpu.flash_attention_2:
        return Finding(
            topic="attention",
            level="ok",
            found="the card runs flash attention 2",
            meaning="torch's own kernels (sdpa) use it; the package flash-attn is needed only where a plan says so",
        )
    return Finding(
        topic="attention",
        level="note",
        found="no flash attention 2 on this card" if gpu.flash_attention_2 is False else "not known for this card",
        meaning="sdpa takes its memory-efficient kernel: slower on long sequences, and no packing without a mask",
        mend="nothing, on this card; leave attention at auto or sdpa",
    )

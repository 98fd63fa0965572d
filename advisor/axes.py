"""The axes inside one cell (platform x method x quantization): what a plan may still choose, most wanted first.

One small function an axis. `Axes` is their product; `search.py` walks it. What the data or the platform settle is an
axis of one value.
"""

from collections.abc import Iterator
from itertools import product
from typing import Literal, NamedTuple, get_args

from advisor.plans import Cell, attention, default_rank
from advisor.recommendation import Facts
from advisor.request import Request
from estimators.methods import get_method
from estimators.regime import LIGER_FAMILIES
from profiles.plan import FOUR_BIT, QUANTIZED, Attention, Checkpointing, LossKernel, Sharding

# What may be given up, the mildest first: each is tried only where all before it leave nothing sound.
Concession = Literal["none", "smaller adapter", "offload"]
CONCESSIONS: tuple[Concession, ...] = get_args(Concession)

ALL_LINEAR = ("all-linear",)
SMALLER_RANKS = (8, 4)
ATTENTION_ROLES = frozenset({"q", "k", "v", "o", "qkv", "kv_a", "kv_b", "q_a", "q_b"})
KTO_BATCH = 2  # it pairs prompts with other answers of the micro-batch (trl kto_trainer.py refuses 1)
PACKED_TASKS = ("sft", "pretrain")
UNSLOTH_OFFLOADS_FROM = 512  # tokens; unsloth 2026.10.7 models/_utils.py apply_unsloth_gradient_checkpointing
PACKING_PAYS = 0.5  # mean over padded length above which packing has little to gain


class Axes(NamedTuple):
    """The values of every axis of a cell, the most wanted first. Micro-batches follow from the spread and the body."""

    offloads: tuple[bool, ...]
    seq_lens: tuple[int, ...]
    target_modules: tuple[tuple[str, ...], ...]
    lora_ranks: tuple[int, ...]
    optimizers: tuple[str, ...]
    n_gpus: tuple[int, ...]
    shardings: tuple[Sharding, ...]
    offloadings: tuple[Sharding, ...]
    packings: tuple[bool, ...]
    attentions: tuple[Attention, ...]
    loss_kernels: tuple[LossKernel | None, ...]
    checkpointings: tuple[Checkpointing, ...]

    def levels(self) -> Iterator[tuple[bool, int, tuple[str, ...], int, str]]:
        """What is given up, in the order in which it is: a plan of an earlier level is always preferred."""
        yield from product(self.offloads, self.seq_lens, self.target_modules, self.lora_ranks, self.optimizers)


def axes_of(cell: Cell, request: Request, facts: Facts, concession: Concession = "none") -> Axes:
    """All axes of a cell for this request, with everything that may be conceded."""
    conceded = CONCESSIONS.index(concession)
    return Axes(
        offloads=(False, True) if conceded >= CONCESSIONS.index("offload") else (False,),
        seq_lens=(facts.seq_len,),
        target_modules=target_modules(cell, request, facts, smaller=conceded > 0),
        lora_ranks=lora_ranks(cell, request, facts, smaller=conceded > 0),
        optimizers=optimizers(cell),
        n_gpus=gpu_counts(request, facts),
        shardings=shardings(cell, facts),
        offloadings=offloadings(cell, facts),
        packings=packings(cell, request, facts),
        attentions=attentions(cell, request, facts),
        loss_kernels=loss_kernels(cell, facts),
        checkpointings=checkpointings(cell, facts),
    )


def concessions(request: Request, facts: Facts) -> tuple[Concession, ...]:
    """Those that change the space of this request at all."""
    adapter_is_free = request.lora_rank is None or not request.target_modules
    wanted = {"none": True, "smaller adapter": adapter_is_free, "offload": may_offload(request, facts)}
    return tuple(c for c in CONCESSIONS if wanted[c])


def may_offload(request: Request, facts: Facts) -> bool:
    """Weights and states in main memory: a server of several cards has much of it, one card's has to be stated."""
    several = facts.hardware.n_gpus > 1
    return several or (request.ram_gib is not None and facts.hardware.gpu.vendor != "CPU")


def lora_ranks(cell: Cell, request: Request, facts: Facts, *, smaller: bool = False) -> tuple[int, ...]:
    """The rank asked for, else a usual one; smaller ones only where nothing else fits."""
    wanted = default_rank(request, facts)
    if request.lora_rank is not None or not smaller or not get_method(cell.method).uses_rank:
        return (wanted,)
    return (wanted, *(rank for rank in SMALLER_RANKS if rank < wanted))


def target_modules(cell: Cell, request: Request, facts: Facts, *, smaller: bool = False) -> tuple[tuple[str, ...], ...]:
    """All linear layers (evidence: all, then MLP, then attention); the attention's alone where nothing else fits."""
    if request.target_modules:
        return (request.target_modules,)
    if not smaller or not get_method(cell.method).uses_rank:
        return (ALL_LINEAR,)
    names = {
        linear.name.rsplit(".", 1)[-1]
        for group in facts.model.layers
        for linear in group.block.linears
        if linear.role in ATTENTION_ROLES
    }
    return (ALL_LINEAR, tuple(sorted(names))) if names else (ALL_LINEAR,)


def optimizers(cell: Cell) -> tuple[str, ...]:
    """The plain one, and where all weights have states, the one with 8-bit states if the plain one fits in no way."""
    return ("adamw_torch_fused", "adamw_8bit") if cell.method == "full" else ("adamw_torch_fused",)


def shardings(cell: Cell, facts: Facts) -> tuple[Sharding, ...]:
    """What several cards may share. On Unsloth copies only: its FSDP2 could not be checked.

    ZeRO-1 and ZeRO-2 divide what all weights bring along; an adapter's is less than their buffers. Quantised weights
    are sharded by FSDP2 only, and those of int8 by nothing (bitsandbytes keeps their scales aside).
    """
    if facts.hardware.n_gpus == 1:
        return ("none",)
    if cell.platform == "unsloth" or cell.quantization == "int8":
        return ("ddp",)
    if cell.quantization in FOUR_BIT:
        return ("ddp", "fsdp2")
    return ("ddp", "fsdp2", "zero1", "zero2", "zero3") if cell.method == "full" else ("ddp", "fsdp2", "zero3")


def offloadings(cell: Cell, facts: Facts) -> tuple[Sharding, ...]:
    """What moves weights or states to main memory. FSDP2 needs several cards; DeepSpeed's ZeRO does it from one."""
    several = facts.hardware.n_gpus > 1
    if cell.platform == "unsloth" or cell.quantization == "int8":
        return ()
    if cell.quantization in QUANTIZED:
        return ("fsdp2",) if several else ()
    return (*(("fsdp2",) if several else ()), *(("zero2",) if cell.method == "full" else ()), "zero3")


def gpu_counts(request: Request, facts: Facts) -> tuple[int, ...]:
    """All cards; where money comes first also halves of them, since a card that waits for others is paid too."""
    n = facts.hardware.n_gpus
    if request.goal != "cheap":
        return (n,)
    counts = [n]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return tuple(counts)


def packings(cell: Cell, request: Request, facts: Facts) -> tuple[bool, ...]:
    """Several short examples in one row, where time or money come first and padding would waste half or more.

    Only on Hugging Face, whose packed batches keep documents apart by position (transformers masking_utils.py
    find_packed_sequence_indices).
    """
    if request.packing is not None:
        return (request.packing,)
    mean = facts.data.mean_len
    short = mean is not None and mean < PACKING_PAYS * facts.seq_len
    method = get_method(cell.method)
    possible = cell.platform == "hf" and facts.task in PACKED_TASKS and not (method.adds_tokens or method.adds_keys)
    return (False, True) if short and possible and request.goal in ("fast", "cheap") else (False,)


def attentions(cell: Cell, request: Request, facts: Facts) -> tuple[Attention, ...]:
    """torch's own code, and where examples are packed FlashAttention 2 too, which needs no mask to keep them apart.

    Elsewhere torch's own runs the same kernels, and FlashAttention 2 is one package more to build.
    """
    plain = attention(cell, facts)
    flash = plain == "sdpa" and facts.hardware.gpu.flash_attention_2 and cell.quantization != "fp32"
    return (plain, "flash_attention_2") if flash and True in packings(cell, request, facts) else (plain,)


def loss_kernels(cell: Cell, facts: Facts) -> tuple[LossKernel | None, ...]:
    """The platform's own; on LLaMA-Factory also Liger's, which keeps no logits."""
    model = facts.model
    liger = model.model_type in LIGER_FAMILIES and facts.hardware.gpu.vendor == "NVIDIA"
    whole = facts.task in ("sft", "pretrain")  # the other tasks need the logits (LLaMA-Factory liger_kernel.py)
    return (None, "chunked") if cell.platform == "llamafactory" and liger and whole else (None,)


def checkpointings(cell: Cell, facts: Facts) -> tuple[Checkpointing, ...]:
    """From fastest to smallest. Prefix tuning needs the KV cache, which checkpointing turns off; Unsloth offloads
    checkpoints of long sequences only."""
    if cell.method == "prefix":
        return ("none",)
    offloads = cell.platform == "unsloth" and facts.seq_len >= UNSLOTH_OFFLOADS_FROM
    return ("none", "unsloth") if offloads else ("none", "full")


def sequences_a_card(
    request: Request, facts: Facts, *, n_gpus: int | None = None, packed_len: int | None = None
) -> float:
    """One card's share of the global batch in rows. Packed rows hold as many tokens a step as padded ones would."""
    share = request.global_batch_size / (n_gpus or facts.hardware.n_gpus)
    mean = facts.data.mean_len
    return share if packed_len is None or mean is None else share * min(mean / packed_len, 1.0)


def micro_batches(request: Request, facts: Facts, share: float, *, masked_documents: bool = False) -> tuple[int, ...]:
    """Divisors of one card's share of the global batch, so that accumulation completes it exactly; ascending.

    Rows whose packed documents a mask keeps apart come one by one: it grows with the square of all their tokens.
    """
    if request.micro_batch_size is not None:
        return (request.micro_batch_size,)
    if masked_documents:
        return (1,)
    least = KTO_BATCH if facts.task == "kto" else 1
    whole = max(least, round(share))
    return tuple(n for n in range(least, whole + 1) if whole % n == 0)


def accumulation(micro_batch_size: int, share: float) -> int:
    """Micro-batches that complete one card's share of the global batch."""
    return max(1, round(share / micro_batch_size))

"""The axes inside one cell (platform x method x quantization): what a plan may still choose, most wanted first.

One small function an axis. `Axes` is their product; `search.py` walks it. What the data or the platform settle (loss
kernel, the attention code, the padded length) is an axis of one value.
"""

from collections.abc import Iterator
from itertools import product
from typing import Literal, NamedTuple, get_args

from advisor.plans import DEFAULT_RANK, Cell, attention
from advisor.recommendation import Facts
from advisor.request import Request
from estimators.methods import get_method
from profiles.plan import Checkpointing, Sharding

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
    shardings: tuple[Sharding, ...]
    n_gpus: tuple[int, ...]
    packings: tuple[bool, ...]
    checkpointings: tuple[Checkpointing, ...]
    attentions: tuple[str, ...]

    def levels(self) -> Iterator[tuple[bool, int, tuple[str, ...], int, str, Sharding]]:
        """What is given up, in the order in which it is: a plan of an earlier level is always preferred."""
        yield from product(
            self.offloads, self.seq_lens, self.target_modules, self.lora_ranks, self.optimizers, self.shardings
        )


def axes_of(cell: Cell, request: Request, facts: Facts, concession: Concession = "none") -> Axes:
    """All axes of a cell for this request, with everything that may be conceded."""
    conceded = CONCESSIONS.index(concession)
    return Axes(
        offloads=offloads(facts) if conceded >= CONCESSIONS.index("offload") else (False,),
        seq_lens=(facts.seq_len,),
        target_modules=target_modules(cell, request, facts, smaller=conceded > 0),
        lora_ranks=lora_ranks(cell, request, smaller=conceded > 0),
        optimizers=optimizers(cell),
        shardings=shardings(cell, facts),
        n_gpus=gpu_counts(request, facts),
        packings=packings(cell, request, facts),
        checkpointings=checkpointings(cell, facts),
        attentions=(attention(cell, facts),),
    )


def concessions(request: Request, facts: Facts) -> tuple[Concession, ...]:
    """Those that change the space of this request at all."""
    adapter_is_free = request.lora_rank is None or not request.target_modules
    wanted = {"none": True, "smaller adapter": adapter_is_free, "offload": len(offloads(facts)) > 1}
    return tuple(c for c in CONCESSIONS if wanted[c])


def offloads(facts: Facts) -> tuple[bool, ...]:
    """Weights and states in main memory: FSDP2 does it, which needs several cards."""
    return (False, True) if facts.hardware.n_gpus > 1 else (False,)


def lora_ranks(cell: Cell, request: Request, *, smaller: bool = False) -> tuple[int, ...]:
    """The rank asked for, else 16; smaller ones only where nothing else fits."""
    wanted = request.lora_rank or DEFAULT_RANK
    if request.lora_rank is not None or not smaller or not get_method(cell.method).uses_rank:
        return (wanted,)
    return (wanted, *SMALLER_RANKS)


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
    """Copies first, shards where copies do not fit. On Unsloth copies only: its FSDP2 could not be checked."""
    if facts.hardware.n_gpus == 1:
        return ("none",)
    return ("ddp",) if cell.platform == "unsloth" else ("ddp", "fsdp2")


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


def checkpointings(cell: Cell, facts: Facts) -> tuple[Checkpointing, ...]:
    """From fastest to smallest. Prefix tuning needs the KV cache, which checkpointing turns off; Unsloth offloads
    checkpoints of long sequences only."""
    if cell.method == "prefix":
        return ("none",)
    offloads = cell.platform == "unsloth" and facts.seq_len >= UNSLOTH_OFFLOADS_FROM
    return ("none", "unsloth") if offloads else ("none", "full")


def sequences_a_card(request: Request, facts: Facts, *, n_gpus: int, packed_len: int | None = None) -> float:
    """One card's share of the global batch in rows. Packed rows hold as many tokens a step as padded ones would."""
    share = request.global_batch_size / n_gpus
    mean = facts.data.mean_len
    return share if packed_len is None or mean is None else share * min(mean / packed_len, 1.0)


def micro_batches(
    request: Request, facts: Facts, *, n_gpus: int | None = None, packed_len: int | None = None
) -> tuple[int, ...]:
    """Divisors of one card's share of the global batch, so that accumulation completes it exactly; ascending.

    Packed rows come one by one: their mask of documents grows with the square of all tokens of a micro-batch.
    """
    if request.micro_batch_size is not None:
        return (request.micro_batch_size,)
    if packed_len is not None:
        return (1,)
    least = KTO_BATCH if facts.task == "kto" else 1
    share = max(least, round(sequences_a_card(request, facts, n_gpus=n_gpus or facts.hardware.n_gpus)))
    return tuple(n for n in range(least, share + 1) if share % n == 0)


def accumulation(
    micro_batch_size: int, request: Request, facts: Facts, *, n_gpus: int | None = None, packed_len: int | None = None
) -> int:
    """Steps that complete the wanted global batch."""
    share = sequences_a_card(request, facts, n_gpus=n_gpus or facts.hardware.n_gpus, packed_len=packed_len)
    return max(1, round(share / micro_batch_size))

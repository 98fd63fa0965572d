"""What the user says about the hardware (`--gpu "2x a100-80g"`, `--vram 24`, nothing) -> Hardware."""

import math
import re
from typing import Any

from profiles.catalog import find_gpu, find_gpu_family, find_gpus_by_marketed_size
from profiles.errors import InvalidInputError
from profiles.gpu import GpuSpec, Hardware
from profiles.record import parse_record

# What the CUDA driver keeps of a card's physical memory: torch's total_memory is smaller than the size on the box
# (which is GiB in truth) by at most this much on every catalogued card without ECC loss (test_hardware.py asserts it).
DRIVER_RESERVE_GIB = 0.7
DRIVER_RESERVE_FRACTION = 0.0125

MAX_GPUS = 10_000
MAX_VRAM_GIB = 4_096.0  # the largest card has 288; more is a slip of the keyboard or a figure in MiB

_COUNTED = re.compile(r"^(?P<count>[+-]?[\d.]+)\s*[x×*]\s*(?P<name>.*)$", re.IGNORECASE | re.DOTALL)
_COUNTED_AFTER = re.compile(r"^(?P<name>.+?)\s+[x×*]\s*(?P<count>[+-]?[\d.]+)$", re.IGNORECASE | re.DOTALL)
_NUMBER_WORD = re.compile(r"^(a|an|one|two|three|four|five|six|seven|eight|dual|quad)\s", re.IGNORECASE)
_COUNT_HINT = 'Write the count as a figure, as in --gpu "2x a100-80g".'


def driver_reserve_gib(total_gib: float) -> float:
    """GiB of a card of `total_gib` that the driver may keep to itself (an upper bound)."""
    return max(DRIVER_RESERVE_GIB, DRIVER_RESERVE_FRACTION * total_gib)


def resolve_hardware(
    gpu: str | dict[str, Any] | None = None, vram_gib: float | None = None, n_gpus: int | None = None
) -> Hardware:
    """The hardware to plan for.

    gpu: a name, a count and a name, 'cpu', or GpuSpec's fields. vram_gib: alone, a card of which only the size is
    known; with `gpu`, that card with this much memory. Neither: this machine's cards, else its CPU.
    Raises InvalidInputError, UnknownNameError, UnsupportedError (a card whose memory must be given).
    """
    if n_gpus is not None:
        _check_count("n_gpus", n_gpus)
    if vram_gib is not None:
        _check_vram(vram_gib)
    if isinstance(gpu, dict):
        return _inline(gpu, vram_gib, n_gpus)
    if gpu is not None:
        return _named(gpu, vram_gib, n_gpus)
    if vram_gib is not None:
        return _unnamed(vram_gib, n_gpus or 1)
    from advisor.detection import detect_hardware

    return _with_count(detect_hardware(), n_gpus)


def parse_gpu(text: str) -> tuple[int | None, str]:
    """'2x a100-80g' -> (2, 'a100-80g'); '4090' -> (None, '4090'). Raises InvalidInputError."""
    text = text.strip()
    match = _COUNTED.match(text) or _COUNTED_AFTER.match(text)
    count, name = (_whole(match["count"]), match["name"].strip()) if match else (None, text)
    if not re.search(r"\w", name):
        raise InvalidInputError("gpu", f"{_shown(text)} names no card", _COUNT_HINT)
    if not name.isprintable() or len(name) > 100:
        raise InvalidInputError("gpu", f"{_shown(name)} is no card's name", "`ftadvise gpus` shows the names.")
    if _NUMBER_WORD.match(name) or _COUNTED.match(name):
        raise InvalidInputError("gpu", f"{_shown(text)} has no count that can be read", _COUNT_HINT)
    return count, name


def _named(text: str, vram_gib: float | None, n_gpus: int | None) -> Hardware:
    count, name = parse_gpu(text)
    if count is not None and n_gpus is not None and count != n_gpus:
        raise InvalidInputError("n_gpus", f"{n_gpus} contradicts --gpu {_shown(text)}", "Give the count once.")
    if name.casefold() == "cpu":
        from advisor.detection import detect_cpu

        return _with_count(detect_cpu(), count or n_gpus)
    assumptions: list[str] = []
    family = find_gpu_family(name)
    if family and vram_gib is None:
        sizes = " and ".join(f"{card.memory_marketing_gb:g}" for card in family)
        assumptions.append(f"{name} is sold with {sizes} GB: the smallest is assumed ({family[0].name})")
    if vram_gib is None:
        card = find_gpu(name)
        if not card.memory_gib_is_reported:
            assumptions.append(f"{card.memory_gib:g} GiB of memory is derived from the size on the box, not reported")
    else:
        card, warnings = _with_memory(name, vram_gib)
        assumptions += warnings
    return Hardware(gpu=card, n_gpus=count or n_gpus or 1, origin="named", assumptions=tuple(assumptions))


def _with_memory(name: str, vram_gib: float) -> tuple[GpuSpec, list[str]]:
    """The card called `name`, with `vram_gib` in place of its memory, and what has to be said about that."""
    family = find_gpu_family(name)
    sizes = [card for card in family if card.memory_marketing_gb == vram_gib]
    known = sizes[0] if sizes else None
    if known is None:
        card = find_gpu(name, memory_gib=vram_gib)
        if card.memory_marketing_gb is None:
            return card, [f"{vram_gib:g} GiB of memory was given; the catalogue has no figure for {card.name}"]
        known = find_gpu(name)
    if vram_gib <= known.memory_gib:
        return known.replace(memory_gib=vram_gib, memory_gib_is_reported=False), [
            f"{vram_gib:g} GiB of the {known.name}'s {known.memory_gib:g} GiB are used, as given"
        ]
    if vram_gib <= (known.memory_marketing_gb or known.memory_gib):
        return known, [f"{vram_gib:g} GB is the size on the box: the {known.name} reports {known.memory_gib:g} GiB"]
    budget = _less_reserve(vram_gib)
    return known.replace(memory_gib=budget, memory_gib_is_reported=False), [
        f"warning: {vram_gib:g} GiB is more than the {known.name}'s {known.memory_gib:g} GiB; taken as given, less "
        f"{vram_gib - budget:.2g} GiB that the driver keeps"
    ]


def _unnamed(vram_gib: float, n_gpus: int) -> Hardware:
    cards = find_gpus_by_marketed_size(vram_gib)
    if cards:
        memory = cards[0].memory_gib
        assumption = (
            f"cards sold with {vram_gib:g} GB report {memory:g} to {cards[-1].memory_gib:g} GiB: the least of them is "
            f"the budget ({cards[0].name}); name the card with --gpu for its own figure and for speed"
        )
    else:
        memory = _less_reserve(vram_gib)
        assumption = (
            f"the catalogue has no card sold with {vram_gib:g} GB: {vram_gib:g} GiB less {vram_gib - memory:.2g} GiB "
            "that the driver keeps; ECC, where a card has it switched on, can take 6.25 % more"
        )
    card = GpuSpec(
        id=f"unnamed-{vram_gib:g}gb",
        name=f"unnamed card, {vram_gib:g} GB",
        vendor="unnamed",
        memory_gib=memory,
        memory_gib_is_reported=False,
        memory_marketing_gb=vram_gib,
        bf16=_shared(card.bf16 for card in cards),
        flash_attention_2=_shared(card.flash_attention_2 for card in cards),
    )
    candidates = tuple(card.id for card in cards)
    return Hardware(gpu=card, n_gpus=n_gpus, origin="memory-only", candidates=candidates, assumptions=(assumption,))


def _inline(fields: dict[str, Any], vram_gib: float | None, n_gpus: int | None) -> Hardware:
    memory = vram_gib if vram_gib is not None else fields.get("memory_gib")
    if memory is None:
        raise InvalidInputError("gpu.memory_gib", "is missing", 'A card needs at least {"memory_gib": 24}.')
    name = f"own card, {memory} GiB"
    card = parse_record(
        GpuSpec, {"id": "own", "name": name, "vendor": "unnamed", **fields, "memory_gib": memory}, "gpu"
    )
    _check_vram(card.memory_gib, "gpu.memory_gib")
    return Hardware(gpu=card, n_gpus=n_gpus or 1, assumptions=("the card's figures are those given",))


def _with_count(found: Hardware, n_gpus: int | None) -> Hardware:
    """`found` with the count that was asked for."""
    if n_gpus is None or n_gpus == found.n_gpus:
        return found
    if found.origin == "cpu":
        raise InvalidInputError("n_gpus", f"{n_gpus} cards on a CPU", "Name the card with --gpu or --vram.")
    said = f"{n_gpus} of the {found.gpu.name} were asked for; this machine has {found.n_gpus}"
    return found.replace(n_gpus=n_gpus, assumptions=(*found.assumptions, said))


def _less_reserve(vram_gib: float) -> float:
    if vram_gib <= 2 * DRIVER_RESERVE_GIB:
        raise InvalidInputError("vram", f"{vram_gib:g} GiB is too little for any card", "Give GiB, as in --vram 24.")
    return round(vram_gib - driver_reserve_gib(vram_gib), 2)


def _shared(values: Any) -> bool | None:
    """The one value that all candidates have, else None."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _whole(digits: str) -> int:
    try:
        count = int(digits[:12])  # longer ones are too many anyway
    except ValueError:
        raise InvalidInputError("gpu", f"{_shown(digits)} is no whole number of cards", _COUNT_HINT) from None
    _check_count("gpu", count)
    return count


def _check_count(where: str, count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_GPUS:
        raise InvalidInputError(where, f"{count} cards: the count goes from 1 to {MAX_GPUS}", _COUNT_HINT)


def _check_vram(vram_gib: float, where: str = "vram") -> None:
    if isinstance(vram_gib, bool) or not isinstance(vram_gib, int | float) or not math.isfinite(vram_gib):
        raise InvalidInputError(where, f"{_shown(vram_gib)} is no number of GiB", "As in --vram 24.")
    if vram_gib <= 0:
        raise InvalidInputError(where, f"{vram_gib:g} GiB: memory is more than zero", "As in --vram 24.")
    if vram_gib > MAX_VRAM_GIB:
        raise InvalidInputError(
            where, f"{vram_gib:g} GiB is more than any card has", "Give GiB, not MiB, as in --vram 24."
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

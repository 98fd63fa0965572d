"""How Unsloth's loss cuts the logits: a chunk of rows at a time, over the whole vocabulary.

unsloth_zoo 2026.10.7, fused_losses/cross_entropy_loss.py: get_chunk_size, _get_chunk_multiplier, UnslothFusedLoss. The
compiled chunk holds its logits and their gradient, both in the product's dtype (seen on an H200).
"""

from profiles.units import GIB

CHUNK_BYTES = 16  # _CE_BYTES_PER_LOGIT: what the source reckons with for a logit, uncompiled
LARGEST_BUDGET = 4 * GIB  # _CE_TARGET_GB_CAP
FREE_SHARE = 0.5  # of the free memory
COPIES = 2  # logits and gradient


def loss_budget(memory_bytes: float) -> float:
    """Bytes that the loss aims at on a card of so many; nobody knows beforehand how many of them will be free."""
    return min(FREE_SHARE * memory_bytes, LARGEST_BUDGET)


def chunk_rows(*, tokens: int, vocab_size: int, budget: float, fixed: float, equal: bool) -> int:
    """Rows of the largest chunk of `tokens`, at least 1.

    fixed: bytes that no chunk makes smaller (gradients of the hidden states, twice that of a trained head). equal:
    every batch has as many tokens; else a shorter one may come that is just not cut.
    """
    a_row = float(vocab_size * CHUNK_BYTES)
    aim = budget - fixed if 0 < fixed < budget else budget
    uncut = int(aim / a_row)
    if tokens <= uncut:
        return tokens
    chunks = min(4 * -(-int(tokens * a_row) // int(4 * aim)), tokens)
    rows = -(-tokens // chunks)
    return rows if equal else max(rows, uncut, 1)

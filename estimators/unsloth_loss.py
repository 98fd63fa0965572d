"""How Unsloth's loss cuts the logits: rows of the whole vocabulary, or tiles of both.

unsloth_zoo 2026.10.9, fused_losses/fused_linear.py: fused_linear_rows, _tiled_layout, _ce_impl, with the constants'
defaults. Half of the free memory is taken to be above its 2 GiB budget.
"""

from dataclasses import dataclass

from profiles.units import GIB, MIB

LOGIT_BYTES = 4  # fp32 logits; their gradient is written over them
BUDGET = 2 * GIB  # _CHUNK_GB
MAX_ROWS = 4096
MIN_ROWS = 512
MIN_LOGITS = 512 * 151_936
SPLIT_COLUMNS = 16_384
TILE_ROWS = 4096  # _BWD_ROWS
TILE_BYTES = 256 * MIB  # _BWD_TILE_BYTES
STATISTICS = 8 * 4  # of each row and split, fp32


@dataclass(frozen=True, slots=True)
class LossTile:
    """Rows and columns of the logits that are alive at once. `tiled`: the columns are not all of the vocabulary."""

    rows: int
    columns: int
    tiled: bool

    @property
    def n_bytes(self) -> int:
        """The buffer, which all tiles share."""
        return self.rows * self.columns * LOGIT_BYTES


def loss_tile(*, tokens: int, hidden_size: int, vocab_size: int, tiled_from: int, trains_head: bool) -> LossTile:
    """The buffer of a micro-batch of `tokens`; a head that is trained is never tiled."""
    if tokens >= tiled_from and not trains_head and vocab_size > 2 * SPLIT_COLUMNS:
        rows = min(TILE_ROWS, tokens, TILE_BYTES // (SPLIT_COLUMNS * LOGIT_BYTES))
        columns = SPLIT_COLUMNS if not tiled_from else max(TILE_BYTES // (rows * LOGIT_BYTES), SPLIT_COLUMNS)
        whole = -(-vocab_size // SPLIT_COLUMNS) * SPLIT_COLUMNS
        return LossTile(rows, min(columns - columns % SPLIT_COLUMNS, whole), tiled=True)
    least = min(max(_power_of_two(MIN_LOGITS / vocab_size), MIN_ROWS), MAX_ROWS)
    rows = min(max(_power_of_two(tokens * hidden_size / vocab_size), least), MAX_ROWS)
    rows = min(rows, max(BUDGET // (vocab_size * LOGIT_BYTES), 2), tokens)
    return LossTile(rows, -(-vocab_size // 8) * 8, tiled=False)


def _power_of_two(x: float) -> int:
    """The largest power of two that is not above x; 1 below that."""
    return 1 << max(int(x).bit_length() - 1, 0)

"""What Unsloth keeps on the card beside its layers: the two buffers of offloaded checkpoints, a dense weight.

unsloth_zoo 2026.10.7 gradient_checkpointing.py (UnslothCheckpointFunction); unsloth kernels/utils.py (_scratch).
"""

from estimators.fused_layer import is_fused, shared_weight_bytes
from estimators.layer import LayerSetup
from estimators.regime import Regime
from profiles.model import ModelSpec
from profiles.units import MIB

BUFFERS = 2  # the second from the second step on, unless less than 512 MiB are free
MINIMUM_BYTES = 2 * MIB  # MINIMUM_SIZE: no smaller input is moved; INITIAL_GPU_BUFFER_SIZE is as large


def offloaded_bytes(checkpoint: float, *, layers: int, frozen_embedding: bool) -> tuple[float, float]:
    """On the card, of layers' inputs of `checkpoint` bytes each: what is there to the end (the buffers; a frozen
    embedding's output, which is a leaf that gets a gradient), and what goes before (the last layer's input, or all
    where they are small)."""
    if checkpoint <= MINIMUM_BYTES:
        return 0.0, layers * checkpoint
    return (BUFFERS + frozen_embedding) * checkpoint, checkpoint


def shared_weight(model: ModelSpec, regime: Regime, setup: LayerSetup) -> float:
    """Bytes of the buffer that all fused functions dequantise into."""
    if not (regime.fused_layers and regime.quantized == 4) or setup.adapter != "lora":
        return 0.0
    blocks = [g.block for g in model.layers if is_fused(g.block)]
    sizes = (shared_weight_bytes(b, dict(setup.ranks), regime.compute, dropout=setup.dropout) for b in blocks)
    return max(sizes, default=0.0)

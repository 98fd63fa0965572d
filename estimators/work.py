"""Sums of work: FLOPs, bytes, seconds by kind, and the shape of the micro-batch that causes them."""

from dataclasses import dataclass, field

from estimators.regime import Regime

FP32 = 4
BACKWARD_ELEMENTWISE = 2  # reads of saved values and gradients against one forward pass
# Host time of a kernel around which there is neither a module nor a graph to record (autograd's engine, optimizers), in
# forward kernels: 0.57 to 0.64 in tiny Llamas on a CPU (benchmarks/host_walks.py)
BARE_LAUNCH = 0.6


@dataclass(slots=True)
class Work:
    """A running sum of one kind of work."""

    flops: float = 0.0
    n_bytes: float = 0.0
    seconds: float = 0.0

    def add(self, *, flops: float = 0.0, n_bytes: float = 0.0, seconds: float = 0.0) -> None:
        """Add one contribution."""
        self.flops += flops
        self.n_bytes += n_bytes
        self.seconds += seconds


@dataclass(slots=True)
class Batch:
    """Shape of a micro-batch: `sequences` of `length` computed tokens, attending over `attended` each."""

    sequences: float
    length: float
    attended: float
    extra_keys: int = 0

    @property
    def tokens(self) -> float:
        """Computed tokens of a micro-batch, padding and virtual tokens with them."""
        return self.sequences * self.length


@dataclass(slots=True)
class MicroBatch:
    """A forward and backward pass: work by kind, what the host does, counted in kernels of a forward pass, and layers
    that it walks."""

    work: dict[str, Work] = field(default_factory=dict)
    launches: float = 0.0
    layer_passes: float = 0.0

    def of(self, kind: str) -> Work:
        """The sum of that kind, made when first asked for."""
        return self.work.setdefault(kind, Work())

    def include(self, other: "MicroBatch") -> None:
        """Add all work of another."""
        for kind, work in other.work.items():
            self.of(kind).add(flops=work.flops, n_bytes=work.n_bytes, seconds=work.seconds)
        self.launches += other.launches
        self.layer_passes += other.layer_passes

    @property
    def seconds(self) -> float:
        """GPU seconds of all kinds."""
        return sum(w.seconds for w in self.work.values())


def stream_bytes(regime: Regime) -> int:
    """Bytes of a value between the linears: without autocast an fp32 residual stream makes all of it fp32.

    bitsandbytes' Linear4bit computes in its own dtype and casts its output back to the input's.
    """
    return FP32 if regime.residual == FP32 and not regime.autocast else regime.compute

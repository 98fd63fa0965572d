"""Trace: every storage that a run makes on the device, when it comes and goes, and what it is."""

from dataclasses import dataclass, field
from typing import Literal

Stage = Literal[
    "load", "data", "forward", "loss", "loss_backward", "backward", "clip", "optimizer", "zero", "evaluation"
]


@dataclass(slots=True)
class Storage:
    """One allocation. `layer` is -1 outside of the layers; `label` is its component where that is known by name."""

    n_bytes: int
    op: str
    module: str
    layer: int
    width: int  # last dimension of the tensor that brought it
    label: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """From event `position` on, the run is in this stage of this step, inside layer `layer` (-1: none)."""

    position: int
    step: int
    stage: Stage
    layer: int


@dataclass(slots=True)
class Trace:
    """`events`: storage index i comes as i, goes as ~i. `marks` are in order of position."""

    storages: list[Storage] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def spans(self) -> list[tuple[Mark, int, int]]:
        """Return each mark with its first event and the one after its last."""
        ends = [m.position for m in self.marks[1:]] + [len(self.events)]
        return [(m, m.position, end) for m, end in zip(self.marks, ends, strict=True) if end > m.position]

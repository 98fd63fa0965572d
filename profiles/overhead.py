"""Overhead: what a CUDA process takes besides tensors, by compute capability."""

from pydantic import NonNegativeInt

from profiles.record import Record
from profiles.source import Source


class Overhead(Record):
    """Bytes of one kind; `id` is kind/capability, or kind/any for cards that have no row of their own.

    context: what the driver takes for a process. workspace: what cuBLAS takes from torch's pool for each thread that
    multiplies. from_here_on: the row holds for later capabilities too.
    """

    id: str
    low_bytes: NonNegativeInt
    expected_bytes: NonNegativeInt
    high_bytes: NonNegativeInt
    from_here_on: bool = False
    hardware: str
    versions: str
    source: Source

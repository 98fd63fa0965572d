"""A tape whose buffers are allocations of a caching allocator, one after another."""

from estimators.allocator import CachingAllocator
from estimators.tape import Buffer, Line, Summed, Tape
from estimators.vector_sum import vector_sum


class _Held(Buffer):
    """A buffer with its name at the allocator; 0 for none."""

    __slots__ = ("key",)

    def __init__(self, per_token: float, constant: float, key: int) -> None:
        super().__init__(per_token, constant)
        self.key = key


class ReplayTape(Tape):
    """Passes every buffer on to an allocator, at the micro-batch's number of tokens. `gradients`: keys of those that
    parameters have; `threads`: resident on the card at a time.
    """

    __slots__ = ("_last", "allocator", "gradients", "threads", "tokens")

    def __init__(self, allocator: CachingAllocator, tokens: int, threads: int) -> None:
        super().__init__()
        self.threads = threads
        self.allocator = allocator
        self.gradients: list[int] = []
        self.tokens = tokens
        self._last = 0

    def take(self, n_bytes: float) -> int:
        """Allocate for good; returns the key, 0 for nothing."""
        if n_bytes < 1:
            return 0
        self._last += 1
        self.allocator.malloc(self._last, int(n_bytes))
        return self._last

    def give(self, *keys: int) -> None:
        """Free what `take` returned."""
        for key in keys:
            if key:
                self.allocator.free(key)

    def alloc(self, per_token: float, constant: float = 0.0) -> Buffer:
        """A new buffer, allocated."""
        return _Held(per_token, constant, self.take(per_token * self.tokens + constant))

    def release(self, buffer: Buffer) -> None:
        """One holder less; the last one frees it."""
        buffer.refs -= 1
        if not buffer.refs and isinstance(buffer, _Held):
            self.give(buffer.key)

    def scratch(self, *pieces: Line) -> None:
        """Allocate each, then free all."""
        self.give(*[self.take(per_token * self.tokens + constant) for per_token, constant in pieces])

    def sum(self, summed: Summed, beside: Line) -> None:
        """Partial sums beside what the derivative made; what has gone by then makes room for them."""
        more = beside[0] * self.tokens + beside[1]
        held = self.take(more)
        partial = vector_sum(summed[0] * self.tokens, summed[1], self.threads)
        self.give(self.take(partial + min(more, 0.0)), held)

    def keep_gradient(self, n_bytes: float) -> None:
        """A parameter's gradient."""
        self.gradients.append(self.take(n_bytes))

    def adopt(self, buffer: Buffer) -> None:
        """What a forward made becomes a gradient."""
        super().adopt(buffer)
        if isinstance(buffer, _Held):
            self.gradients.append(buffer.key)

"""The quantile that all tables of errors mean."""


def quantile(values: list[float], q: float) -> float:
    """The value that a share `q` of them does not exceed: one of them, no mean of two."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

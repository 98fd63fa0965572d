"""The only file that holds 1024, 1e9 or 1e12. Inside: bytes, seconds, FLOP, FLOP/s, USD; units in keys at the edges."""

KIB = 1024
MIB = 1024**2
GIB = 1024**3
GB = 1e9  # marketing gigabyte, and the "GB" of bandwidths
TERA = 1e12
BILLION = 1e9
MILLION = 1e6
MINUTE = 60.0
HOUR = 3600.0


def bytes_from_gib(gib: float) -> int:
    """GiB -> bytes."""
    return round(gib * GIB)


def gib_from_bytes(n_bytes: float) -> float:
    """Bytes -> GiB."""
    return n_bytes / GIB


def mib_from_bytes(n_bytes: float) -> float:
    """Bytes -> MiB."""
    return n_bytes / MIB


def bytes_per_s_from_gbps(gbps: float) -> float:
    """GB/s (1e9 bytes) -> bytes/s."""
    return gbps * GB


def flops_from_tflops(tflops: float) -> float:
    """TFLOP/s -> FLOP/s."""
    return tflops * TERA


def format_bytes(n_bytes: float) -> str:
    """'512 B', '3.4 MiB', '18.21 GiB': the one way in which sizes are shown to people."""
    if abs(n_bytes) >= GIB:
        return f"{n_bytes / GIB:.2f} GiB"
    if abs(n_bytes) >= MIB:
        return f"{n_bytes / MIB:.1f} MiB"
    if abs(n_bytes) >= KIB:
        return f"{n_bytes / KIB:.1f} KiB"
    return f"{n_bytes:.0f} B"


def format_count(n: float) -> str:
    """'8.03B', '41.9M', '12.3K', '640': counts of parameters and tokens."""
    for size, letter in ((1e12, "T"), (BILLION, "B"), (MILLION, "M"), (1e3, "K")):
        if abs(n) >= size:
            return f"{n / size:.3g}{letter}" if abs(n) / size >= 100 else f"{n / size:.2f}{letter}"
    return f"{n:.0f}"


def format_duration(seconds: float) -> str:
    """'38 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"

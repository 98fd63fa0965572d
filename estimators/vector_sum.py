"""What summing over tokens takes beside its result: the gradient of a vector that all of them share (a bias, a norm's
weight, (IA)3, DoRA's magnitude)."""

from profiles.gpu import GpuSpec

# aten/native/cuda/Reduce.cuh (v2.13) setReduceConfig; verified to the MiB on an H200 with torch 2.11
MAX_THREADS = 512  # max_reduce_threads, of a block
WARP = 32
VECTORS = (4, 2, 1)  # get_output_vec_size: outputs of a thread
MIN_VALUES, MAX_VALUES = 16, 256  # of a thread
FP32 = 4  # what sums are kept in

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": most resident threads of an SM
MOST_RESIDENT = 2048
FEWER_RESIDENT = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (11, 0): 1536, (12, 0): 1536, (12, 1): 1536}
UNKNOWN_SMS = 148  # a B200's, where a card's number is not known


def resident_threads(gpu: GpuSpec) -> int:
    """Threads that run on the card at a time; none on a CPU, whose sums take nothing."""
    if gpu.vendor == "CPU":
        return 0
    of_sm = FEWER_RESIDENT.get(gpu.compute_capability or (0, 0), MOST_RESIDENT)
    return (gpu.sm_count or UNKNOWN_SMS) * of_sm


def vector_sum(rows: float, width: float, threads: int) -> int:
    """Bytes of the partial sums of (rows, width) values over rows, on a card with so many resident `threads`: none
    while a block can sum a column alone."""
    rows, width = round(rows), round(width)
    if not rows or not width:
        return 0
    vector = next(v for v in VECTORS if width % v == 0)
    most = MAX_THREADS // vector
    across, along = min(_floor_power(width // vector), most), min(_floor_power(rows), most)
    block_width = min(across, WARP)
    block_height = min(along, most // block_width)
    block_width = min(across, most // block_height)
    if rows < min(block_height * MIN_VALUES, MAX_VALUES):
        return 0  # each warp sums a column of its own
    values = -(-rows // block_height)
    grid = -(-(width // vector) // block_width)
    target = threads // (block_width * block_height)
    if values < MAX_VALUES or grid > target:
        return 0
    split = max(min(-(-target // grid), -(-values // MIN_VALUES)), -(-values // MAX_VALUES))
    return FP32 * width * split * block_width * vector if split > 1 else 0


def _floor_power(n: int) -> int:
    """The largest power of two that is not above n."""
    return 1 << (n.bit_length() - 1)

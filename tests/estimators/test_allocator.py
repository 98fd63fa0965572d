"""The caching allocator: its published rules, and what must hold for every sequence of allocations."""

import time
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators.allocator import (
    LARGE_BUFFER,
    MIN_BLOCK_SIZE,
    SMALL_BUFFER,
    SMALL_SIZE,
    CachingAllocator,
    DeviceOutOfMemoryError,
    rounded,
    segment_size,
)
from profiles.units import GIB, MIB

SIZES = st.one_of(
    st.integers(1, 4096),
    st.integers(1, SMALL_SIZE),
    st.integers(SMALL_SIZE, 12 * MIB),
    st.integers(10 * MIB, 300 * MIB),
)
PROGRAMS = st.lists(st.tuples(st.booleans(), SIZES, st.integers(0, 1000)), min_size=1, max_size=60)
SETTINGS = st.fixed_dictionaries(
    {"expandable_segments": st.booleans(), "max_split_size": st.sampled_from([None, 25 * MIB, 100 * MIB])}
)


def run(program: list[tuple[bool, int, int]], allocator: CachingAllocator, after_each=lambda: None) -> dict[int, int]:
    """Allocate, or free a live allocation where the first entry says so; return what is left alive."""
    live: dict[int, int] = {}
    for key, (frees, size, pick) in enumerate(program):
        if frees and live:
            victim = sorted(live)[pick % len(live)]
            allocator.free(victim)
            del live[victim]
        else:
            allocator.malloc(key, size)
            live[key] = size
        after_each()
    return live


def check_layout(allocator: CachingAllocator) -> None:
    """Blocks of a segment do not overlap; the sums are what the counters say."""
    allocated = reserved = 0
    spans = []
    for _, blocks in allocator.segments():
        for block in blocks:
            spans.append((block.address, block.address + block.size))
            reserved += block.size
            allocated += 0 if block.free else block.size
    spans.sort()
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert allocated == allocator.allocated
    assert reserved == allocator.reserved


@given(PROGRAMS, SETTINGS)
@settings(max_examples=150, deadline=None)
def test_no_overlap_and_counters_add_up(program, options):
    allocator = CachingAllocator(**options)

    def check() -> None:
        check_layout(allocator)
        assert allocator.allocated <= allocator.reserved
        assert allocator.allocated <= allocator.peak_allocated
        assert allocator.reserved <= allocator.peak_reserved

    run(program, allocator, check)


@given(PROGRAMS, SETTINGS)
@settings(max_examples=150, deadline=None)
def test_all_freed_means_nothing_allocated_and_an_empty_cache(program, options):
    allocator = CachingAllocator(**options)
    for key in run(program, allocator):
        allocator.free(key)
    assert allocator.allocated == 0
    allocator.empty_cache()
    assert allocator.reserved == 0
    assert list(allocator.segments()) == []


@given(PROGRAMS, SETTINGS)
@settings(max_examples=100, deadline=None)
def test_allocated_is_at_least_what_was_asked_for(program, options):
    allocator = CachingAllocator(**options)
    live = run(program, allocator)
    asked = sum(rounded(n) for n in live.values())
    assert asked <= allocator.allocated <= asked + len(live) * max(SMALL_SIZE, 25 * MIB + LARGE_BUFFER)


@given(PROGRAMS)
@settings(max_examples=100, deadline=None)
def test_a_limit_below_the_peak_fails_and_one_at_the_peak_holds(program):
    free = CachingAllocator()
    run(program, free)
    exact = CachingAllocator(limit=free.peak_reserved)
    run(program, exact)
    assert exact.peak_reserved == free.peak_reserved
    assert exact.retries == 0
    largest = max(rounded(size) for _, size, _ in program)
    with pytest.raises(DeviceOutOfMemoryError):
        CachingAllocator(limit=segment_size(largest) - 1).malloc(0, largest)


@given(PROGRAMS)
@settings(max_examples=60, deadline=None)
def test_expandable_segments_never_reserve_more_than_a_granule_over_need(program):
    """Without splits left over, what is reserved follows the highest point of each pool's mapped range."""
    allocator = CachingAllocator(expandable_segments=True)
    only_allocations = [(False, size, pick) for _, size, pick in program]
    run(only_allocations, allocator)
    assert allocator.reserved - allocator.allocated < SMALL_BUFFER + LARGE_BUFFER


@pytest.mark.parametrize(
    ("n_bytes", "size", "segment"),
    [
        (1, 512, SMALL_BUFFER),
        (513, 1024, SMALL_BUFFER),
        (MIB, MIB, SMALL_BUFFER),
        (MIB + 1, MIB + 512, LARGE_BUFFER),
        (10 * MIB - 512, 10 * MIB - 512, LARGE_BUFFER),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB + 1, 11 * MIB + 512, 12 * MIB),
    ],
)
def test_rounding_and_segment_sizes(n_bytes, size, segment):
    allocator = CachingAllocator()
    allocator.malloc(0, n_bytes)
    assert rounded(n_bytes) == size
    assert allocator.reserved == segment


def test_a_large_rest_up_to_one_mebibyte_stays_with_its_block():
    allocator = CachingAllocator()
    allocator.malloc(0, 11 * MIB)  # from a segment of 12 MiB
    assert allocator.allocated == 12 * MIB
    allocator.free(0)
    allocator.malloc(1, 11 * MIB - 512)
    assert allocator.allocated == 11 * MIB - 512


def test_best_fit_takes_the_smallest_block_and_then_the_lowest_address():
    allocator = CachingAllocator()
    for key, size in enumerate((40 * MIB, 24 * MIB, 24 * MIB)):
        allocator.malloc(key, size)
    for key in range(3):
        allocator.free(key)
    allocator.malloc(3, 24 * MIB)
    used = [blocks[0].address for _, blocks in allocator.segments() if not blocks[0].free]
    addresses = sorted(blocks[0].address for _, blocks in allocator.segments() if blocks[0].size == 24 * MIB)
    assert used == addresses[:1]


def test_neighbours_are_joined():
    allocator = CachingAllocator()
    for key in range(10):
        allocator.malloc(key, 2 * MIB)
    assert allocator.reserved == LARGE_BUFFER
    for key in (3, 5, 4):
        allocator.free(key)
    allocator.malloc(20, 6 * MIB)
    assert allocator.reserved == LARGE_BUFFER


def test_a_full_device_is_retried_after_emptying_the_cache():
    allocator = CachingAllocator(limit=100 * MIB)
    allocator.malloc(0, 60 * MIB)
    allocator.free(0)
    allocator.malloc(1, 80 * MIB)
    assert allocator.retries == 1
    assert allocator.reserved == 80 * MIB
    assert allocator.peak_reserved == 80 * MIB
    with pytest.raises(DeviceOutOfMemoryError) as caught:
        allocator.malloc(2, 40 * MIB)
    assert "40.0 MiB" in caught.value.message
    assert "100.0 MiB" in caught.value.message
    assert caught.value.hint


def test_max_split_size_keeps_oversize_blocks_for_oversize_allocations():
    allocator = CachingAllocator(max_split_size=64 * MIB)
    allocator.malloc(0, 128 * MIB)
    allocator.free(0)
    allocator.malloc(1, 32 * MIB)
    assert allocator.reserved == 160 * MIB
    allocator.malloc(2, 120 * MIB)
    assert allocator.reserved == 160 * MIB
    assert allocator.allocated == 160 * MIB  # the oversize block is not split


def test_expandable_segments_grow_where_a_hole_is_too_small():
    fixed, growing = CachingAllocator(), CachingAllocator(expandable_segments=True)
    for allocator in (fixed, growing):
        allocator.malloc(0, 100 * MIB)
        allocator.free(0)
        allocator.malloc(1, 120 * MIB)
    assert fixed.reserved == 220 * MIB
    assert growing.reserved == 120 * MIB


def test_a_hundred_thousand_events_take_less_than_a_second():
    random = Random(1)
    sizes = (100, 5_000, 300_000, 3 * MIB, 17 * MIB, 200 * MIB)
    allocator, live = CachingAllocator(), []
    started = time.process_time()
    for key in range(50_000):
        allocator.malloc(key, random.choice(sizes) + MIN_BLOCK_SIZE * random.randrange(1000))
        live.append(key)
        if len(live) > 800:
            allocator.free(live.pop(random.randrange(len(live))))
    assert time.process_time() - started < 1.0
    assert 0 < allocator.allocated <= allocator.reserved < 1000 * GIB


def test_of_equal_blocks_the_youngest_segments_comes_first() -> None:
    """The driver hands addresses out from above, and the allocator takes the lowest of equal blocks."""
    allocator = CachingAllocator()
    for key in (1, 2, 3):
        allocator.malloc(key, 30 * MIB)
    youngest = allocator.address_of(3)
    assert youngest < allocator.address_of(2) < allocator.address_of(1)
    for key in (1, 2, 3):
        allocator.free(key)
    allocator.malloc(4, 30 * MIB)
    assert allocator.address_of(4) == youngest


def test_requested_is_what_was_asked_for() -> None:
    """Allocated counts the whole block where no rest is worth keeping."""
    allocator = CachingAllocator()
    allocator.malloc(1, 12 * MIB)
    allocator.free(1)
    allocator.malloc(2, 11 * MIB + 300)
    assert (allocator.requested, allocator.allocated) == (11 * MIB + 300, 12 * MIB)
    assert (allocator.peak_requested, allocator.peak_allocated) == (12 * MIB, 12 * MIB)
    allocator.free(2)
    assert allocator.requested == allocator.allocated == 0

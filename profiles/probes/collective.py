"""Probe of collectives between the cards of this machine, a process each; what NCCL's bus bandwidth is here."""

import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from profiles.calibration import TimedKernel
from profiles.probes.job import ProbeJob
from profiles.probes.stopwatch import Stopwatch
from profiles.units import MIB

SIZES_MIB = (256, 16, 1)  # the whole tensor; the largest first: bandwidth matters most
REPEATS = 5  # a number that all ranks agree on: a clock would stop one of them earlier


def probe_collective(job: ProbeJob, watch: Stopwatch) -> Iterator[TimedKernel]:
    """Each collective at some sizes, in the dtype of gradients. Nothing on one card, nor on a CPU."""
    if job.device == "cuda" and torch.cuda.device_count() > 1:
        yield from time_collectives(job, torch.cuda.device_count())


def time_collectives(job: ProbeJob, ranks: int, sizes_mib: tuple[int, ...] = SIZES_MIB) -> Iterator[TimedKernel]:
    """Start `ranks` processes on `job.device` and pass on what the first of them times."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receiver, sender = context.Pipe(duplex=False)
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, job, sizes_mib, sender), daemon=True)
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            process.start()
        sender.close()
        while True:
            try:
                yield TimedKernel.model_validate(receiver.recv())
            except EOFError:
                break
        for process in processes:
            process.join()
            if process.exitcode:
                raise RuntimeError(f"a rank of the collectives ended with code {process.exitcode}")
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def _rank(rank: int, ranks: int, port: int, job: ProbeJob, sizes_mib: tuple[int, ...], answers: Connection) -> None:
    """One card's part. Only rank 0 keeps the pipe open, so that its end is the end of all."""
    from profiles.probes.__main__ import end_with_parent

    end_with_parent()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    on_card = job.device == "cuda"
    device = torch.device("cuda", rank) if on_card else torch.device("cpu")
    if on_card:
        torch.cuda.set_device(device)
    if rank:
        answers.close()
    dist.init_process_group("nccl" if on_card else "gloo", rank=rank, world_size=ranks)
    dtype = torch.bfloat16 if on_card else torch.float32
    watch = Stopwatch(job)
    for size in sizes_mib:
        whole = torch.ones(size * MIB // dtype.itemsize, device=device, dtype=dtype)
        part = torch.empty(whole.numel() // ranks, device=device, dtype=dtype)
        whole = whole[: part.numel() * ranks]
        for kind, call in _calls(whole, part).items():
            seconds = _seconds(call, watch)
            if rank == 0:
                shape = {"n_bytes": whole.numel() * dtype.itemsize, "n_gpus": ranks}
                answers.send({"kind": kind, "dtype": "bf16" if on_card else "fp32", "shape": shape, "seconds": seconds})
    dist.destroy_process_group()


def _calls(whole: torch.Tensor, part: torch.Tensor) -> dict[str, Any]:
    return {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_single(whole, part),
        "reduce_scatter": lambda: dist.reduce_scatter_single(part, whole),
    }


def _seconds(call: Any, watch: Stopwatch) -> float:
    """Seconds of one call: the fastest of REPEATS, after a first one that does not count."""
    call()
    samples = []
    for _ in range(REPEATS):
        dist.barrier()
        start = watch.now()
        call()
        samples.append(watch.now() - start)
    return min(samples)

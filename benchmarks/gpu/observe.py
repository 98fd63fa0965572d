"""Run a project's train.py and write down what it holds, phase by phase: `python observe.py OUT.json [--limit-gib X]
[--lock FILE] [--events]`, in the project's folder.

Runs in the platform's own environment, hence without this project. Phases: load (all before the training loop),
evaluation (before the first step and after the last), other (between steps), forward (with the loss), backward,
optimizer. Of each, torch's peaks of allocated and reserved bytes; of the process, what the driver says at each step's
end. The process ends after the last step: what is saved then is no part of the measurement.
"""

import argparse
import fcntl
import gzip
import json
import os
import runpy
import sys
import time
import traceback

import torch


class Watch:
    """The peaks of every phase, and the seconds of every step."""

    def __init__(self, options):
        self.options = options
        self.result = {"phases": {}, "steps": [], "status": "crashed", "device_bytes": 0, "load_seconds": time.time()}
        self.peaks = torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved
        self.highest = [0, 0]
        self.lock = None
        # The project logs peaks of the whole run, and these resets would hide them
        torch.cuda.max_memory_allocated = lambda device=None: max(self.highest[0], self.peaks[0]())
        torch.cuda.max_memory_reserved = lambda device=None: max(self.highest[1], self.peaks[1]())

    def close(self, phase):
        """The peaks since the last call are those of `phase`."""
        found = [peak() for peak in self.peaks]
        known = self.result["phases"].setdefault(phase, [0, 0])
        self.result["phases"][phase] = [max(pair) for pair in zip(known, found, strict=True)]
        self.highest = [max(pair) for pair in zip(self.highest, found, strict=True)]
        torch.cuda.reset_peak_memory_stats()

    def begin(self):
        """The training loop begins."""
        self.close("load")
        self.result["after_load"] = [torch.cuda.memory_allocated(), torch.cuda.memory_reserved()]
        self.result["load_seconds"] = time.time() - self.result["load_seconds"]

    def step_begin(self):
        """Start the clock; from the second step on, alone on the card."""
        self.close("other")
        if self.options.lock and self.lock is None and self.result["steps"]:
            self.lock = os.open(self.options.lock, os.O_RDWR | os.O_CREAT)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        torch.cuda.synchronize()
        self.started = time.perf_counter()

    def step_end(self):
        """Stop it, when the card has done its work."""
        torch.cuda.synchronize()
        self.result["steps"].append(time.perf_counter() - self.started)
        self.close("other")
        self.result["device_bytes"] = max(self.result["device_bytes"], device_bytes())

    def write(self, status, message=""):
        """All that was seen, and the end of this process."""
        self.close("other")
        stats = torch.cuda.memory_stats()
        self.result.update(
            status=status, message=message, peak_allocated=self.highest[0], peak_reserved=self.highest[1],
            retries=stats.get("num_alloc_retries"), after=[torch.cuda.memory_allocated(), torch.cuda.memory_reserved()],
            device=torch.cuda.get_device_name(), process_bytes=resident(),
        )  # fmt: skip
        with open(self.options.out, "w") as file:
            json.dump(self.result, file)
        if self.options.events:
            write_events(self.options.out + ".events.gz")
        sys.stdout.flush()
        os._exit(0)


def resident():
    """The most main memory that this process held, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_bytes():
    """What the driver says that this process holds; 0 where it does not say."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return 0
    return max((p.usedGpuMemory or 0 for p in processes if p.pid == os.getpid()), default=0)


def write_events(path):
    """Every allocation and release, one line each: action, size, address, and where in the code it was."""
    traces = torch.cuda.memory._snapshot()["device_traces"][0]
    with gzip.open(path, "wt", compresslevel=5) as file:
        for event in traces:
            frames = [
                f"{frame['filename'].rpartition('site-packages/')[2]}:{frame['line']}:{frame['name']}"
                for frame in event.get("frames", ())[:14]
            ]
            file.write(json.dumps([event["action"], event["size"], event.get("addr"), frames]) + "\n")


def watch_libraries(watch):
    """Put the watch where all trainers pass: accelerate's backward, torch's optimizer step, transformers' callbacks."""
    from accelerate import Accelerator
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
    from transformers import Trainer
    from transformers.trainer_callback import CallbackHandler

    backward = Accelerator.backward

    def watched_backward(self, *args, **kwargs):
        watch.close("forward")
        backward(self, *args, **kwargs)
        watch.close("backward")

    def before(name, action):
        original = getattr(CallbackHandler, name)

        def called(self, *args, **kwargs):
            action()
            return original(self, *args, **kwargs)

        setattr(CallbackHandler, name, called)

    Trainer._save_checkpoint = lambda *args, **kwargs: None  # gigabytes a cell, and nothing on the card
    Accelerator.backward = watched_backward
    register_optimizer_step_pre_hook(lambda *_: watch.close("other"))
    register_optimizer_step_post_hook(lambda *_: watch.close("optimizer"))
    before("on_train_begin", watch.begin)
    before("on_step_begin", watch.step_begin)
    before("on_step_end", watch.step_end)
    before("on_evaluate", lambda: watch.close("evaluation"))
    before("on_train_end", lambda: watch.write("finished"))


def main():
    parser = argparse.ArgumentParser(description="Run train.py of this folder and write down what it holds.")
    parser.add_argument("out")
    parser.add_argument("--limit-gib", type=float, help="let the allocator take no more than this")
    parser.add_argument("--lock", help="have this file's lock from the second step on")
    parser.add_argument("--events", action="store_true", help="write every allocation beside OUT")
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    sys.argv = ["train.py"]
    if os.environ.get("OBSERVE_FIRST"):  # a platform that patches what it finds must be imported before all else
        __import__(os.environ["OBSERVE_FIRST"])
    watch = Watch(options)
    if options.limit_gib:
        whole = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(options.limit_gib * 2**30 / whole)
    if options.events:
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=400_000)
    watch_libraries(watch)
    try:
        runpy.run_path("train.py", run_name="__main__")
    except torch.OutOfMemoryError as error:
        watch.write("out-of-memory", str(error)[:300])
    except Exception as error:
        traceback.print_exc()
        watch.write("failed", f"{type(error).__name__}: {error}"[:600])
    watch.write("ended before its last step")


if __name__ == "__main__":
    main()

"""Tell what the training does, one JSON object a line in runs/metrics.jsonl, and stop it cleanly when asked to.

Events: start, step (loss, seconds and tokens since the last logged step, memory in bytes), eval, end.
Asked to stop (Ctrl-C, SIGTERM, or a file runs/stop): a checkpoint is written after the step at hand.
While it lives it holds a lock on .lock: how others know that it runs.
"""

import fcntl
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from transformers import TrainerCallback

METRICS = Path("runs/metrics.jsonl")
STOP = Path("runs/stop")
CHECKPOINTS = Path("runs/checkpoints")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "llamafactory", "unsloth")


def versions():
    """Those of PACKAGES that are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def memory():
    """Peaks so far, in bytes: torch's two on a GPU, the process's resident memory everywhere."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on a Mac bytes
    found = {"process": peak if sys.platform == "darwin" else peak * 1024}
    if torch.cuda.is_available():
        found["allocated"] = torch.cuda.max_memory_allocated()
        found["reserved"] = torch.cuda.max_memory_reserved()
    return found


def last_checkpoint():
    """The newest complete checkpoint. trainer_state.json is written last: a crash or a full disk cuts it short."""
    complete = [path.parent for path in CHECKPOINTS.glob("checkpoint-*/trainer_state.json") if is_whole(path)]
    if not complete:
        raise SystemExit("There is no checkpoint to resume from: run without --resume.")
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2])))


def is_whole(path):
    """Whether a JSON file was written to its end."""
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def hold_lock():
    """Lock .lock until this process ends, and write its number there; what started it may have done so already."""
    lock = os.open(".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())


def end_last_line(path):
    """End a line that a crash has cut short, so that the next one is not glued to it."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")


class Progress(TrainerCallback):
    """Writes the events and obeys the wish to stop."""

    def __init__(self):
        self.stopping = False
        self.main = os.environ.get("RANK", "0") == "0"
        self.parent = os.getppid()
        self.logged_step = self.logged_tokens = 0
        self.started = None
        if self.main:
            METRICS.parent.mkdir(exist_ok=True)
            STOP.unlink(missing_ok=True)
            hold_lock()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.on_signal)

    def write(self, event, **fields):
        """Append one line; each is flushed, so that a reader sees it at once and a crash loses none."""
        if self.main:
            with METRICS.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    def on_signal(self, number, frame):
        """The first signal asks for a clean stop, the second ends the process."""
        self.stopping = True
        signal.signal(number, signal.SIG_DFL)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Say what is trained, and on what."""
        self.logged_step = state.global_step
        if self.main and state.global_step == 0:
            METRICS.unlink(missing_ok=True)  # of an earlier run; a resumed one goes on in its file
        elif self.main:
            end_last_line(METRICS)
        parameters = list(model.parameters())
        self.write(
            "start",
            step=state.global_step,
            max_steps=state.max_steps,
            trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            processes=args.world_size,
            versions=versions(),
        )

    def on_step_begin(self, args, state, control, **kwargs):
        """Start the clock, unless it runs since the last log."""
        if self.started is None:
            self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Stop after this step, with a checkpoint, if anybody asked for it. All processes must agree."""
        wish = self.stopping or STOP.exists()
        if args.world_size > 1:
            wish = wish or os.getppid() != self.parent  # what started the processes was killed: nobody else ends them
            flag = torch.tensor(float(wish), device=args.device)
            torch.distributed.all_reduce(flag)
            wish = bool(flag)
        if wish:
            self.stopping = control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        """A training log: the loss is a number by now, so the device has done the work that the clock measured."""
        if "loss" not in logs or self.started is None:
            return
        total_tokens = logs.get("num_tokens", logs.get("num_input_tokens_seen", 0))  # TRL's count, else transformers'
        self.write(
            "step",
            step=state.global_step,
            max_steps=state.max_steps,
            steps=state.global_step - self.logged_step,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            seconds=time.perf_counter() - self.started,
            tokens=max(total_tokens - self.logged_tokens, 0),
            **memory(),
        )
        self.logged_step, self.logged_tokens, self.started = state.global_step, total_tokens, None

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """The loss on the rows held out."""
        if metrics and "eval_loss" in metrics:
            self.write("eval", step=state.global_step, max_steps=state.max_steps, loss=metrics["eval_loss"])
        self.started = None

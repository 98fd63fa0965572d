"""What became of a run: from its last event, the end of its log, and its exit status where somebody saw it."""

import re
import signal

from advisor.launch.folder import RunState, now
from advisor.launch.metrics import Event
from profiles.units import MIB

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|can't allocate memory|[Cc]annot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|MemoryError"
)
OUT_OF_MEMORY_HINT = (
    "`ftadvise launch --on-oom safer` takes the next safer plan by itself. By hand: in config.yaml halve "
    "per_device_train_batch_size and double gradient_accumulation_steps (same result, less memory), set "
    "activation_checkpointing: true, or shorten max_length; `ftadvise advise` finds plans that fit."
)
NO_SPACE = re.compile(r"No space left on device|os error 28|Errno 28")
FULL = MIB  # less free than this: the reason of a failure, even where its message found no room in the log either
RESUME = "`ftadvise launch --resume` goes on from the last checkpoint."
BEGIN_AGAIN = "There is no checkpoint yet: `ftadvise launch --restart` begins again."
NAMED_ERROR = re.compile(r"^(?![\w.]*ChildFailedError)[\w.]*(Error|Exception)\b")  # torchrun's says nothing
RANK = re.compile(r"^\[rank\d+\]: ")  # which process of several printed the line


def judge(
    *, returncode: int | None, end: Event | None, asked: bool, log: str, resumable: bool, free: int = FULL
) -> RunState:
    """The final state. Pure.

    returncode: None where nobody was there to see it. end: the script's own last word, if it came to it. asked:
    somebody wanted the run to end. log: the end of its output. free: bytes left on the disk.
    """
    status = end.status if end else None
    go_on = RESUME if resumable else BEGIN_AGAIN
    fields = {"started": now(), "returncode": returncode}
    if status == "finished":
        return RunState(status="finished", **fields)
    if status == "stopped" or (asked and (returncode is None or returncode < 0)):
        told = "stopped on request" if status == "stopped" else "killed on request"
        return RunState(status="stopped", message=told, hint=go_on, **fields)
    if status == "out-of-memory" or OUT_OF_MEMORY.search(log):
        return RunState(
            status="out-of-memory", message=f"out of memory: {last_error(log)}", hint=OUT_OF_MEMORY_HINT, **fields
        )
    if NO_SPACE.search(log) or free < FULL:
        return RunState(
            status="failed",
            message=f"the disk is full: {last_error(log)}",
            hint=f"Free some space; complete checkpoints are kept. {go_on}",
            **fields,
        )
    if returncode is None and not NAMED_ERROR.search(last_error(log)):
        return RunState(status="interrupted", message="the run was cut off", hint=go_on, **fields)
    if returncode == -signal.SIGKILL:
        return RunState(
            status="killed",
            message="the process was killed from outside (SIGKILL)",
            hint=f"Most often the system ran out of main memory: see `dmesg`. {go_on}",
            **fields,
        )
    seen = "" if returncode is None else f" with status {returncode}"
    return RunState(
        status="failed",
        message=f"train.py ended{seen}: {last_error(log)}",
        hint=f"The whole output is in runs/train.log. {go_on}",
        **fields,
    )


def last_error(log: str) -> str:
    """The last line that names an exception, else the last one that is not blank; shortened."""
    lines = [RANK.sub("", line).strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if NAMED_ERROR.match(line)]
    line = named[-1] if named else lines[-1] if lines else "it printed nothing"
    return line if len(line) <= 300 else line[:300] + "..."

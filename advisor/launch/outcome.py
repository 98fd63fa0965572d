"""What became of a run: from its exit status, its last event and the end of its log."""

import re
import signal

from advisor.launch.folder import RunState, now
from advisor.launch.metrics import Event

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|can't allocate memory|[Cc]annot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|MemoryError"
)
OUT_OF_MEMORY_HINT = (
    "In config.yaml halve per_device_train_batch_size and double gradient_accumulation_steps (same result, less "
    "memory), set activation_checkpointing: true, or shorten max_length; `ftadvise advise` finds plans that fit."
)
RESUME = "`ftadvise launch --resume` goes on from the last checkpoint."


def judge(*, returncode: int, end: Event | None, interrupted: bool, log: str, resumable: bool) -> RunState:
    """The final state. `end`: the script's own last word, if it came to it. `log`: the end of its output. Pure."""
    status = end.status if end else None
    resume = RESUME if resumable else ""
    fields = {"started": now(), "returncode": returncode}
    if status == "finished" and returncode == 0:
        return RunState(status="finished", **fields)
    if status == "stopped" or (interrupted and returncode < 0):
        told = "stopped on request" if status == "stopped" else "killed on request"
        return RunState(status="stopped", message=told, hint=resume, **fields)
    if status == "out-of-memory" or OUT_OF_MEMORY.search(log):
        return RunState(
            status="out-of-memory", message=f"out of memory: {_last_error(log)}", hint=OUT_OF_MEMORY_HINT, **fields
        )
    if returncode == -signal.SIGKILL:
        return RunState(
            status="killed",
            message="the process was killed from outside (SIGKILL)",
            hint=f"Most often the system ran out of main memory: see `dmesg`. {resume}".strip(),
            **fields,
        )
    return RunState(
        status="failed",
        message=f"train.py ended with status {returncode}: {_last_error(log)}",
        hint=f"The whole output is in runs/train.log. {resume}".strip(),
        **fields,
    )


def _last_error(log: str) -> str:
    """The last line that names an exception, else the last one that is not blank; shortened."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"^[\w.]*(Error|Exception)\b", line)]
    line = named[-1] if named else lines[-1] if lines else "it printed nothing"
    return line if len(line) <= 300 else line[:300] + "..."

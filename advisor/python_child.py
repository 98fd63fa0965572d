"""Ask another Python a question: it runs a few lines and prints JSON."""

import json
import subprocess
from shutil import which
from typing import Any

from profiles.errors import InvalidInputError

ANSWER_SECONDS = 60


def ask_python(python: str, program: str, *arguments: str) -> Any:
    """What `program` prints as JSON, run by `python` (a path or a command). Raises InvalidInputError."""
    if which(python) is None:
        raise InvalidInputError("python", f"there is no interpreter {python!r}", "Give the path of a Python.")
    try:
        ended = subprocess.run(
            [python, "-c", program, *arguments], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
        )
        return json.loads(ended.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InvalidInputError("python", f"{python!r} is no working Python: {error}") from None

"""The simulator's process, from its parent's side. No other module of this package is imported here, so that it can
start before its parent has read them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from profiles.errors import AdviseError
from profiles.units import GIB

ROOT = Path(__file__).parents[1]
RSS_BYTES = 2 * GIB  # its limit
HINT = "the analytic estimate stands"


class Child:
    """A process for one job. It imports torch while its parent finds out what to ask; `with` ends it in any case."""

    def __init__(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, "-m", "estimators.simulate", "--worker", "--rss-bytes", str(RSS_BYTES)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, job: str, seconds: float) -> dict[str, Any]:
        """Hand over the job as JSON; return the answer, read.

        Raises:
            AdviseError: "simulation-limit": no answer within `seconds`; "simulation-failed": the child broke down.
        """
        try:
            answer, complaints = self._process.communicate(job, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AdviseError(
                "simulation-limit", f"the simulation took more than {seconds:g} s and was stopped", HINT
            ) from None
        try:
            found: dict[str, Any] = json.loads(answer)
        except ValueError:
            last = (complaints.strip().splitlines() or ["no message"])[-1]
            code = self._process.returncode
            raise AdviseError("simulation-failed", f"the simulator ended with code {code}: {last}", HINT) from None
        return found

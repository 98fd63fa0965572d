"""Ray: `ray job submit`, `status` and `stop`. The cluster: RAY_API_SERVER_ADDRESS, or that of this machine."""

import json
import re
from pathlib import Path

from advisor.launch.jobs import Answer, Queue, execute
from advisor.launch.queued import Queued

# The entry point is a line of shell: nothing but this text stands in it. The folder comes by the environment.
ENTRY = "import os, runpy; runpy.run_path(os.environ['RUN_FOLDER'] + '/ray_job.py', run_name='__main__')"
STATUS = re.compile(r"\b(PENDING|RUNNING|STOPPED|SUCCEEDED|FAILED)\b")
UNKNOWN = re.compile(r"does not exist|not found|404", re.IGNORECASE)


class RayQueue(Queue):
    """Jobs by their submission id."""

    id = "ray"
    programs = ("ray",)

    def submit_command(self, job: str, folder: Path, python: str, *, resume: bool) -> list[str]:
        """The entry runs on the head node, by the python that Ray runs on; the training by `python`."""
        environment = {"env_vars": {"RUN_FOLDER": str(folder), "RUN_PYTHON": python}}
        options = ["--no-wait", "--submission-id", job, "--runtime-env-json", json.dumps(environment)]
        return ["ray", "job", "submit", *options, "--", "python", "-c", ENTRY, *(["--resume"] if resume else [])]

    def cancel_command(self, job: str) -> list[str]:
        """With its tasks, whose processes end with them."""
        return ["ray", "job", "stop", "--no-wait", job]

    def ask(self, job: str) -> Answer:
        """By `ray job status`."""
        done = execute(["ray", "job", "status", job])
        if done.returncode == 0:
            return read_answer(done.stdout + done.stderr, job)
        if UNKNOWN.search(done.stdout + done.stderr):
            return Answer("ended")
        raise self.unreachable(job, done)


def read_answer(output: str, job: str) -> Answer:
    """From the line that names the job's status."""
    found = next((STATUS.search(line) for line in output.splitlines() if job in line and STATUS.search(line)), None)
    word = found.group() if found else ""
    if word in ("PENDING", "RUNNING"):
        return Answer("waiting" if word == "PENDING" else "running", word)
    return Answer("ended", word, cancelled=word == "STOPPED")


LAUNCHER = Queued(RayQueue())

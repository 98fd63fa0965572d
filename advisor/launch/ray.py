"""Ray: `ray job submit`, `status` and `stop`. The cluster: RAY_API_SERVER_ADDRESS, or that of this machine."""

import json
import re
from pathlib import Path

from advisor.launch.jobs import Answer, Queue, execute
from advisor.launch.queued import Queued

# The entry point is a line of shell: nothing but this text stands in it. The folder comes by the environment.
ENTRY = "import os, runpy; runpy.run_path(os.environ['RUN_FOLDER'] + '/ray_job.py', run_name='__main__')"
STATUS = re.compile(r"Status for job '[^']*': ([A-Z]+)|Job '[^']*' (succeeded|failed|was stopped)")
WORDS = {"succeeded": "SUCCEEDED", "failed": "FAILED", "was stopped": "STOPPED"}


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
        output = done.stdout + done.stderr
        answer = read_answer(output)
        if answer is None and done.returncode and "does not exist" in output:
            return Answer("ended")
        if answer is None:
            raise self.unreachable(job, done)
        return answer


def read_answer(output: str) -> Answer | None:
    """From the line that tells the job's status; None where there is none."""
    found = STATUS.search(output)
    if found is None:
        return None
    word = found[1] or WORDS[found[2]]
    if word in ("PENDING", "RUNNING"):
        return Answer("waiting" if word == "PENDING" else "running", word)
    return Answer("ended", word, cancelled=word == "STOPPED")


LAUNCHER = Queued(RayQueue())

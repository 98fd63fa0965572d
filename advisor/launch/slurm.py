"""SLURM: sbatch, squeue, sacct where jobs are accounted for, scancel. Run on SLURM 22.05."""

from pathlib import Path

from advisor.launch.jobs import Answer, Queue, execute
from advisor.launch.queued import Queued

# squeue(1), job state codes: those of a job that does not come back
ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
})  # fmt: skip
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"})


class SlurmQueue(Queue):
    """Jobs by their name, which no other job has."""

    id = "slurm"
    programs = ("sbatch", "squeue", "scancel")

    def submit_command(self, job: str, folder: Path, python: str, *, resume: bool) -> list[str]:
        """Inside `folder`, where sbatch also takes the job to."""
        options = ["--parsable", "--export=ALL", f"--job-name={job}"]
        return ["sbatch", *options, "job.sbatch", *(["--resume"] if resume else [])]

    def cancel_command(self, job: str) -> list[str]:
        """With all its steps."""
        return ["scancel", f"--name={job}"]

    def ask_command(self, job: str) -> list[str]:
        """Also of jobs that have just ended."""
        return ["squeue", "--noheader", "--states=all", "--format=%T", f"--name={job}"]

    def account_command(self, job: str) -> list[str]:
        """Of jobs that the queue has forgotten, where they are accounted for."""
        return ["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--name={job}"]

    def ask(self, job: str) -> Answer:
        """By squeue, and after some minutes by sacct."""
        done = execute(self.ask_command(job))
        if done.returncode:
            raise self.unreachable(job, done)
        if done.stdout.strip():
            return read_answer(done.stdout)
        accounted = execute(self.account_command(job))
        return read_answer("" if accounted.returncode else accounted.stdout)


def read_answer(output: str) -> Answer:
    """From the last line, which is one word or `CANCELLED by 1000`. A job that nobody knows of has ended."""
    word = next(iter(output.strip().splitlines()[-1:]), "").partition(" ")[0]
    if not word or word in ENDED:
        return Answer("ended", word, cancelled=word == "CANCELLED")
    return Answer("waiting" if word in WAITING else "running", word)


LAUNCHER = Queued(SlurmQueue())

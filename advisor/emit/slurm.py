"""SLURM: a batch script that runs one task a node, and goes back into the queue when its time is up."""

from advisor.emit.base import template
from advisor.emit.clusters import Cluster, Job

SCRIPT = "job.sbatch"
CPUS_PER_GPU = 4
SIGNAL_SECONDS = 300  # before the end of the time: for the step at hand and its checkpoint


class Slurm(Cluster):
    """sbatch, srun, scontrol; run on SLURM 22.05."""

    id = "slurm"
    submit = f"sbatch {SCRIPT}"

    def files(self, job: Job) -> dict[str, str]:
        """job.sbatch: options of this job over a script that is the same for all."""
        options = [f"--nodes={job.nodes}", "--ntasks-per-node=1"]
        if job.gpus_per_node:
            options += [f"--gpus-per-node={job.gpus_per_node}", f"--cpus-per-task={CPUS_PER_GPU * job.gpus_per_node}"]
        else:
            options += ["--exclusive"]
        options += ["--job-name=fine-tune", "--requeue", "--output=/dev/null", f"--signal=B:USR1@{SIGNAL_SECONDS}"]
        if job.minutes is not None:
            options += [f"--time={job.minutes}"]  # the high end of the estimate
        head = "".join(f"#SBATCH {option}\n" for option in options)
        return {SCRIPT: f"#!/bin/bash\n{head}{template('cluster', 'slurm.sh')}"}


CLUSTER = Slurm()

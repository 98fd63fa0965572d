"""Clusters: what a project gets besides, so that SLURM, Ray or SkyPilot runs it on one machine or several.

Each system has a file in this folder, found by its `CLUSTER`. All of them run node.py once on each node, which starts
that node's processes; a script holds numbers and names of our own only, nothing that a request says.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from math import ceil
from pkgutil import iter_modules

import advisor.emit
from advisor.emit.base import Emission, Forecast, Source, template
from estimators.cost import steps_per_epoch
from profiles.errors import UnsupportedError
from profiles.plan import Plan
from profiles.record import Record
from profiles.units import MINUTE

START_MINUTES = 30  # on top of the steps' time: loading, tokenising, evaluations, checkpoints
CLUSTER_FILE = "cluster.json"


class Job(Record):
    """What a system has to provide. `minutes`: the high end of the time that the run should take, None if unknown."""

    plan: Plan
    nodes: int
    minutes: int | None

    @property
    def processes_per_node(self) -> int:
        """One a card."""
        return self.plan.n_gpus // self.nodes

    @property
    def gpus_per_node(self) -> int:
        """Cards of a node; none where the plan is for CPUs."""
        return 0 if self.plan.gpu == "cpu" else self.processes_per_node


class Cluster:
    """One system. Subclasses stand in one file each."""

    id: str
    submit: str  # the command that submits a job, inside the folder

    def refusal(self, job: Job) -> str | None:
        """Say why the system cannot be asked for that, or None."""
        return None

    def files(self, job: Job) -> dict[str, str]:
        """Texts by relative path."""
        raise NotImplementedError


@cache
def clusters() -> dict[str, Cluster]:
    """All systems by id."""
    found: dict[str, Cluster] = {}
    for module in iter_modules(advisor.emit.__path__, f"{advisor.emit.__name__}."):
        cluster = getattr(import_module(module.name), "CLUSTER", None)
        if cluster is not None:
            found[cluster.id] = cluster
    return found


def add_cluster(emission: Emission, source: Source, forecast: Forecast | None) -> Emission:
    """The project with what `source.cluster` needs; as it is where that is None. Pure.

    Raises:
        UnsupportedError: the cards do not spread evenly over the nodes, or the system has no name for them.
    """
    plan, nodes = emission.plan, source.nodes
    if source.cluster is None:
        if nodes > 1:
            raise UnsupportedError(f"{nodes} nodes need something that starts them all", "Add --cluster slurm.")
        return emission
    if plan.n_gpus % nodes:
        raise UnsupportedError(
            f"{plan.n_gpus} cards do not spread evenly over {nodes} nodes", "--n-gpus counts the cards of all nodes."
        )
    cluster, job = clusters()[source.cluster], Job(plan=plan, nodes=nodes, minutes=_minutes(plan, source, forecast))
    reason = cluster.refusal(job)
    if reason is not None:
        raise UnsupportedError(reason, "Without --cluster the project can be started by hand.")
    command = node_command(emission.command, job)
    content = {"nodes": nodes, "gpus_per_node": job.gpus_per_node, "processes_per_node": job.processes_per_node}
    page = emission.files["README.md"] + _section(cluster, job)
    files = {
        **emission.files,
        "README.md": page,
        "node.py": template("cluster", "node.py"),
        CLUSTER_FILE: json.dumps({**content, "command": command}, indent=2) + "\n",
        **cluster.files(job),
    }
    return emission.replace(files=files)


def node_command(command: Sequence[str], job: Job) -> list[str]:
    """`command` of a project on one machine as each node runs it; node.py puts what begins with $ in."""
    if job.nodes == 1:
        return list(command)
    *start, script = command
    if "torch.distributed.run" in start:
        start = [*start[: start.index("--standalone")], "--nnodes", "$NNODES"]
        start += ["--nproc_per_node", str(job.processes_per_node), "--rdzv_id", "$MASTER_PORT"]
        return [*start, "--rdzv_backend", "c10d", "--rdzv_endpoint", "$MASTER_ADDR:$MASTER_PORT", script]
    start += ["--num_machines", "$NNODES", "--num_processes", str(job.plan.n_gpus), "--machine_rank", "$NODE_RANK"]
    start += ["--main_process_ip", "$MASTER_ADDR", "--main_process_port", "$MASTER_PORT", "--rdzv_backend", "c10d"]
    if job.plan.sharding.startswith("zero"):
        start += ["--deepspeed_multinode_launcher", "standard"]  # its default would log in to the other nodes
    return [*start, script]


def _minutes(plan: Plan, source: Source, forecast: Forecast | None) -> int | None:
    """The high end of the steps' time and what comes on top; None without a forecast or without the data's size."""
    if forecast is None or forecast.step_seconds is None:
        return None
    steps = plan.max_steps
    if steps is None and source.examples is not None:
        steps = ceil(plan.num_epochs * steps_per_epoch(plan, examples=source.examples))
    return None if steps is None else ceil(forecast.step_seconds.high * steps / MINUTE) + START_MINUTES


def _section(cluster: Cluster, job: Job) -> str:
    several = (
        f"\nThe {job.nodes} nodes need this folder at the same path (a shared disk). The forecast is of one machine:\n"
        "the network between nodes is not modelled.\n"
        if job.nodes > 1
        else ""
    )
    return f"\n## On a cluster\n\n```sh\n{cluster.submit}\n```\n{several}"

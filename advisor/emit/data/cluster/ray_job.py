"""Train on a Ray cluster, one task a node: `ray job submit -- python /path/to/ray_job.py`, with --resume to go on.

All nodes need this folder at the same path (a shared disk). RUN_PYTHON names the interpreter that has the packages of
requirements.txt, where that is not the one of Ray. What the processes print goes to runs/train.log.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

FOLDER = Path(__file__).resolve().parent
LOG = FOLDER / "runs" / "train.log"
PR_SET_PDEATHSIG = 1  # prctl(2)


def find_address():
    """This node's address and a free port."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return ray.util.get_node_ip_address(), listener.getsockname()[1]


def end_with_ray():
    """A job that Ray ends stops its processes too: with a checkpoint, as after a Ctrl-C."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def train(rank, nodes, address, port, arguments):
    """Run this node's processes to their end; returns their exit status."""
    place = {"NNODES": nodes, "NODE_RANK": rank, "MASTER_ADDR": address, "MASTER_PORT": port}
    environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
    environment.pop("OMP_NUM_THREADS", None)  # Ray's, for a worker of one thread
    python = os.environ.get("RUN_PYTHON", sys.executable)
    with LOG.open("ab") as log:
        command = [python, str(FOLDER / "node.py"), *arguments]
        return subprocess.run(
            command, cwd=FOLDER, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_ray
        ).returncode


def main(arguments):
    """One bundle of cards on each node, one task in each bundle."""
    job = json.loads((FOLDER / "cluster.json").read_text(encoding="utf-8"))
    nodes, gpus = job["nodes"], job["gpus_per_node"]
    LOG.parent.mkdir(exist_ok=True)
    ray.init()
    resources = {"CPU": 1, **({"GPU": gpus} if gpus else {})}
    group = placement_group([resources] * nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())

    def on_node(function, rank, gpus=0):
        place = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=rank)
        return ray.remote(function).options(num_cpus=1, num_gpus=gpus, max_retries=0, scheduling_strategy=place)

    address, port = ray.get(on_node(find_address, 0).remote())
    tasks = [on_node(train, rank, gpus).remote(rank, nodes, address, port, arguments) for rank in range(nodes)]
    return max(ray.get(tasks), key=abs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

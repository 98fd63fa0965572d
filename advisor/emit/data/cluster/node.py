"""Start this node's processes of the training: `python node.py`, once on each node; arguments go on to train.py.

NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, the names that LLaMA-Factory reads too, say where it is among the nodes.
"""

import json
import os
import sys
from pathlib import Path
from string import Template

FOLDER = Path(__file__).resolve().parent


def fill(command, environment):
    """The command with the variables of `environment` in it and this interpreter as its python."""
    parts = [Template(part).substitute(environment) for part in command]
    return [sys.executable if part == "python" else part for part in parts]


if __name__ == "__main__":
    os.chdir(FOLDER)
    os.environ.setdefault("NODE_RANK", os.environ.get("SLURM_NODEID", "0"))
    command = fill(json.loads(Path("cluster.json").read_text(encoding="utf-8"))["command"], os.environ)
    os.execv(sys.executable, [*command, *sys.argv[1:]])

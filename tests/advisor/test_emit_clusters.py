"""What SLURM, Ray and SkyPilot get: scripts as their readers see them, and the command of a node."""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from advisor.emit import ClusterId, Emission, Forecast, Source, emit
from advisor.emit.clusters import START_MINUTES, clusters
from estimators.interval import Interval
from profiles.errors import UnsupportedError
from profiles.families import describe_model
from profiles.plan import Plan

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 259,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
MODEL = describe_model(LLAMA, "tiny")
SIZE = Interval(low=1e9, expected=2e9, high=3e9)
FORECAST = Forecast(allocated=SIZE, reserved=SIZE, device=SIZE, step_seconds=Interval(low=1, expected=2, high=6))
PLACE = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-a", "MASTER_PORT": "20007"}


def project(cluster: ClusterId, *, nodes: int = 1, examples: int | None = None, **plan: Any) -> Emission:
    values = {"model": "org/tiny", "gpu": "h100-sxm", "seq_len": 512, **plan}
    source = Source(model_ref="org/tiny", cluster=cluster, nodes=nodes, examples=examples)
    return emit(Plan.model_validate(values), MODEL, source, FORECAST)


def options(script: str) -> dict[str, str]:
    """The #SBATCH lines, split as sbatch does."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert all(len(shlex.split(line)) == 1 for line in lines)
    return {name.lstrip("-"): value for name, _, value in (line.partition("=") for line in lines)}


def test_the_clusters_are_those_that_can_be_asked_for() -> None:
    assert set(clusters()) == set(get_args(ClusterId))


@pytest.mark.parametrize("platform", ["hf", "llamafactory", "unsloth"])
@pytest.mark.parametrize(("nodes", "sharding", "n_gpus"), [(1, "none", 1), (1, "ddp", 2), (2, "ddp", 4)])
def test_scripts_are_what_their_readers_take(
    platform: str, nodes: int, sharding: str, n_gpus: int, tmp_path: Path
) -> None:
    place = {"platform": platform, "nodes": nodes, "sharding": sharding, "n_gpus": n_gpus}
    script = project("slurm", **place).files["job.sbatch"]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    asked = options(script)
    assert (asked["nodes"], asked["ntasks-per-node"]) == (str(nodes), "1")
    assert asked["gpus-per-node"] == str(n_gpus // nodes)

    ray = project("ray", **place).files
    compile(ray["ray_job.py"], "ray_job.py", "exec")
    told = json.loads(ray["cluster.json"])
    assert (told["nodes"], told["gpus_per_node"]) == (nodes, n_gpus // nodes)

    task = yaml.safe_load(project("skypilot", **place).files["skypilot.yaml"])
    assert set(task) == {"name", "num_nodes", "resources", "workdir", "setup", "run"}
    assert task["num_nodes"] == nodes
    assert task["resources"] == {"accelerators": f"H100:{n_gpus // nodes}"}
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=task[part], text=True, check=False).returncode == 0


def test_a_cpu_plan_asks_for_no_cards() -> None:
    asked = options(project("slurm", gpu="cpu", quantization="fp32").files["job.sbatch"])
    assert "gpus-per-node" not in asked
    assert "exclusive" in asked
    task = yaml.safe_load(project("skypilot", gpu="cpu", quantization="fp32").files["skypilot.yaml"])
    assert task["resources"] == {"cpus": "8+"}


def test_the_time_is_the_high_end_of_the_estimate() -> None:
    assert options(project("slurm", max_steps=100).files["job.sbatch"])["time"] == str(100 * 6 // 60 + START_MINUTES)
    plan = Plan(model="org/tiny")
    steps = -(-1000 // plan.global_batch_size) * 2
    found = options(project("slurm", examples=1000, num_epochs=2).files["job.sbatch"])["time"]
    assert found == str(-(-steps * 6 // 60) + START_MINUTES)
    assert "time" not in options(project("slurm").files["job.sbatch"])  # nobody knows how long the data are


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="do not spread evenly over 3 nodes"):
        project("slurm", nodes=3, n_gpus=4, sharding="ddp")
    with pytest.raises(UnsupportedError, match="2 nodes need something that starts them"):
        emit(Plan(model="m", n_gpus=2, sharding="ddp"), MODEL, Source(model_ref="m", nodes=2))
    with pytest.raises(UnsupportedError, match="SkyPilot rents by the card's name"):
        project("skypilot", gpu="rtx2080ti", quantization="fp16")


def node(emission: Emission, folder: Path) -> list[str]:
    """The command that node.py makes of the second node's environment."""
    (folder / "node.py").write_text(emission.files["node.py"])
    fill = runpy.run_path(str(folder / "node.py"))["fill"]
    found: list[str] = fill(json.loads(emission.files["cluster.json"])["command"], PLACE)
    assert found[0] == sys.executable
    return found


def test_one_node_runs_what_it_runs_without_a_cluster(tmp_path: Path) -> None:
    alone = project("slurm", n_gpus=2, sharding="fsdp2")
    assert node(alone, tmp_path)[1:] == list(alone.command)[1:]


@pytest.mark.platform
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "zero3"])
def test_accelerate_takes_the_command_of_a_node(sharding: str, tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    module, name, *arguments = node(project("slurm", nodes=2, n_gpus=8, sharding=sharding), tmp_path)[1:]
    assert (module, name) == ("-m", "accelerate.commands.launch")
    taken = launch_command_parser().parse_args(arguments)
    assert (taken.num_machines, taken.num_processes, taken.machine_rank) == (2, 8, 1)
    assert (taken.main_process_ip, taken.main_process_port, taken.rdzv_backend) == ("node-a", 20007, "c10d")
    assert taken.training_script == "train.py"
    assert taken.deepspeed_multinode_launcher == ("standard" if sharding == "zero3" else None)


@pytest.mark.platform
@pytest.mark.parametrize("sharding", ["ddp", "zero2"])
def test_torchrun_takes_the_command_of_a_node(sharding: str, tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    emission = project("ray", platform="llamafactory", nodes=2, n_gpus=8, sharding=sharding)
    module, name, *arguments = node(emission, tmp_path)[1:]
    assert (module, name) == ("-m", "torch.distributed.run")
    taken = get_args_parser().parse_args(arguments)
    assert (taken.nnodes, taken.nproc_per_node, taken.standalone) == ("2", "4", False)
    assert (taken.rdzv_backend, taken.rdzv_endpoint) == ("c10d", "node-a:20007")
    assert taken.training_script == "train.py"

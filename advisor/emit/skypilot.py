"""SkyPilot: a task that rents the cards and runs the project on them."""

from advisor.emit.base import template
from advisor.emit.clusters import Cluster, Job
from profiles.catalog import find_gpu

TASK = "skypilot.yaml"
NAMES = {
    "rtx3090": "RTX3090", "rtx4090": "RTX4090", "rtx5090": "RTX5090", "t4": "T4", "p100-16": "P100", "v100-16": "V100",
    "v100-32": "V100-32GB", "l4": "L4", "l40": "L40", "l40s": "L40S", "a10": "A10", "a10g": "A10G", "a40": "A40",
    "a100-40-pcie": "A100", "a100-40-sxm": "A100", "a100-80-pcie": "A100-80GB", "a100-80-sxm": "A100-80GB",
    "h100-pcie": "H100", "h100-sxm": "H100", "h200": "H200", "gh200": "GH200", "b200": "B200", "b300": "B300",
    "mi300x": "MI300X",
}  # fmt: skip


class SkyPilot(Cluster):
    """`sky launch`; parsed by SkyPilot 0.14, never run by us."""

    id = "skypilot"
    submit = f"sky launch {TASK}"

    def refusal(self, job: Job) -> str | None:
        """Cards that its catalogue has no name for."""
        if job.gpus_per_node and _name(job) is None:
            return f"SkyPilot rents by the card's name, which we know for {', '.join(NAMES)}: name one of them (--gpu)"
        return None

    def files(self, job: Job) -> dict[str, str]:
        """skypilot.yaml: the resources over a script that is the same for all."""
        wanted = f"accelerators: {_name(job)}:{job.gpus_per_node}" if job.gpus_per_node else "cpus: 8+"
        head = f"name: fine-tune\nnum_nodes: {job.nodes}\nresources:\n  {wanted}\n"
        return {TASK: head + template("cluster", "skypilot.yaml")}


def _name(job: Job) -> str | None:
    """The catalogue's name of the card."""
    gpu = job.plan.gpu
    return NAMES.get(find_gpu(gpu).id) if isinstance(gpu, str) else None


CLUSTER = SkyPilot()

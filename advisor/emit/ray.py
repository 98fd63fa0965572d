"""Ray: a job that runs one task a node, which starts the same processes as everywhere."""

from advisor.emit.base import template
from advisor.emit.clusters import Cluster, Job

SCRIPT = "ray_job.py"


class Ray(Cluster):
    """`ray job submit`; run on Ray 2.60."""

    id = "ray"
    submit = f'ray job submit -- python "$PWD/{SCRIPT}"'

    def files(self, job: Job) -> dict[str, str]:
        """ray_job.py, the same for all; cluster.json has the numbers."""
        return {SCRIPT: template("cluster", SCRIPT)}


CLUSTER = Ray()

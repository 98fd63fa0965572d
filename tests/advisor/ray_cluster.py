"""A Ray cluster on this machine, on ports of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PORTS = ("dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
START_SECONDS = 180


def find_ray() -> str | None:
    """The folder of the program `ray`: named, or the one on the PATH."""
    named = os.environ.get("FTADVISE_RAY_BIN")
    found = shutil.which("ray", path=named)
    return None if found is None else str(Path(found).parent)


@contextmanager
def ray_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment that `ray job` finds it by. Its processes are children of this one and end with the block."""
    programs = find_ray()
    assert programs is not None
    ports = {name: _free_port() for name in PORTS}
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    found = {"PATH": f"{programs}:{os.environ['PATH']}", "RAY_API_SERVER_ADDRESS": address}
    # Ray runs its workers at niceness 15, which starves them beside the rest of a suite
    environment = {**os.environ, **found, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    # A short path: the sockets in it may have 107 letters
    with TemporaryDirectory(prefix="ray", dir="/tmp") as temporary, (folder / "ray.log").open("wb") as log:
        options = [f"--{name}={port}" for name, port in ports.items()]
        options += ["--head", "--block", "--port=0", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
        options += ["--object-store-memory=80000000", f"--temp-dir={temporary}"]
        command = [f"{programs}/ray", "start", *options]
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait(environment, head, folder)
            yield found
        finally:
            head.terminate()
            try:
                head.wait(30)
            except subprocess.TimeoutExpired:
                head.kill()
                head.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(environment: dict[str, str], head: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.time() + START_SECONDS
    while time.time() < deadline and head.poll() is None:
        if subprocess.run(["ray", "job", "list"], env=environment, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(1)
    raise RuntimeError(f"Ray does not answer:\n{(folder / 'ray.log').read_text()[-3000:]}")

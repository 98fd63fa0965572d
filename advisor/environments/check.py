"""The check that starts processes: does the platform's import work in its environment?"""

import subprocess

from advisor.environments.environment import Environment
from advisor.hardware import resolve_hardware
from profiles.platform import load_platforms

# One short command a platform that imports what a run will import.
PROBES = {
    "hf": ("-c", "import trl, peft, bitsandbytes"),
    "llamafactory": ("-m", "llamafactory.cli", "version"),
    "unsloth": ("-c", "import unsloth"),
}
IMPORT_SECONDS = 300  # LLaMA-Factory's first import on a slow disk takes a minute
NO_GPU = "installed; import not verified without a GPU"


def check_environment(found: Environment) -> Environment:
    """The environment with the outcome of its import in `state` and `reason`; one that is not ready stays as it is."""
    if found.state != "ready":
        return found
    error, unverified = probe(found.platform, found.python, cpu=found.cpu)
    return found.replace(state="broken", reason=error) if error else found.replace(reason=unverified)


def probe(platform: str, python: str, *, cpu: bool) -> tuple[str, str]:
    """(what went wrong, what could not be verified), both empty where the import works."""
    if load_platforms()[platform].needs_gpu and (cpu or resolve_hardware().origin != "detected"):
        return "", NO_GPU
    try:
        ended = subprocess.run(
            [python, *PROBES[platform]], capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its import does not end: {error}", ""
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or ["without a word"]
        return f"its import fails: {lines[-1].strip()}", ""
    return "", ""

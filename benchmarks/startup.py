"""Cold wall time of an answer, next to importing its libraries: `python -m benchmarks.startup`; `--simulate` for the
simulated tier's.

Runs both commands in turn, N times, each in a fresh process, and prints medians and the paired ratio. Bytecode is
compiled first, as pip does when it installs a wheel.
"""

import compileall
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click

FTADVISE = str(Path(sys.executable).parent / "ftadvise")
PLAIN = (("--model", "llama-8b", "--vram", "24"),)
SIMULATED = (
    ("simulate", "--model", "llama-8b", "--method", "lora", "--vram", "24"),
    ("simulate", "--model", "llama-70b", "--method", "lora", "--vram", "160"),
)


def wall(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def compare(arguments: Sequence[str], libraries: str, runs: int) -> None:
    """Print how long `ftadvise ARGUMENTS` takes, and importing `libraries`; a first pair only warms the disk."""
    importing = [sys.executable, "-c", f"import {libraries}"]
    pairs = [(wall([FTADVISE, *arguments]), wall(importing)) for _ in range(runs + 1)][1:]
    answers = sorted(a for a, _ in pairs)
    spread = f"{answers[0]:.2f} to {answers[-1]:.2f}"
    click.echo(f"ftadvise {' '.join(arguments)}   median {median(answers):.3f} s of {runs} ({spread})")
    click.echo(f"python -c 'import {libraries}'   median {median(b for _, b in pairs):.3f} s")
    click.echo(f"ratio, paired   median {median(a / b for a, b in pairs):.2f}")


@click.command()
@click.option("-n", "runs", default=20, show_default=True, help="Runs of each command.")
@click.option("--simulate", is_flag=True, help="Time the simulated tier instead.")
def main(runs: int, simulate: bool) -> None:
    for package in ("advisor", "estimators", "profiles"):
        compileall.compile_dir(Path(__file__).parents[1] / package, quiet=1)
    for arguments in SIMULATED if simulate else PLAIN:
        compare(arguments, "torch" if simulate else "click, rich, pydantic", runs)


if __name__ == "__main__":
    main()

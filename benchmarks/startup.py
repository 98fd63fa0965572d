"""Cold wall time of a plain answer, next to importing its libraries: `python -m benchmarks.startup`.

Runs both commands in turn, N times, each in a fresh process, and prints medians and the paired ratio. Bytecode is
compiled first, as pip does when it installs a wheel.
"""

import compileall
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import click

ANSWER = [str(Path(sys.executable).parent / "ftadvise"), "--model", "llama-8b", "--vram", "24"]
IMPORTS = [sys.executable, "-c", "import click, rich, pydantic"]


def wall(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


@click.command()
@click.option("-n", "runs", default=20, show_default=True, help="Runs of each command.")
def main(runs: int) -> None:
    for package in ("advisor", "estimators", "profiles"):
        compileall.compile_dir(Path(__file__).parents[1] / package, quiet=1)
    pairs = [(wall(ANSWER), wall(IMPORTS)) for _ in range(runs + 1)][1:]
    answer, imports = median(a for a, _ in pairs), median(b for _, b in pairs)
    click.echo(f"ftadvise --model llama-8b --vram 24   median {answer:.3f} s of {runs}")
    click.echo(f"python -c 'import click, rich, pydantic'   median {imports:.3f} s")
    click.echo(f"ratio, paired   median {median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()

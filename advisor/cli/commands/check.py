"""`ftadvise check`: a training file of another platform."""

from pathlib import Path

import click

from advisor.cli.options import json_option
from advisor.cli.records import read_text

FORMATS = ("llamafactory", "trl", "axolotl", "unsloth", "accelerate")


@click.command(
    epilog="""\b
Examples:
  ftadvise check train_lora.yaml --vram 24
  ftadvise check sft.yaml --gpu "4x a100-80g" --accelerate fsdp2.yaml
  ftadvise check notebook.py --gpu t4 --model llama-8b --json

\b
Exit codes: 0 fits, 1 does not fit, 2 no answer.
"""
)
@click.argument("file", metavar="FILE|-")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: told by the file's keys.")
@click.option("--gpu", help='Card: rtx4090, "2x a100-80g", cpu. Default: what this machine has.')
@click.option("--vram", "vram_gib", type=float, metavar="GB", help="Memory of a card that is not named.")
@click.option("--n-gpus", type=int, help="Number of cards.  [default: as the file says, else 1]")
@click.option("--model", help="A model to stand in for the file's: nickname, hub id, folder or config.json.")
@click.option("--accelerate", metavar="FILE", help="The file that `accelerate launch` is started with.")
@click.option("--keys", "all_keys", is_flag=True, help="List all keys that were read and that are harmless.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@json_option
def command(
    file: str,
    form: str | None,
    gpu: str | None,
    vram_gib: float | None,
    n_gpus: int | None,
    model: str | None,
    accelerate: str | None,
    all_keys: bool,
    offline: bool,
    as_json: bool,
) -> int:
    """Judge a training file that exists.

    FILE is a YAML for LLaMA-Factory, TRL (`trl sft`) or axolotl, or a Python script over Unsloth, which is read and
    never run. Says whether it fits, how fast it is, what is risky, what to change, and what could not be judged.
    """
    from advisor.check import check, launched
    from advisor.readers import read_file

    def open_file(name: str) -> str | None:
        return _read_if_here((Path(name), Path(file).parent / name))

    where = "stdin" if file == "-" else file
    reading = read_file(read_text(file), where, form=form, open_file=open_file)
    if accelerate is not None:
        reading = launched(reading, read_file(read_text(accelerate), accelerate, form="accelerate"))
    answer = check(reading, gpu=gpu, vram_gib=vram_gib, n_gpus=n_gpus, model=model, offline=offline)
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("check", answer))
    else:
        from advisor.render.check import render_check

        render_check(answer, all_keys=all_keys).show()
    return {"fits": 0, None: 2}.get(answer.verdict, 1)


def _read_if_here(paths: tuple[Path, ...]) -> str | None:
    """The text of the first that is a file."""
    try:
        found = next((path for path in paths if path.is_file()), None)
    except OSError:  # a name that no file can have
        return None
    return read_text(str(found)) if found is not None else None

"""`ftadvise deploy`: from a finished run to a model that can be used."""

from pathlib import Path
from typing import get_args

import click

from advisor.cli.options import json_option
from advisor.deploy.gguf import GgufType
from advisor.request import Deployment


@click.command(
    epilog="""\b
Examples:
  ftadvise deploy run
  ftadvise deploy run --to adapter -o my-adapter
  ftadvise deploy run --to gguf --llama-cpp ~/llama.cpp --gguf-type q8_0

\b
Exit codes: 0 done, 1 the merged model does not say what the adapter said, 2 it could not be done.
"""
)
@click.argument("run", metavar="FOLDER|ID")
@click.option(
    "--to",
    "target",
    type=click.Choice(get_args(Deployment)),
    default="merged",
    show_default=True,
    help="The adapter alone, one whole model, a file for llama.cpp, or settings for vLLM.",
)
@click.option("-o", "--out", metavar="DIR", help="A new or empty folder.  [default: deploy/TARGET in the run's]")
@click.option("--base", metavar="MODEL", help="Weights to merge into.  [default: those that the run started from]")
@click.option("--force", is_flag=True, help="Replace files of the same name in DIR.")
@click.option("--python", metavar="PATH", help="Interpreter that has the run's packages.")
@click.option("--llama-cpp", metavar="PATH", help="llama.cpp's folder, or its convert_hf_to_gguf.py.")
@click.option("--gguf-type", type=click.Choice(get_args(GgufType)), default="auto", help="auto: 16 bits.")
@json_option
def command(
    run: str,
    target: Deployment,
    out: str | None,
    base: str | None,
    force: bool,
    python: str | None,
    llama_cpp: str | None,
    gguf_type: GgufType,
    as_json: bool,
) -> int:
    """Make a finished run usable: merged, as GGUF, for vLLM.

    With a model card of what was measured.

    Merging takes the platform's environment, a CPU, and main memory for the weights in fp32.
    """
    from advisor.deploy import Tools, deploy
    from advisor.runs import find_run

    folder = find_run(run)
    deployed = deploy(
        folder,
        target,
        Path(out).expanduser().absolute() if out else folder / "deploy" / target,
        tools=Tools(python, llama_cpp, gguf_type, base),
        force=force,
        say=lambda text: click.echo(text, err=True),
    )
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("deploy", deployed))
    else:
        from advisor.render.deployed import render_deployed

        render_deployed(deployed).show()
    return 0 if deployed.holds else 1

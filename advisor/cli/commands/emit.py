"""`ftadvise emit`: write a run that needs no ftadvise."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from advisor.cli.options import build_request, json_option, request_options
from advisor.cli.records import build_record, parse_object, read_text
from advisor.emit.base import ClusterId, Monitor
from profiles.plan import Plan

if TYPE_CHECKING:
    from advisor.recommendation import Recommendation


@click.command(
    epilog="""\b
Examples:
  ftadvise emit --model llama-8b --vram 24 --data train.jsonl -o run
  ftadvise emit --model llama-8b --plan plan.json --data train.jsonl -o run
  ftadvise emit --model llama-8b --gpu "8x h100" --data train.jsonl --cluster slurm --nodes 2 -o run
  ftadvise emit --model llama-8b --task grpo --data sums.jsonl --reward judge.py -o run
"""
)
@request_options
@click.option("--plan", "plan_path", metavar="FILE|-", help="Write this plan instead of the recommended one.")
@click.option("--reward", metavar="FILE", help="Python file with a function `reward`, for --task grpo.")
@click.option("-o", "--out", required=True, metavar="DIR", help="A new or empty folder.")
@click.option("--force", is_flag=True, help="Replace files of the same name in DIR.")
@click.option(
    "--general-text",
    metavar="FILE|none",
    help="Texts to measure before and after, to see what is forgotten.  [default: 24 passages that come with ftadvise]",
)
@click.option(
    "--monitor",
    "monitors",
    type=click.Choice(get_args(Monitor)),
    multiple=True,
    help="Report to it as well; runs/metrics.jsonl is always written.",
)
@click.option("--cluster", type=click.Choice(get_args(ClusterId)), help="Also write what that system needs to run it.")
@click.option("--nodes", type=click.IntRange(1), default=1, help="Machines that the cards are in.  [default: 1]")
@json_option
def command(
    plan_path: str | None,
    reward: str | None,
    out: str,
    force: bool,
    general_text: str | None,
    monitors: tuple[Monitor, ...],
    cluster: ClusterId | None,
    nodes: int,
    as_json: bool,
    **fields: Any,
) -> int:
    """Write the recommended run into a folder.

    Script, settings, requirements and data, with one command to run them; no ftadvise is needed for it.
    """
    from advisor.api import advise, facts
    from advisor.evaluate import evaluate_plan
    from advisor.project import write_project
    from estimators.answer import Estimate

    request = build_request(fields)
    known = facts(request)
    if plan_path is not None:
        content = parse_object(read_text(plan_path), plan_path)
        plan = build_record(Plan, {**content, "model": request.model}, lambda field: f"plan.{field}")
        candidate = evaluate_plan(plan, known)
    else:
        recommendation = advise(request, known=known)
        if recommendation.best is None:
            _say_why_not(recommendation, as_json=as_json)
            return 1
        candidate = recommendation.best
    estimate = Estimate(memory=candidate.memory, speed=candidate.speed)
    judge = None if reward is None else read_text(reward)
    emission = write_project(
        candidate.plan,
        known.model,
        estimate,
        Path(out),
        data=request.data,
        replay=request.replay,
        reward=judge,
        general_text=general_text,
        report_to=tuple(dict.fromkeys(monitors)),
        cluster=cluster,
        nodes=nodes,
        examples=known.data.examples,
        force=force,
    )
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("emit", emission))
    else:
        from advisor.render.emission import render_emission

        render_emission(emission, out, with_data=request.data is not None, cluster=cluster).show()
    return 0 if candidate.memory.verdict == "fits" else 1


def _say_why_not(recommendation: "Recommendation", *, as_json: bool) -> None:
    """Nothing was written: the recommendation says why, and what would help."""
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("advise", recommendation))
    else:
        from advisor.render.recommendation import render_recommendation

        render_recommendation(recommendation).show()

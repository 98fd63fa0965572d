"""`ftadvise schema`: JSON schemas of what the machine interface takes and gives."""

import json

import click

NAMES = ("plan", "request", "estimate", "recommendation")


@click.command()
@click.argument("name", type=click.Choice(NAMES), default="plan")
def command(name: str) -> int:
    """Print the JSON schema of a record. Plan and request go in, estimate and recommendation come out."""
    from advisor.recommendation import EstimateAnswer, Recommendation
    from advisor.request import Request
    from profiles.plan import Plan
    from profiles.record import Record

    records: dict[str, type[Record]] = {
        "plan": Plan,
        "request": Request,
        "estimate": EstimateAnswer,
        "recommendation": Recommendation,
    }
    click.echo(json.dumps(records[name].model_json_schema(), indent=2))
    return 0

"""`ftadvise doctor`: what this machine offers, what each finding means, and how to mend it."""

import click

from advisor.cli.options import json_option


@click.command()
@click.option("--hub", is_flag=True, help="Also ask the hub whether it answers and knows the token.")
@json_option
def command(hub: bool, as_json: bool) -> int:
    """Check card, driver, torch, environments, disk and hub.

    Each finding says what it means and how to mend it.
    """
    from advisor.doctor import examine

    findings = examine(ask_hub=hub)
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("doctor", findings))
    else:
        from advisor.render.doctor import print_findings

        print_findings(findings)
    return 1 if any(f.level == "problem" for f in findings) else 0

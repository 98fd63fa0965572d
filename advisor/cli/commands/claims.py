"""`ftadvise claims`: the published comparison, checked."""

import click

from advisor.cli.options import json_option


@click.command(
    epilog="""\b
Examples:
  ftadvise claims
  ftadvise claims --id R-lora
  ftadvise claims --id H
"""
)
@click.option("--id", "claim_id", metavar="ID", help="One claim (H3, M-lora, R-prompt) or a section (P, M, R, H).")
@json_option
def command(claim_id: str | None, as_json: bool) -> int:
    """Check the published comparison against our numbers.

    Each row: what it states, our number, the evidence, the verdict.
    """
    from advisor.claims import check_claim, select_claims

    checked = [check_claim(claim) for claim in select_claims(claim_id)]
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("claims", checked))
    else:
        from advisor.render.claims import render_claims

        render_claims(checked).show()
    return 0

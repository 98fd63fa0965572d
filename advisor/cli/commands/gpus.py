"""`ftadvise gpus`: the catalogue's cards."""

import click

from advisor.cli.options import json_option


@click.command()
@click.argument("query", required=False, default="")
@json_option
def command(query: str, as_json: bool) -> int:
    """List the catalogue's cards. QUERY narrows by any part of a name."""
    from profiles.catalog import load_gpus

    word = query.casefold()
    found = [g for g in load_gpus().values() if any(word in name.casefold() for name in (g.id, g.name, *g.aliases))]
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("gpus", found))
    else:
        from advisor.render.catalogue import print_gpus

        print_gpus(found)
    return 0

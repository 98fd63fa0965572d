"""`ftadvise models`: the catalogue's models."""

import click

from advisor.cli.options import json_option


@click.command()
@click.argument("query", required=False, default="")
@json_option
def command(query: str, as_json: bool) -> int:
    """List the catalogue's models. QUERY narrows by any part of a name; any hub id or folder works as well."""
    from profiles.catalog import load_model_rows

    word = query.casefold()
    found = [
        m for m in load_model_rows().values() if any(word in n.casefold() for n in (m.id, *m.aliases, *m.variants))
    ]
    if as_json:
        from advisor.render.envelope import answer_envelope

        click.echo(answer_envelope("models", found))
    else:
        from advisor.render.catalogue import print_models

        print_models(found)
    return 0

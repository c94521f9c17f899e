"""The command `schema`."""

from __future__ import annotations

import json

import click

from edgeopt.cli.answer import Answer
from edgeopt.cli.commands import json_option


@click.command()
@json_option
def schema() -> Answer:
    """Print the JSON Schema of recipes, with the options of every pass, score and data source.

    Editors check and complete a recipe that begins with the line
    `# yaml-language-server: $schema=edgeopt.schema.json`.
    """
    from edgeopt.stages.schema import schema as stage

    made = stage()
    return Answer(made, lambda: json.dumps(made, indent=1, ensure_ascii=False))

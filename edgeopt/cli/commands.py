"""The table of commands. A command's module is imported when it is called, never for `edgeopt --help`."""

from __future__ import annotations

import importlib
from typing import Any

import click

# Section → command → (module:function, help in one line).
SECTIONS = {
    "The walk": {
        "run": ("edgeopt.cli.walk:run", "plan, build, measure, report and bundle a recipe"),
        "plan": ("edgeopt.cli.walk:plan", "show the steps of a recipe; nothing runs"),
        "build": ("edgeopt.cli.walk:build", "make every artifact of a recipe"),
        "measure": ("edgeopt.cli.walk:measure", "score and time the artifacts of a run folder"),
        "report": ("edgeopt.cli.report:report", "judge the gates on what was measured, and tell it in many forms"),
        "bundle": ("edgeopt.cli.walk:bundle", "pack what was picked, with its evidence"),
    },
    "After it": {
        "compare": ("edgeopt.cli.compare:compare", "hold one run against another: better, worse or the same"),
    },
    "Models": {
        "init": ("edgeopt.cli.init:init", "write a starter recipe for a model"),
        "bench": ("edgeopt.cli.bench:bench", "time a model on targets, without a recipe"),
        "inspect": ("edgeopt.cli.inspect:inspect", "look into a model, an artifact or a run folder"),
    },
    "What is here": {
        "passes": ("edgeopt.cli.catalogue:passes", "list the passes, or explain one"),
        "targets": ("edgeopt.cli.catalogue:targets", "list the shipped targets"),
        "doctor": ("edgeopt.cli.doctor:doctor", "say what is usable here and how to get the rest"),
        "cache": ("edgeopt.cli.cache:cache", "list, explain and prune the store of finished work"),
        "schema": ("edgeopt.cli.schema:schema", "print the JSON Schema of recipes, for editors"),
    },
}


class LazyGroup(click.Group):
    """A group whose help is written from the table alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for section in SECTIONS.values():
            if name in section:
                module, _, function = section[name][0].partition(":")
                command: click.Command = getattr(importlib.import_module(module), function)
                return command
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            from edgeopt.core.errors import did_you_mean

            raise click.UsageError(f"unknown command '{args[0]}', {did_you_mean(args[0], self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_, summary) in section.items()])


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from edgeopt import __version__

        click.echo(f"edgeopt {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `edgeopt init MODEL` or `edgeopt run recipes/mnist-cnn.yaml`.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit.")
def COMMANDS() -> None:
    """From a trained model to a verified, device-ready artifact."""


def json_option(command: Any) -> Any:
    """`--json` of a command; `edgeopt.cli.call` prints the answer as one document when it is given."""
    say = "Print one JSON document on standard output, all else on standard error."
    return click.option("--json", "as_json", is_flag=True, expose_value=False, help=say)(command)

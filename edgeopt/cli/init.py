"""The command `init`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.answer import Answer
from edgeopt.cli.commands import json_option


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="The recipe. Default: NAME.yaml, here; - prints it.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=DTYPE[SIZES]", help="What a factory's model takes: image=float32[N,3,224,224]."
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
@json_option
def init(model: str, output: Path | None, inputs: tuple[str, ...], force: bool) -> Answer:
    """Write a commented starter recipe for MODEL: an .onnx, .pt2, .keras or .h5 file, or a torch factory as file.py:function.

    The recipe runs at once, on random data; comments show how real data, other passes and gates are given.
    """
    from edgeopt.core.errors import UsageError
    from edgeopt.stages.init import init as stage

    printed = output == Path("-")
    text = stage(model, Path() if output is None or printed else output.parent, inputs)
    if printed:
        return Answer({"recipe": None, "text": text}, text)
    path = output or Path(
        next(line.removeprefix("name: ").strip("'\"") for line in text.splitlines() if line.startswith("name: ")) + ".yaml"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists", remedy="choose another with --output, or overwrite it with --force") from None
    return Answer({"recipe": str(path), "text": text}, f"{path} written; next: edgeopt plan {path}")

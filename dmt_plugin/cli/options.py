"""Options that several subcommands take: what to look at, and for how many hosts."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="package.module:factory or path/to/file.py:factory.")]
Config = Annotated[
    str | None,
    typer.Option(
        help='DeepSpeed JSON with a "dmt" section, looked for here and beside the model; default: the default section.'
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(
        help="Factory of an example batch, written as --model is; default: what the model's factory returns beside "
        'the model, or example_batch() beside the factory, or the configuration\'s "example_batch".'
    ),
]
Hosts = Annotated[
    int | None, typer.Option(min=1, help="Hosts; default: the config, else the number of towers, else 2.")
]

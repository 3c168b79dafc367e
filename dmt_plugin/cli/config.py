"""``dmt config``: every key of the "dmt" section with its default and meaning."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from dmt_plugin.config.section import DMTConfig


def rows(model: type[BaseModel], prefix: str = "dmt") -> list[tuple[str, str, str]]:
    """``(key, default as JSON, description)`` of every key, depth first."""
    found: list[tuple[str, str, str]] = []
    for name, info in model.model_fields.items():
        default: Any = info.get_default(call_default_factory=True)
        key = f"{prefix}.{name}"
        if isinstance(default, BaseModel):
            found += rows(type(default), key)
        else:
            found.append((key, json.dumps(default), info.description or ""))
    return found


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON schema of the section.")] = False,
) -> None:
    """Print every key of the "dmt" section: its default and what it does."""
    if as_json:
        typer.echo(json.dumps(DMTConfig.model_json_schema(), indent=2))
        return
    table = Table(title='the "dmt" section of a DeepSpeed configuration')
    table.add_column("key", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("meaning")
    for key, default, description in rows(DMTConfig):
        table.add_row(key, default, description)
    Console().print(table)

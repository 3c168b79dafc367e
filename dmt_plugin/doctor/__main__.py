"""``dmt doctor`` as a module, for launchers: ``deepspeed --module dmt_plugin.doctor``."""

from __future__ import annotations

import typer

from dmt_plugin.doctor.command import command

if __name__ == "__main__":
    typer.run(command)

"""What one checkout promises and computes, as JSON; run by that checkout's Python, in its folder.

1. The schema of the "dmt" section with defaults, the help of every command, and the finding codes in the source.
2. For every model of the zoo, without and with tower modules on 2x2: what ``dmt explain --json`` says, so bytes of
   every exchange, the plan's fingerprint, graphs, layers that start from new values, findings.
3. With ``--zoo``: the survey of the zoo.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

COMMANDS = [
    [], ["explain"], ["verify"], ["partition"], ["config"], ["doctor"], ["report"], ["bench"], ["checkpoint"],
    ["checkpoint", "inspect"], ["checkpoint", "to-flat"], ["checkpoint", "reshard"],
]  # fmt: skip
MODULES = {"none": {"module": "none"}, "dlrm": {"module": "dlrm", "c": 1, "p": 0, "dim": 4}}
MODEL = """\
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.checks import build as build_variant
from tests.zoo.checks import example
def build():
    return build_variant(CATALOGUE[{name!r}])[0]
def example_batch():
    return example(build_variant(CATALOGUE[{name!r}])[1])
"""


def home(*names: str) -> Any:
    """The first of some modules that the checkout has."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(names)


def schema() -> Any:
    """Names, types and defaults of the "dmt" section."""
    return home("dmt_plugin.config.section", "dmt_plugin.config").DMTConfig.model_json_schema()


def invoke(arguments: list[str]) -> Any:
    """A run of the ``dmt`` command in this process."""
    from typer.testing import CliRunner

    return CliRunner().invoke(home("dmt_plugin.cli").app, arguments, env={"COLUMNS": "120", "TERM": "dumb"})


def helps() -> dict[str, str]:
    """The help of every command."""
    return {" ".join(["dmt", *command]): invoke([*command, "--help"]).stdout for command in COMMANDS}


def codes() -> list[str]:
    """Finding codes in the source."""
    files = [f for top in ("dmt_plugin", "passes", "integrations") for f in Path(top).rglob("*.py")]
    return sorted({code for file in files for code in re.findall(r"\bDMT\d{3}\b", file.read_text())})


def explained(folder: Path) -> dict[str, Any]:
    """What ``dmt explain`` says of every model of the zoo."""
    found: dict[str, Any] = {}
    for name in home("tests.zoo.catalogue").CATALOGUE:
        file = folder / "model_of_the_zoo.py"
        file.write_text(MODEL.format(name=name))
        for towers, section in MODULES.items():
            config = folder / "ds.json"
            config.write_text(json.dumps({"train_micro_batch_size_per_gpu": 64, "dmt": {"towers": section}}))
            topology = ["--hosts", "2", "--ranks-per-host", "2", "--rank", "1"]
            result = invoke(["explain", "--model", f"{file}:build", "--config", str(config), *topology, "--json"])
            text = result.stdout[result.stdout.find("{") :]
            found[f"{name}, {towers}"] = json.loads(text) if text.startswith("{") else repr(result.exception)
    return found


def main() -> None:
    """Writes the facts to the file that is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--zoo", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    with tempfile.TemporaryDirectory() as folder:
        facts = {"schema": schema(), "help": helps(), "codes": codes(), "explain": explained(Path(folder))}
    if options.zoo:
        survey = home("tests.zoo.survey")
        catalogue = home("tests.zoo.catalogue").CATALOGUE
        facts["zoo"] = {name: survey.survey(variant) for name, variant in catalogue.items()}
    options.output.write_text(json.dumps(facts, indent=1, default=str))


if __name__ == "__main__":
    main()

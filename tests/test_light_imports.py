"""What describes a run, a plan, a configuration or a checkpoint is read without torch."""

from __future__ import annotations

import subprocess
import sys

LIGHT = (
    "dmt_plugin",
    "dmt_plugin.core.sizes",
    "dmt_plugin.topology.shape",
    "dmt_plugin.plan",
    "dmt_plugin.plan.file",
    "dmt_plugin.plan.tables",
    "dmt_plugin.plan.tower_plan",
    "dmt_plugin.config",
    "dmt_plugin.config.messages",
    "dmt_plugin.config.placement",
    "dmt_plugin.config.section",
    "dmt_plugin.config.towers",
    "dmt_plugin.comm.formats",
    "dmt_plugin.checkpoint.folder",
    "dmt_plugin.checkpoint.manifest",
)


def test_no_torch_behind_plan_configuration_and_manifest() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'numpy', 'deepspeed', 'fbgemm_gpu'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {sorted(heavy)}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

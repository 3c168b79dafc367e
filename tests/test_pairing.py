from __future__ import annotations

import builtins
import importlib
import subprocess
import sys
from importlib import metadata

import pytest

from dmt_plugin.core import versions as pairing
from dmt_plugin.core.errors import PairingError

REQUIRES = [
    "torch==2.13.0",
    "deepspeed==0.19.8",
    "numpy>=1.26",
    'fbgemm-gpu-cpu==1.8.0; extra == "cpu"',
    'fbgemm-gpu==1.8.0; extra == "cuda"',
    'torchrec==1.8.0; extra == "torchrec"',
]
GOOD = {"dmt-plugin": "0.1.0", "torch": "2.13.0+cpu", "deepspeed": "0.19.8", "fbgemm-gpu-cpu": "1.8.0"}


@pytest.fixture
def installed(monkeypatch):
    """Stands for the machine's metadata; a test changes the dict."""
    versions = dict(GOOD)

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    def requires(name):
        version(name)
        return REQUIRES

    monkeypatch.setattr(pairing.metadata, "version", version)
    monkeypatch.setattr(pairing.metadata, "requires", requires)
    pairing.import_fbgemm.cache_clear()
    yield versions
    pairing.import_fbgemm.cache_clear()


def test_this_machine_is_paired():
    pairing.check_pairing()
    assert hasattr(pairing.import_fbgemm(), "__version__")
    assert {"torch", "deepspeed", "dmt-plugin"} <= set(pairing.installed_versions())


@pytest.mark.parametrize("extra", [{}, {"torchrec": "1.8.0"}, {"deepspeed": "0.19.8+abc"}])
def test_good_sets(installed, extra):
    installed |= extra
    pairing.check_pairing()
    assert pairing.installed_versions() == installed | {
        name: None for name in ("fbgemm-gpu", "torchrec") if name not in installed
    }


def test_fbgemm_and_torchrec_may_be_absent(installed):
    del installed["fbgemm-gpu-cpu"]
    pairing.check_pairing()


@pytest.mark.parametrize(
    "change, parts",
    [
        ({"torch": "2.12.1"}, ["torch 2.12.1", "torch==2.13.0", "pip install 'torch==2.13.0'"]),
        ({"torch": "2.13.0.dev20260101"}, ["torch 2.13.0.dev20260101", "torch==2.13.0"]),
        ({"fbgemm-gpu-cpu": "1.9.0"}, ["fbgemm-gpu-cpu 1.9.0", "pip install 'fbgemm-gpu-cpu==1.8.0'"]),
        ({"torchrec": "1.9.2"}, ["torchrec 1.9.2", "pip install --no-deps 'torchrec==1.8.0'"]),
        ({"deepspeed": None}, ["deepspeed is not installed", "pip install 'deepspeed==0.19.8'"]),
        ({"fbgemm-gpu": "1.8.0"}, ["fbgemm-gpu 1.8.0", "fbgemm-gpu-cpu 1.8.0", "pip uninstall"]),
        (
            {"torch": "2.12.1", "fbgemm-gpu-cpu": "1.7.0"},
            ["torch 2.12.1", "fbgemm-gpu-cpu 1.7.0", "pip install 'torch==2.13.0' 'fbgemm-gpu-cpu==1.8.0'"],
        ),
        ({"dmt-plugin": None}, ["dmt-plugin itself is not installed", "pip install"]),
    ],
)
def test_bad_sets(installed, change, parts):
    for name, version in change.items():
        installed[name] = version
        if version is None:
            del installed[name]
    with pytest.raises(PairingError) as caught:
        pairing.check_pairing()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_it_is_an_import_error(installed):
    installed["torch"] = "1.0"
    with pytest.raises(ImportError):
        pairing.import_fbgemm()


def test_missing_fbgemm_names_the_extra(installed, monkeypatch):
    del installed["fbgemm-gpu-cpu"]
    _break_import(monkeypatch, ModuleNotFoundError("No module named 'fbgemm_gpu'"))
    with pytest.raises(PairingError, match=r"fbgemm.*not installed.*pip install 'dmt-plugin\[(cpu|cuda)\]'"):
        pairing.import_fbgemm()


@pytest.mark.parametrize("error", [OSError, ImportError, RuntimeError])
def test_undefined_symbol_becomes_a_pairing_error(installed, monkeypatch, error):
    _break_import(monkeypatch, error("fbgemm_gpu_py.so: undefined symbol: _ZN3c10Thing"))
    with pytest.raises(PairingError) as caught:
        pairing.import_fbgemm()
    text = str(caught.value)
    assert "undefined symbol" in text and "torch 2.13.0+cpu" in text and "fbgemm-gpu-cpu 1.8.0" in text
    assert "pip install --force-reinstall" in text and caught.value.__cause__ is not None


def test_operators_that_did_not_load_are_noticed(installed, monkeypatch):
    monkeypatch.setattr(pairing, "_missing_operators", lambda: ["fbgemm::thing"])
    with pytest.raises(PairingError, match="fbgemm::thing"):
        pairing.import_fbgemm()


def test_import_is_light():
    code = (
        "import sys, dmt_plugin.core.versions as p; p.check_pairing(); "
        "print({'torch', 'fbgemm_gpu'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def _break_import(monkeypatch, error):
    real_import, real_function = builtins.__import__, importlib.import_module

    def broken(name, *args, **kwargs):
        if name.split(".")[0] == "fbgemm_gpu":
            raise error
        return real_import(name, *args, **kwargs)

    def broken_function(name, *args, **kwargs):
        return broken(name) if name.startswith("fbgemm_gpu") else real_function(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    monkeypatch.setattr(importlib, "import_module", broken_function)

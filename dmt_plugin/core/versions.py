"""Whether the installed torch, fbgemm, deepspeed and torchrec belong together.

pip cannot tell: fbgemm and torchrec name no torch version, so a wrong pair installs without a word and ends in an
"undefined symbol" deep inside an import. So:

1. ``check_pairing`` compares what is installed with the pins in this package's own metadata (``pyproject.toml``
   is the only place where they are written), reading metadata only: nothing heavy is imported.
2. ``import_fbgemm`` is the only way to fbgemm in this package: it checks first, imports, makes sure that the
   operators are there, and turns what goes wrong into one ``PairingError`` with the command that repairs it.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata
from types import ModuleType

from packaging.requirements import Requirement

from dmt_plugin.core.errors import NotInstalledError, PairingError

OURSELVES = "dmt-plugin"
NEEDED = ("torch", "deepspeed")
FBGEMM = ("fbgemm-gpu-cpu", "fbgemm-gpu")
PAIRED = (*NEEDED, *FBGEMM, "torchrec")

# Operators of several of fbgemm's libraries, that lookups go through.
OPERATORS = (
    "split_embedding_codegen_lookup_rowwise_adagrad_function_pt2",
    "asynchronous_complete_cumsum",
    "bounds_check_indices",
)


def installed_versions() -> dict[str, str | None]:
    """Versions of this package and of everything it is paired with; None for what is not installed."""
    return {name: _version(name) for name in (OURSELVES, *PAIRED)}


def check_pairing() -> None:
    """Compare the installed versions with the pins in this package's metadata.

    torch and deepspeed must be there; fbgemm and torchrec may be absent.

    Raises:
        PairingError: Naming what was found, what was expected, and the pip command that repairs it.
    """
    pins = _pins()
    wrong: list[str] = []
    commands: dict[str, list[str]] = {}
    for name in PAIRED:
        version, pin = _version(name), pins.get(name)
        if pin is None or (version is None and name not in NEEDED):
            continue
        if version is None:
            wrong.append(f"{name} is not installed (expected {pin.name}{pin.specifier})")
        elif not pin.specifier.contains(version, prereleases=True):
            wrong.append(f"{name} {version} is installed (expected {pin.name}{pin.specifier})")
        else:
            continue
        # torchrec would pull in the CUDA build of fbgemm.
        pip = "pip install --no-deps" if name == "torchrec" else "pip install"
        commands.setdefault(pip, []).append(f"'{pin.name}{pin.specifier}'")
    if wrong:
        repair = " && ".join(f"{pip} {' '.join(names)}" for pip, names in commands.items())
        raise PairingError(f"{OURSELVES} {_version(OURSELVES)}: {'; '.join(wrong)}. Mend it with: {repair}")
    builds = [f"{name} {_version(name)}" for name in FBGEMM if _version(name) is not None]
    if len(builds) > 1:
        raise PairingError(
            f"{' and '.join(builds)} are both installed and overwrite each other's files. Mend it with: "
            f"pip uninstall -y {' '.join(FBGEMM)} && pip install '{OURSELVES}[cpu]' (or '{OURSELVES}[cuda]')"
        )


@cache
def import_fbgemm() -> ModuleType:
    """Import ``fbgemm_gpu`` with its operators loaded; what was found to fit is not looked at again.

    Raises:
        NotInstalledError: It is not installed.
        PairingError: It does not fit, or cannot be loaded.
    """
    check_pairing()
    build = next((name for name in FBGEMM if _version(name) is not None), None)
    if build is None:
        raise NotInstalledError(
            f"fbgemm is not installed. Mend it with: pip install '{OURSELVES}[{_extra()}]', "
            'or set "lookup": {"backend": "torch"} in the "dmt" section'
        )
    try:
        module = importlib.import_module("fbgemm_gpu")
    except Exception as error:  # a library that does not fit raises OSError, RuntimeError or ImportError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PairingError(_cannot_load(build, reason)) from error
    missing = _missing_operators()
    if missing:
        raise PairingError(_cannot_load(build, f"it has no operator {', '.join(missing)}"))
    return module


def _cannot_load(build: str, reason: str) -> str:
    pins = _pins()
    names = " ".join(f"'{pins[name].name}{pins[name].specifier}'" for name in ("torch", build) if name in pins)
    return (
        f"{build} {_version(build)} cannot be loaded with torch {_version('torch')}: {reason}. "
        f"Mend it with: pip install --force-reinstall --no-deps {names}"
    )


def _missing_operators() -> list[str]:
    import torch

    return [f"fbgemm::{name}" for name in OPERATORS if not hasattr(torch.ops.fbgemm, name)]


def _extra() -> str:
    import torch

    return "cuda" if torch.version.cuda else "cpu"


def _pins() -> dict[str, Requirement]:
    try:
        lines = metadata.requires(OURSELVES) or []
    except metadata.PackageNotFoundError:
        raise PairingError(
            f"{OURSELVES} itself is not installed, so its pins cannot be read. Mend it with: "
            "pip install -e . in its source folder"
        ) from None
    requirements = (Requirement(line) for line in lines)
    return {requirement.name: requirement for requirement in requirements if requirement.name in PAIRED}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

"""What one process can see by itself: versions, FBGEMM, compiler and ninja, accelerator and backends, memory of files.

Each function is one check (see ``check.py``). Programs are run with a time limit of their own, so that a compiler on a
stuck file system does not outlive the check.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dmt_plugin.core.errors import NotInstalledError
from dmt_plugin.core.versions import check_pairing, import_fbgemm, installed_versions
from dmt_plugin.doctor.check import Finding

PROGRAM_LIMIT_S = 30.0
COMPILERS = ("c++", "g++", "clang++")
SOURCE = "int main() { return 0; }\n"


def versions() -> Finding:
    """This package, torch, deepspeed, fbgemm and torchrec belong together."""
    found = {"python": platform.python_version(), **installed_versions()}
    words = ", ".join(f"{name} {version}" for name, version in found.items() if version is not None)
    data = {"versions": found, "platform": platform.platform()}
    try:
        check_pairing()
    except Exception as error:
        text, _, change = str(error).partition(" Mend it with: ")
        return Finding(words, "fail", text, change, data)
    return Finding(words, data=data)


def fbgemm() -> Finding:
    """FBGEMM can be loaded and has its operators."""
    try:
        import_fbgemm()
    except Exception as error:
        text, _, change = str(error).partition(" Mend it with: ")
        expected = "fbgemm with its operators; without it tables are looked up by plain torch, which is slower"
        return Finding(text, "warn" if isinstance(error, NotInstalledError) else "fail", expected, change)
    return Finding("loads, with its operators")


def compiler() -> Finding:
    """There is a C++ compiler that makes programs."""
    path = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    needs = "a C++ compiler: DeepSpeed's fused optimizers and compiled tower modules build with it"
    if path is None:
        return Finding("no c++, g++ or clang++ on PATH", "warn", needs, "install one, e.g. apt-get install g++")
    with tempfile.TemporaryDirectory(prefix="dmt-doctor-") as folder:
        source = Path(folder, "one.cpp")
        source.write_text(SOURCE)
        command = [path, str(source), "-o", str(Path(folder, "one"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_LIMIT_S)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Finding(f"{path} cannot make a program: {lines[0][:200]}", "warn", needs, "mend its installation")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=PROGRAM_LIMIT_S).stdout
    return Finding(f"{path} ({(version.splitlines() or ['unknown version'])[0]})")


def ninja() -> Finding:
    """Ninja is on PATH, as DeepSpeed and torch look for it there."""
    path = shutil.which("ninja")
    if path is not None:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=PROGRAM_LIMIT_S)
        if done.returncode == 0:
            return Finding(f"{path} ({done.stdout.strip()})")
        return Finding(f"{path} ends with status {done.returncode}", "warn", "ninja", "pip install ninja")
    beside = Path(sys.executable).parent
    there = (beside / "ninja").exists()
    return Finding(
        f"not on PATH{f', but in {beside}' if there else ''}",
        "warn",
        "ninja on PATH: DeepSpeed builds its operators with it, and stops without it",
        f'export PATH="{beside}:$PATH", or activate the environment' if there else "pip install ninja",
    )


def accelerator() -> Finding:
    """What DeepSpeed computes on, and the backend it talks with."""
    import torch
    import torch.distributed as dist
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator()
    name, backend, count = device.device_name(), device.communication_backend_name(), device.device_count()
    there = [b for b in ("nccl", "gloo", "mpi", "ucc", "xccl") if dist.is_backend_available(b)]
    data = {"accelerator": name, "backend": backend, "devices": count, "backends": there}
    if name == "cpu":
        if torch.accelerator.is_available():
            other = torch.accelerator.current_accelerator()
            return Finding(
                f"DeepSpeed chose cpu, although torch has {other}",
                "warn",
                "the accelerator",
                f"unset DS_ACCELERATOR, or set it to {other}",
                data,
            )
        return Finding(f"cpu with {backend}, {torch.get_num_threads()} threads; backends {', '.join(there)}", data=data)
    models = sorted({torch.cuda.get_device_name(i) for i in range(count)}) if name == "cuda" else []
    data["models"] = models
    kinds = f" ({', '.join(models)})" if models else ""
    if backend not in there:
        return Finding(
            f"{count} x {name}{kinds}, but torch was built without {backend}",
            "fail",
            f"the backend {backend}",
            "install a build of torch for this accelerator",
            data,
        )
    return Finding(f"{count} x {name}{kinds} with {backend}; backends {', '.join(there)}", data=data)

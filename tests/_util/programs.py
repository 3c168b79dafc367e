"""Python programs in processes of their own, without the seconds that each of them would spend on imports.

1. The process is forked from the server of the ranks, which has imported everything that is slow. Beside an
   accelerator, which no fork survives, it is an ordinary one.
2. It gets the folder, variables and command line that an ordinary one would get, and its output goes into files.
3. At the time limit, and when the test ends for any reason, it and whatever it has started are killed.

What is tested to be light, to lack modules, or to depend on the interpreter's start is no case for it.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch

from tests._util.ranks import LAUNCHER_VARIABLES, server

ROOT = Path(__file__).parents[2]


def run_program(
    module: str, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Do what ``python -m module arguments`` does; with ``-c`` as the module, the first argument is the code.

    Args:
        module: name of a module, or "-c".
        *arguments: of its command line.
        cwd: folder it starts in.
        env: variables beside those of this process.
        timeout: seconds until it is killed.

    Raises:
        subprocess.TimeoutExpired: it did not end in time.
    """
    argv = [str(argument) for argument in arguments]
    variables = {name: value for name, value in os.environ.items() if not LAUNCHER_VARIABLES.fullmatch(name)}
    variables |= {"OMP_NUM_THREADS": "1", **(env or {})}
    if torch.cuda.is_available():
        command = [sys.executable, *(("-c",) if module == "-c" else ("-m", module)), *argv]
        return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout)
    with tempfile.TemporaryDirectory(prefix="program-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = server().Process(target=_main, args=(module, argv, str(cwd), variables, str(out), str(err)))
        process.start()
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired([module, *argv], timeout, err.read_text() if err.exists() else None)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
        said, complained = (file.read_text() if file.exists() else "" for file in (out, err))
        return subprocess.CompletedProcess([module, *argv], process.exitcode, said, complained)


def _main(module: str, argv: list[str], cwd: str, variables: dict[str, str], out: str, err: str) -> None:
    os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)
    mp.set_start_method(None, force=True)  # the default; not that of this process
    mp.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    sys.path.insert(0, cwd)
    status = 0
    try:
        if module == "-c":
            code, *rest = argv
            sys.argv = ["-c", *rest]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [module, *argv]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)

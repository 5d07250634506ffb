"""Run commands in forks of a process that has imported torch and Lightning, because each import takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

import wavespace as wavespace_package

SERVER = multiprocessing.get_context("forkserver")
MODULES = [module.name for module in pkgutil.walk_packages(wavespace_package.__path__, "wavespace.")]
LAZY = ["matplotlib.backends.backend_agg", "sklearn.linear_model", "sklearn.metrics", "sklearn.preprocessing"]
SERVER.set_forkserver_preload([*(name for name in MODULES if name != "wavespace.__main__"), *LAZY])
LIMIT = 300
"""Seconds after which a process is killed, on a machine that may be busy."""


def forked(
    call: Callable[..., object], *arguments: object, cwd: Path | None = None, **environment: str
) -> CompletedProcess[str]:
    """Call a function of a module in a process of its own, and tell how that ended and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        process = begun(said, cwd or Path.cwd(), environment, call, *arguments)
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(
                f"{arguments} ran for {LIMIT} seconds; it said\n" + "\n".join(p.read_text() for p in said)
            )
        return CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in said))


def begun(
    said: list[Path], cwd: Path, environment: dict[str, str], call: Callable[..., object], *arguments: object
) -> BaseProcess:
    """Call a function in a process of its own, whose output and errors are appended to two files, or to one."""
    process = SERVER.Process(target=_child, args=(said, cwd, environment, call, arguments))
    process.start()
    return process


def command(*arguments: str, cwd: Path | None = None, **environment: str) -> CompletedProcess[str]:
    """What `wavespace ARGUMENTS` does once Python has imported what it needs."""
    return forked(wavespace, *arguments, cwd=cwd, **environment)


def as_started_by_hand() -> None:
    """Undo what would have this process start its own, such as loaders, from a server too."""
    multiprocessing.set_start_method(None, force=True)


def wavespace(*arguments: str) -> None:
    """What the installed command does."""
    from wavespace.cli import main

    sys.argv = ["wavespace", *arguments]
    main()


def _child(
    said: list[Path], cwd: Path, environment: dict[str, str], call: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    for number, path in enumerate(said, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    as_started_by_hand()
    os.environ.update(environment)
    os.chdir(cwd)
    call(*arguments)

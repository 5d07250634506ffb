"""A pod's jobs as forks of one process that has imported what training needs, which takes each job seconds else.

`wandb agent` starts `wavespace worker …` for each run. On a pod that is a client of few imports: it hands its
arguments, directory, environment and standard files to the pod's `wavespace preloaded`, passes signals on, and ends as
the fork that does the job ends. Where no such process answers, the client does the job itself.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from wavespace.errors import UserError
from wavespace.terminal import guarded

FOLDER = "WAVESPACE_POD_FOLDER"
"""The variable that names the pod's folder."""

SELF_TEST = "self-test"
"""In place of a job: see whether the GPU computes."""

OTHER_VERSION = "other-version"
"""File in the pod's folder in which a job has said that the image is not of the launch's version."""

SOCKET = "preloaded"
"""Where the process listens, in the pod's folder."""

MODULES = (
    *("pytorch_lightning", "wandb.apis.public", "pandas", "wavespace.training.fit", "wavespace.build"),
    *("wavespace.training.callbacks.samples", "wavespace.reports.run_page", "wavespace_launcher.worker"),
)
"""What is imported once. None may touch CUDA, which does not outlive a fork; the pod's self-test would show it."""

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the client gets in place of its fork."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: have a signal when the parent dies."""

# --- The client -----------------------------------------------------------------------------------------------


def worker(arguments: Sequence[str]) -> None:
    """`wavespace worker …`, in a fork of the pod's preloaded process, or in this process where there is none."""
    code = None
    if folder := os.environ.get(FOLDER):
        code = hand_over(Path(folder), arguments)
        if code is None:
            print("no preloaded process answers: this job imports for itself", file=sys.stderr)
    if code is None:
        import_module("wavespace_launcher.worker").main(arguments)
    elif code < 0:  # who started us is to see the signal that ended the fork
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def hand_over(folder: Path, arguments: Sequence[str]) -> int | None:
    """Have a fork do the job; returns its exit code, negative for a signal, or None where none has begun."""
    request = {"arguments": list(arguments), "directory": os.getcwd(), "environment": dict(os.environ)}
    begun = ended = ""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:
        with _inside(folder):
            server.connect(SOCKET)
        socket.send_fds(server, [b"\n"], [0, 1, 2])
        server.sendall(json.dumps(request).encode() + b"\n")
        answers = server.makefile()
        if begun := answers.readline():
            for number in PASSED_ON:
                signal.signal(number, lambda number, _: _pass_on(number, int(begun)))
            ended = answers.readline()
    if not begun:
        return None
    return int(ended) if ended else 128 + signal.SIGTERM  # the server is gone, at which the fork saves itself


def _pass_on(number: int, process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(process, number)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Be in a folder: a socket's path has 107 characters at most."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# --- The server -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """`wavespace preloaded`: import, then fork for each request; each fork is a `wavespace worker …`.

    Who asks before it listens does not wait: W&B should hear of a job at once.
    """
    if FOLDER not in os.environ:
        raise UserError(
            "wavespace preloaded is started by a launch on its pods, where jobs are forks of it; not by hand"
        )
    for name in MODULES:
        import_module(name)
    gc.collect()
    gc.freeze()  # else the first collection of a fork copies all that it shares
    with socket.socket(socket.AF_UNIX) as listener:
        with _inside(Path(os.environ[FOLDER])):
            listener.bind(SOCKET)
        listener.listen()
        given = _serve(listener)
    _end(lambda: guarded(lambda: import_module("wavespace_launcher.worker").main(given)))


def _end(work: Callable[[], None]) -> NoReturn:
    """Work, then end as an interpreter does, without the ends of C libraries: some wait for threads no fork has."""
    code: Any = 0
    try:
        work()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(listener: socket.socket) -> list[str]:
    """Fork for each request, tell its client of the end, and end it with its client. Returns in forks only."""
    server = os.getpid()
    jobs: dict[int, socket.socket] = {}
    told, tells = socket.socketpair()
    tells.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(tells.fileno())
    while True:
        ready = select.select([listener, told, *jobs.values()], [], [])[0]
        if told in ready:
            told.recv(4096)
        for process, client in list(jobs.items()):
            if client in ready:  # it says nothing more, so it is dead, and was not asked
                os.kill(process, signal.SIGKILL)
            ended, status = os.waitpid(process, 0 if client in ready else os.WNOHANG)
            if ended:
                with contextlib.suppress(OSError), jobs.pop(process):
                    client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        if listener not in ready:
            continue
        client = listener.accept()[0]
        try:
            request, files = _request(client)
        except (OSError, ValueError):  # it ended before it had asked
            client.close()
            continue
        sys.stdout.flush()
        sys.stderr.flush()
        if process := os.fork():
            jobs[process] = client
            for file in files:
                os.close(file)
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for ours in (told, tells, *jobs.values()):
            ours.close()
        _become(request, files, server)
        with client:
            client.sendall(b"%d\n" % os.getpid())
        return list(request["arguments"])


def _request(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a client asks for, with its standard files."""
    client.settimeout(10)
    _, files, _, _ = socket.recv_fds(client, 1, 3)
    try:
        request = json.loads(client.makefile().readline())
    except (OSError, ValueError):
        for file in files:
            os.close(file)
        raise
    client.settimeout(None)
    return request, files


def _become(request: Mapping[str, Any], files: Sequence[int], server: int) -> None:
    """Be what the client would have been."""
    os.setpgid(0, 0)  # as the agent starts what it starts
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != server:
        os.kill(os.getpid(), signal.SIGTERM)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["directory"])
    os.environ.update(request["environment"])  # what imports have set stays
    sys.argv[1:] = ["worker", *request["arguments"]]

"""A pod's jobs as forks of a process that has imported already: to the agent they are the process that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from wavespace_launcher.pod_entry import PodEntry

SERVER = """
import sys, types
from wavespace_launcher import preloaded
preloaded.MODULES = ()
job = sys.modules["wavespace_launcher.worker"] = types.ModuleType("worker")
job.main = lambda arguments: exec(arguments[0], {})
preloaded.main([])
"""
"""The server with a job that does what its first argument says; a real one is in every launch of test_launch.py."""

WAIT = "import time; open('begun', 'w').write(str(__import__('os').getpid())); time.sleep(60)"


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    folder = tmp_path / ("long" * 30)  # a socket's path could not be as long
    folder.mkdir()
    return folder


@pytest.fixture
def server(pod: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"WAVESPACE_POD_FOLDER": str(pod), "PYTHONUNBUFFERED": ""}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment) as process:
        until((pod / "preloaded").exists)
        yield process
        process.kill()


def start(pod: Path, job: str, **environment: str) -> subprocess.Popen[str]:
    """The worker, as `wandb agent` starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "wavespace.cli", "worker", job],
        env=os.environ | {"WAVESPACE_POD_FOLDER": str(pod)} | environment,
        cwd=pod.parent,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )


def until(happens: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


def begun(pod: Path) -> int:
    """Process id of a fork that has begun to wait."""
    mark = pod.parent / "begun"
    until(lambda: mark.exists() and mark.read_text())
    return int(mark.read_text())


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("job", "code", "out", "err"),
    [
        ("print('done')", 0, "done", ""),
        ("raise SystemExit(143)", 143, "", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "", ""),
        ("1 / 0", 1, "", "ZeroDivisionError"),
        ("from wavespace.errors import BadInput; raise BadInput('no')", 2, "", "wavespace: no"),
        ("import atexit; atexit.register(print, 'tidy')", 0, "tidy", ""),
        ("import os; print(os.getcwd(), os.environ['WANDB_RUN_ID'])", 0, "{pod.parent} run-7", ""),
        ("import os; print(os.getpgid(0) == os.getpid() != os.getppid() == {server.pid})", 0, "True", ""),
    ],
)
def test_a_job_ends_as_its_fork_ends(
    job: str, code: int, out: str, err: str, pod: Path, server: subprocess.Popen[bytes]
) -> None:
    asked = start(pod, job.format(server=server), WANDB_RUN_ID="run-7")
    said = asked.communicate(timeout=30)
    assert asked.returncode == code
    assert said[0].strip() == out.format(pod=pod)
    assert err in said[1] if err else not said[1]
    assert server.poll() is None


def test_a_signal_reaches_the_fork(pod: Path, server: subprocess.Popen[bytes]) -> None:
    job = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143))); {WAIT}"
    asked = start(pod, job)
    begun(pod)
    asked.terminate()
    assert asked.communicate(timeout=30) == ("saved\n", "")
    assert asked.returncode == 143


def test_a_fork_dies_with_its_client(pod: Path, server: subprocess.Popen[bytes]) -> None:
    with start(pod, WAIT) as asked:
        fork = begun(pod)
        asked.kill()
        until(lambda: not lives(fork))
    with start(pod, "print('next')") as following:
        assert following.communicate(timeout=30) == ("next\n", "")


def test_two_jobs_at_a_time_do_not_wait_for_each_other(pod: Path, server: subprocess.Popen[bytes]) -> None:
    with start(pod, WAIT) as first, start(pod, "print('second')") as second:
        fork = begun(pod)
        assert second.communicate(timeout=30) == ("second\n", "")
        assert lives(fork)
        first.kill()


def test_jobs_save_themselves_where_the_server_dies(pod: Path, server: subprocess.Popen[bytes]) -> None:
    job = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143))); {WAIT}"
    asked = start(pod, job)
    begun(pod)
    server.kill()
    assert asked.communicate(timeout=30)[0] == "saved\n"
    assert asked.returncode == 143


@pytest.mark.parametrize("there", [False, True])
def test_without_a_server_a_worker_does_its_job_itself(there: bool, pod: Path, request: pytest.FixtureRequest) -> None:
    if there:  # its socket is
        server = request.getfixturevalue("server")
        server.kill()
        server.wait()
    asked = start(pod, "not a job")
    assert "wavespace: wavespace worker is started by" in asked.communicate(timeout=60)[1]
    assert asked.returncode == 2


def test_a_gpu_is_tested_in_a_fork_and_where_that_fails_without_one(
    pod: Path, server: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    entry = PodEntry("launch", "pod", "us/project", until=0, idle=0, stay=False)
    entry.folder, entry.preloaded = pod, server
    assert entry._self_test() == "NameError: name 'self' is not defined"  # what this server makes of `self-test`
    assert server.poll() is None
    fault = entry._self_test(alone=True)
    assert server.poll() == -signal.SIGKILL
    assert (fault is None) == torch.cuda.is_available()
    assert "NameError" not in str(fault)

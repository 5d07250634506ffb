"""`hydra/launcher=local`: a multirun as processes on this machine, each an ordinary `wavespace train`.

All state is in the run folders, so the same command continues after it was interrupted or killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from wavespace.config import command_line
from wavespace.config.own_code import code_of
from wavespace.files import is_locked
from wavespace.inputs import inputs_read_once
from wavespace.launchfile import JobResult
from wavespace.runfolder import RunFolder
from wavespace.signals import STOP_EXITS, set_stop_handler
from wavespace_launcher.launch import Member, compose_members, interruptible, job_returns
from wavespace_launcher.plan import LocalSettings, read_settings
from wavespace_launcher.status import Board, is_number, table

SAVING = 60.0
"""Seconds that interrupted runs have to write their checkpoints."""

LOOK = 0.2
"""Seconds between looks at the processes."""


class LocalSession:
    """One multirun's processes."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        given: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        settings = read_settings(LocalSettings, given)
        self.devices = _devices()
        self.processes = settings.processes or len(self.devices) or 2
        self.raise_on_failure = settings.raise_on_failure

    def launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run a batch of override-sets to their ends, `processes` at a time."""
        of = compose_members(self.config, overrides, first)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)  # a sweeper's results go there
        board = Board(f"{self.config.name} on this machine")
        with inputs_read_once():
            jobs = [LocalJob(member, command_line(self.config.hydra)[1]) for member in of]
        with interruptible():
            try:
                while self._start(jobs):
                    board([job.result() for job in jobs])
                    time.sleep(LOOK)
                    for job in jobs:
                        job.look()
                board([job.result() for job in jobs])
            except KeyboardInterrupt:
                _end(jobs, board)
                raise
            finally:
                board.close()
                board.console.print(table([job.result() for job in jobs], None))
        return job_returns([job.result() for job in jobs], of, self.raise_on_failure)

    def _start(self, jobs: Sequence[LocalJob]) -> bool:
        """Start jobs in free places; return whether any job has not ended.

        Two override-sets of one configuration are one run, so they take turns.
        """
        for job in jobs:
            running = [job for job in jobs if job.running]
            free = set(range(self.processes)) - {job.place for job in running}
            if len({job.folder.path for job in jobs if job.running or job.elsewhere}) >= self.processes:
                break
            if job.waiting and job.folder.path not in {other.folder.path for other in running}:
                job.start(min(free), self._environment(min(free)))
        return not all(job.ended for job in jobs)

    def _environment(self, place: int) -> dict[str, str]:
        threads = max(1, (os.cpu_count() or 1) // self.processes)
        own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        if self.devices:
            own["CUDA_VISIBLE_DEVICES"] = self.devices[place % len(self.devices)]
        return own


class LocalJob:
    """An override-set, its run folder, and its process while it has one.

    Attributes:
        code: the exit code of its process; None while it runs.
        elsewhere: another process trains it, as one that an earlier, killed command left behind.
    """

    def __init__(self, member: Member, config_dir: str | None) -> None:
        self.member, self.config_dir = member, config_dir
        self.folder = RunFolder.of(member.config)
        self.process: subprocess.Popen[bytes] | None = None
        self.code: int | None = None
        self.place = -1
        self.fresh = bool(member.config.fresh)
        self.elsewhere = False
        self.look()

    def look(self) -> None:
        """Update `code` and `elsewhere`."""
        if self.process is None:
            self.elsewhere = self.folder.status().get("state") == "running" and _locked(self.folder)
        elif self.code is None:
            self.code = self.process.poll()
            if self.code == 0 and self.folder.status().get("state") != "finished":
                code_of.cache_clear()  # what it has read was changed before it began
                self.folder = RunFolder.of(self.member.config)
            if self.code and _locked(self.folder):  # another was quicker to take the folder
                self.process, self.code, self.elsewhere = None, None, True

    @property
    def waiting(self) -> bool:
        """Not started, and not done before."""
        return self.process is None and not self.elsewhere and not self.ended

    @property
    def running(self) -> bool:
        """Has a living process."""
        return self.process is not None and self.code is None

    @property
    def ended(self) -> bool:
        """Its process has ended, or its result was there before."""
        if self.process is not None:
            return self.code is not None
        return not self.fresh and self.folder.status().get("state") == "finished"

    def start(self, place: int, environment: Mapping[str, str]) -> None:
        """Start training."""
        command = [sys.executable, "-m", "wavespace.cli", "train", *self.member.job.overrides]
        if self.config_dir:
            command += ["--config-dir", self.config_dir]
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with (self.folder.path / "output.log").open("ab") as log, _signals_noted():
            # In a session of its own: Ctrl-C reaches this process alone, which lets training save itself.
            self.process = subprocess.Popen(
                command,
                env=os.environ | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.place = place

    def result(self) -> JobResult:
        """Return its state, by its process and its run folder."""
        status = self.folder.status()
        state, reason = str(status.get("state", "")), status.get("reason")
        if self.running or self.elsewhere:
            state = "running"
        elif not self.ended:
            state = "queued"
        elif self.code in (*STOP_EXITS, -signal.SIGTERM) or (self.code == -signal.SIGKILL and state == "preempted"):
            state = "preempted"
        elif self.code and state != "diverged":
            state, reason = "failed", reason or _last_line(self.folder.path / "output.log")
        metrics = {key: float(value) for key, value in status.get("metrics", {}).items() if is_number(value)}
        return JobResult(
            index=self.member.job.index,
            overrides=self.member.job.overrides,
            state=state,
            run=str(self.folder.path),
            minutes=status.get("minutes", 0.0),
            monitor=status.get("monitor"),
            value=metrics.get(str(status.get("monitor"))),
            mode=status.get("mode"),
            reason=reason if state in ("failed", "diverged") else None,
            metrics=metrics,
        )


@contextmanager
def _signals_noted() -> Iterator[None]:
    """Raise signals again after the block: one that interrupts a start would leave a process that nothing ends."""
    noted: list[int] = []
    before = set_stop_handler(lambda number, _: noted.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        signal.raise_signal(noted[0])


def _end(jobs: Sequence[LocalJob], board: Board) -> None:
    """Send SIGTERM to each process and wait while it saves; a second Ctrl-C, or a timeout, kills."""
    living = [job.process for job in jobs if job.process is not None and job.running]
    try:
        for process in living:
            process.send_signal(signal.SIGTERM)
        board.say("interrupted: runs save what they have; the same command resumes")
        until = time.monotonic() + SAVING
        for process in living:
            process.wait(max(until - time.monotonic(), 0.1))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        set_stop_handler(signal.SIG_IGN)  # a third Ctrl-C would leave some of them
        for process in living:
            process.kill()
        for process in living:
            process.wait()
        for job in jobs:  # what was killed could not say so
            if job.process in living and job.folder.status().get("state") == "running":
                job.folder.update(state="preempted")
    for job in jobs:
        job.look()


def _locked(folder: RunFolder) -> bool:
    """Return whether a process holds the lock of `RunFolder.writing`."""
    path = folder.path / ".lock"
    return path.is_file() and is_locked(path)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _devices() -> list[str]:
    """Return this machine's GPUs, by number or as CUDA_VISIBLE_DEVICES names them, without importing torch."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip() and name != "-1"]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]

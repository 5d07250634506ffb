"""The start command of a pod: a self-test, `wandb agent` on the launch's sweeps, timers, and the end of the pod.

Runpod restarts and bills a start command that has ended (runpodctl #149), so this one ends the pod, and never itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from wavespace.terminal import Arguments
from wavespace_launcher.ledger import redacted
from wavespace_launcher.plan import OTHER_VERSION, POD_FOLDER
from wavespace_launcher.runpod_client import NoResponse, Rejected, Runpod
from wavespace_launcher.wandb_client import Wandb, WandbSweep

SAVING = 60
"""Seconds that training has to save itself before its pod ends."""

LOOK = 5.0
"""Seconds between checks of the agent."""

SELF_TEST = """
import torch
x = torch.ones(64, 64, device="cuda")
assert (x @ x)[0, 0].item() == 64, "a product of 64 ones is not 64"
"""

SELF_TEST_SECONDS = 300.0
"""Seconds that the GPU's self-test may take."""


def main(arguments: Sequence[str]) -> NoReturn:
    """Work until there is nothing left to do, then end the pod."""
    parser = Arguments(prog="wavespace pod-entry", description="The start command of a launch's pod.")
    parser.add_argument("launch")
    parser.add_argument("--name", required=True, help="the pod's name")
    parser.add_argument("--path", required=True, help="entity/project at W&B")
    parser.add_argument("--until", type=float, required=True, help="when Runpod ends the pod, in seconds since 1970")
    parser.add_argument("--idle", type=float, required=True, help="minutes without a job after which the pod ends")
    parser.add_argument("--stay", action="store_true", help="more sweeps may come when all is done")
    given = parser.parse_args(arguments)
    pod = PodEntry(given.launch, given.name, given.path, given.until, given.idle * 60, given.stay)
    signal.signal(signal.SIGTERM, pod.stop)
    pod.run()


class PodEntry:
    """Works on a launch's sweeps until nothing is left to do.

    Args:
        launch: whose sweeps it works on, oldest first.
        name: the pod's.
        path: `entity/project` at W&B.
        until: when Runpod ends it; it ends itself a little earlier, with its training saved.
        idle: seconds without a job after which it ends.
        stay: whether it waits for more sweeps when all are done.
    """

    def __init__(self, launch: str, name: str, path: str, until: float, idle: float, stay: bool) -> None:
        self.launch, self.name, self.path, self.until, self.idle, self.stay = launch, name, path, until, idle, stay
        self.id = os.environ.get("RUNPOD_POD_ID", "")
        self.folder = Path(tempfile.gettempdir()) / f"wavespace-{self.id or name}"
        self.done = self.folder / "done"
        self.agent: subprocess.Popen[bytes] | None = None
        self.sweeps: list[WandbSweep] = []
        self.stopped = False
        self.last_work = time.time()

    def run(self) -> NoReturn:
        """Work, then end."""
        if not self.done.exists():  # else the container was started again after its end
            self.folder.mkdir(parents=True, exist_ok=True)
            reason: str | None = "the pod's entry failed"
            try:
                reason = self._work()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            finally:
                self._end_agent()
                self.done.write_text(reason or "")
            if reason:
                print(f"ending: {reason}", flush=True)
                self._report(reason)
        self.terminate()

    def stop(self, *_: object) -> None:
        """Handle SIGTERM: training saves itself, then the pod ends."""
        self.stopped = True

    # --- Work ------------------------------------------------------------------------------------------------

    def _work(self) -> str | None:
        """Run agents until there is nothing to do; return what was wrong, if anything was."""
        if fault := self._self_test():
            return f"the GPU does not work: {fault}"
        wandb = Wandb(*self.path.split("/"))
        failures = 0
        while (why := self._over()) is None:
            if (refused := self.folder / OTHER_VERSION).exists():
                return refused.read_text()
            try:
                sweep = self._open_sweep(wandb)
                if sweep is None and not self.stay and self._all_done(wandb):
                    return None
            except NoResponse as error:
                print(error, flush=True)
                sweep = None
            if sweep is None:
                time.sleep(3 * LOOK)
            elif not self._run_agent(sweep):
                failures = 0
            elif (failures := failures + 1) == 3:
                return "three agents in a row failed"
            else:
                time.sleep(LOOK)
        print(f"ending: {why}", flush=True)
        return None

    def _open_sweep(self, wandb: Wandb) -> WandbSweep | None:
        """Return the launch's oldest open sweep; known ones are asked first, as a list takes a request for each."""
        for known in self.sweeps:
            if (found := wandb.sweep(known.id)) and found.open:
                return found
        self.sweeps = wandb.sweeps(self.launch)
        return next((sweep for sweep in self.sweeps if sweep.open), None)

    def _all_done(self, wandb: Wandb) -> bool:
        """Return whether every run of every sweep has finished, so that no further sweep is expected."""
        runs = [run for sweep in self.sweeps for run in wandb.runs(sweep.id)]
        return bool(runs) and all(run.stored or run.duplicate for run in runs)

    def _run_agent(self, sweep: WandbSweep) -> bool:
        """Run an agent on a sweep until it ends; return whether it failed."""
        self.agent = self._start_agent(sweep)
        refused = self.folder / OTHER_VERSION
        while self.agent.poll() is None and self._over() is None and not refused.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.agent.wait(LOOK)
        self._end_agent()
        code, self.agent = self.agent.returncode, None
        return code not in (0, -signal.SIGTERM)

    def _start_agent(self, sweep: WandbSweep) -> subprocess.Popen[bytes]:
        options = ["--forward-signals", "--term-timeout", str(SAVING), "--max-consecutive-failed-runs", "3"]
        command = [sys.executable, "-m", "wandb", "agent", *options, f"{self.path}/{sweep.id}"]
        # The sweep's `${interpreter}` is the python of PATH: let it be ours.
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        env = os.environ | {POD_FOLDER: str(self.folder), "WAVESPACE_POD_NAME": self.name, "PATH": search}
        with (self.folder / "agent.log").open("ab") as log:
            return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)

    def _self_test(self) -> str | None:
        """Return what is wrong with this container's GPU; None where it computes, or there is none.

        A driver older than the image's CUDA shows itself here, at once, and not in 500 failed runs (wandb #5088).
        """
        visible = os.environ.get("NVIDIA_VISIBLE_DEVICES", "void") not in ("void", "none", "")
        if not visible and not Path("/dev/nvidiactl").exists():
            return None
        try:
            done = subprocess.run(
                [sys.executable, "-c", SELF_TEST], capture_output=True, text=True, timeout=SELF_TEST_SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"a small product took more than {SELF_TEST_SECONDS / 60:g} minutes"
        return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]

    def _over(self) -> str | None:
        """Return why the pod's time is over, if it is."""
        now = time.time()
        if self._busy():
            self.last_work = now
        if self.stopped:
            return "stopped by SIGTERM"
        if now > self.until - min(2 * SAVING, 0.1 * self.idle + SAVING):
            return "its time is over"
        if now - self.last_work > self.idle:
            return f"no job for {self.idle / 60:g} minutes"
        return None

    def _busy(self) -> bool:
        """Return whether a worker runs."""
        try:
            os.kill(int((self.folder / "busy").read_text()), 0)
        except (OSError, ValueError):
            return False
        return True

    def _end_agent(self) -> None:
        """Send SIGTERM to the agent, which forwards it to its worker, and wait while that saves itself."""
        if self.agent is None or self.agent.poll() is not None:
            return
        self.agent.terminate()
        try:
            self.agent.wait(SAVING + 5)
        except subprocess.TimeoutExpired:
            self.agent.kill()

    # --- End -------------------------------------------------------------------------------------------------

    def _report(self, reason: str) -> None:
        """Log the reason and the agent's last lines at W&B."""
        with contextlib.suppress(Exception):
            import wandb

            entity, project = self.path.split("/")
            about = {"launch": self.launch, "pod": self.id, "pod_name": self.name}
            run = wandb.init(entity=entity, project=project, job_type="pod", name=self.name, config=about)
            run.summary["reason"] = redacted(reason)
            log = self.folder / "agent.log"
            if log.is_file():
                print(redacted("\n".join(log.read_text(errors="replace").splitlines()[-50:])))
            run.finish(exit_code=1)

    def terminate(self) -> NoReturn:
        """End the pod, as often as it takes."""
        wait = 1.0
        while True:
            try:
                if self.id:
                    Runpod().terminate(self.id)
                    print("asked Runpod to end this pod", flush=True)
            except (NoResponse, Rejected, ValueError) as error:
                print(f"can't end this pod yet: {error}", flush=True)
            time.sleep(wait)
            wait = min(2 * wait, 60.0)

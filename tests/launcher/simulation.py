"""A launch in virtual time: the controller and its clients are real, over HTTP; pods, agents and jobs are simulated.

What a pod does here is what `wavespace_launcher.pod_entry` and `worker` do, and `wandb agent` between them; tests with
real processes hold those. An hour of a launch takes a second or two.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from standins.runpod_server import GpuType, Pod, RunpodCore, RunpodServer
from standins.wandb_server import WandbCore, WandbServer
from wavespace.launchfile import Job, JobResult
from wavespace_launcher.controller import Controller
from wavespace_launcher.ledger import Launch
from wavespace_launcher.plan import Plan, RunpodSettings
from wavespace_launcher.runpod_client import Runpod
from wavespace_launcher.wandb_client import DUPLICATE, REFUSED, Wandb, WandbRun, competing_run

STEP = 5.0
"""Virtual seconds between the moves of the simulated world."""


class Killed(BaseException):
    """The controller's process is gone, as by `kill -9`: nothing of it runs any more, not even a `finally`."""


@dataclass
class World:
    """Time, and what moves with it."""

    now: float = 1_800_000_000.0
    moves: list[Callable[[], None]] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + STEP, until)
            for move in list(self.moves):
                move()


@dataclass
class Chances:
    """Probabilities, an hour for a pod or once for a job; jobs that always fail, or that another version refuses."""

    host_lost: float = 0.0
    spot: float = 0.0
    agent_killed: float = 0.0
    job_fails: float = 0.0
    always_fails: frozenset[int] = frozenset()
    refuses: frozenset[int] = frozenset()


class SimulatedPod:
    """A container: entry, agent and worker in one small state machine."""

    def __init__(self, cloud: SimulatedCloud, pod: Pod) -> None:
        self.cloud, self.pod, self.rng = cloud, pod, cloud.rng
        words = pod.args.split()
        self.launch, self.until = words[2], float(words[words.index("--until") + 1])
        self.idle = float(words[words.index("--idle") + 1]) * 60
        self.stay = "--stay" in words
        self.running, self.killed = True, False
        self.began = self.worked = cloud.world.now
        self.agent: str | None = None
        self.sweep: str | None = None
        self.run: str | None = None
        self.resumed = self.initialized = False
        self.run_since = self.ends = 0.0

    def alive(self) -> bool:
        return self.running

    def terminate(self) -> None:
        """SIGTERM: training is saved and the run marked, then the container ends."""
        if self.run and self.initialized:
            self.cloud.stream(self.run, exit_code=143, preempting=True, complete=True)
        self.run, self.running = None, False

    def kill(self) -> None:
        self.run, self.running = None, False

    def move(self) -> None:
        """Five seconds of a pod's life."""
        now, chances = self.cloud.world.now, self.cloud.chances
        if not self.running or self.pod.gone is not None or self.pod.up is None:
            return
        hour = STEP / 3600
        if self.rng.random() < chances.host_lost * hour:
            self.cloud.core.lose(self.pod)
        elif self.rng.random() < chances.spot * hour:
            self.cloud.core.spot_stop(self.pod)
        elif self.rng.random() < chances.agent_killed * hour:
            self.agent = self.run = None  # a worker goes with its agent, silently
        elif now > self.until - 120 or now - self.worked > self.idle:
            self.terminate()
            self.cloud.core.terminate(self.pod.id)
        elif self.run:
            self._work(now)
        elif now - self.began > 10:
            self._ask()

    def _ask(self) -> None:
        wandb = self.cloud.wandb.core
        sweeps = sorted(wandb.sweeps.values(), key=lambda sweep: sweep.created_at)
        ours = [sweep for sweep in sweeps if str(sweep.config.get("name")).rsplit("-", 1)[0] == self.launch]
        if self.agent is None:
            going = [sweep for sweep in ours if sweep.state in ("RUNNING", "PENDING")]
            if going:
                self.sweep, self.agent = going[0].id, wandb.create_agent(going[0].id)
            elif not self.stay and self._all_done([id for sweep in ours for id in sweep.runs]):
                self.cloud.core.terminate(self.pod.id)
            return
        for command in wandb.heartbeat(self.agent, {}):
            if command["type"] == "exit":
                self.agent = None
            elif command["type"] in ("run", "resume"):
                self.run, self.resumed = command["run_id"], command["type"] == "resume"
                self.run_since, self.initialized = self.cloud.world.now, False
                given = {name: parameter["value"] for name, parameter in command["args"].items()}
                self.job, self.drawn = str(given.pop("job")), given
                del self.drawn["launch"]

    def _all_done(self, ids: Sequence[str]) -> bool:
        runs = [self.cloud.run(id) for id in ids]
        return bool(runs) and all(run.stored or run.duplicate for run in runs)

    def _work(self, now: float) -> None:
        assert self.run is not None
        assert self.agent is not None
        wandb, self.worked = self.cloud.wandb.core, now
        wandb.heartbeat(self.agent, {self.run: True})
        if not self.initialized:
            if now - self.run_since < 6:
                return
            config = wandb.runs[self.run].config | {"pod": self.pod.id, "pod_name": self.pod.name}
            config |= {"pod_price": self.pod.price}
            wandb.upsert_run(*self.cloud.path, self.run, config=config)
            found = [self.cloud.run(run.id) for run in wandb.find_runs(*self.cloud.path, {"config.job": self.job})]
            if not self.drawn and competing_run(self.run, found, resumed=self.resumed, now=now):
                wandb.upsert_run(*self.cloud.path, self.run, tags=[DUPLICATE])
                self._end(0)
                return
            self.initialized, self.ends = True, now + self.cloud.job_seconds
        index = Job.parse(self.job).index
        if index in self.cloud.chances.refuses:
            self._end(1, {"outcome": REFUSED, "reason": "this image is another"})
            self.cloud.core.terminate(self.pod.id)
            return
        if now < self.ends:
            wandb.touch(*self.cloud.path, self.run)
        elif index in self.cloud.chances.always_fails or self.rng.random() < self.cloud.chances.job_fails:
            self._end(1, {"reason": "it failed"})
        else:
            self.cloud.finished.append((now, self.job))
            figure = self.cloud.figure(Job.parse(self.job), self.drawn)
            self._end(0, {"outcome": "finished", "val/figure": figure, "monitor": "val/figure", "mode": "max"})

    def _end(self, code: int, summary: dict[str, Any] | None = None) -> None:
        assert self.run is not None
        self.cloud.stream(self.run, exit_code=code, summary=summary or {}, complete=True)
        self.run = None


class SimulatedCloud:
    """Both services over HTTP, on one virtual clock.

    Attributes:
        finished: (time, job) whenever a job was done, however often.
        figure: what comes out of a job with the parameters that W&B has drawn for it.
    """

    def __init__(
        self, folder: Path, *, seed: int = 0, job_seconds: float = 60.0, chances: Chances | None = None
    ) -> None:
        self.folder, self.job_seconds, self.chances = folder, job_seconds, chances or Chances()
        self.rng = random.Random(seed)
        self.world = World()
        self.path = ("tester", "wavespace")
        gpus = [GpuType("A", 16, 0.5, 0.3, 0.25, 0.15, boot_seconds=20), GpuType("B", 24, 1.0, 0.8, 0.5, 0.4)]
        self.core = RunpodCore(self._start, self.world.time, gpus=gpus, keys=["account-key-of-a-test"])
        self.core.balance = 1e6
        self.wandb = WandbServer(WandbCore(clock=self.world.time, seed=seed))
        self.runpod = RunpodServer(self.core, seed=seed, tick=3600)
        self.finished: list[tuple[float, str]] = []
        self.figure: Callable[[Job, dict[str, Any]], float] = lambda job, drawn: float(job.index)
        self.world.moves.append(self.core.tick)

    def _start(self, pod: Pod) -> SimulatedPod:
        simulated = SimulatedPod(self, pod)
        self.world.moves.append(simulated.move)
        return simulated

    def stream(self, id: str, **facts: Any) -> None:
        """What a run sends."""
        summary = facts.pop("summary", None)
        run = self.wandb.core.runs[id]
        if summary is not None:
            summary = {"_runtime": self.world.now - run.created_at} | summary
        self.wandb.core.stream(*self.path, id, summary=summary, **facts)

    def run(self, id: str) -> WandbRun:
        """A run as the launcher sees it."""
        run = self.wandb.core.runs[id]
        job = run.config.get("job")
        return WandbRun(
            id, "", run.state, run.sweep or "", job, run.created_at, run.heartbeat_at, DUPLICATE in run.tags,
            run.config.get("pod"), summary=run.summary,
        )  # fmt: skip

    def settings(self, **given: Any) -> RunpodSettings:
        """Of a launch here."""
        basis = {"max_cost": 20.0, "image": "us/image:1", "gpus": ["A", "B"], "max_pods": 3, "max_hours": 2.0}
        return RunpodSettings.of(basis | {"entity": "tester"} | given)

    def launch(self, jobs: int, name: str = "290101-000000-01234567", **settings: Any) -> Launch:
        """A new launch of so many jobs."""
        plan = Plan(
            id=name,
            study="study",
            jobs=tuple(Job(i, f"{i:012x}", (f"seed={i}",)) for i in range(jobs)),
            settings=self.settings(**settings),
        )
        return Launch.create(self.folder, plan, self.world.time)

    def controller(self, launch: Launch, killed_after: int | None = None) -> Controller:
        """A controller, whose process dies before its n-th line in the ledger or request after it."""
        runpod, wandb = Runpod(), Wandb("tester", "wavespace")
        controller = Controller(launch, runpod, wandb, self.world)
        if killed_after is not None:
            mortal = Mortality(killed_after)
            asked = [
                (launch, ["write"]),
                (runpod, ["list", "create", "terminate", "stop"]),
                (wandb, ["sweeps", "sweep", "runs", "create", "close"]),
            ]
            for thing, names in asked:
                for method in names:
                    setattr(thing, method, mortal.guard(getattr(thing, method), counts=method in ("write", "create")))
        return controller


class Mortality:
    """Counts what a process does, and ends it: at each call before or after the deed, by turns."""

    def __init__(self, deeds: int) -> None:
        self.left, self.after = deeds // 2, bool(deeds % 2)

    def guard(self, method: Callable[..., Any], *, counts: bool) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.left < 0:
                raise Killed
            if counts:
                self.left -= 1
                if self.left < 0 and not self.after:
                    raise Killed
            answer = method(*args, **kwargs)
            if self.left < 0:
                raise Killed
            return answer

        return guarded


@contextmanager
def simulated(folder: Path, **facts: Any) -> Iterator[SimulatedCloud]:
    """A cloud, with this process's clients pointed at it."""
    cloud = SimulatedCloud(folder, **facts)
    with pytest.MonkeyPatch.context() as patch, cloud.wandb, cloud.runpod:
        for name, value in (cloud.runpod.env | cloud.wandb.env).items():
            patch.setenv(name, value)
        for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR"):
            patch.setenv(name, str(folder))
        patch.delenv("RUNPOD_SECRET", raising=False)
        yield cloud
        import wandb

        wandb.teardown()  # its service knows the address of this cloud


def finish(cloud: SimulatedCloud, controller: Controller) -> list[JobResult]:
    """Run a controller to its end, at most a virtual day."""
    cloud.world.moves.append(Deadline(cloud.world))
    return controller.run()


class Deadline:
    """A launch that takes a day will not end."""

    def __init__(self, world: World) -> None:
        self.world, self.until = world, world.now + 86400

    def __call__(self) -> None:
        assert self.world.now < self.until, "the launch does not end"

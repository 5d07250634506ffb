"""Searches: those that W&B draws, and Optuna's, on this machine and on pods."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import OmegaConf

from launcher.pretend import in_place_of_python
from launcher.simulation import Killed, SimulatedCloud, simulated
from processes import forked
from training import RENDERED, TRAINER
from wavespace.build import check_shapes
from wavespace.commands import train
from wavespace.config import choices, compose
from wavespace.config.construction import make
from wavespace.errors import ConfigError
from wavespace.launchfile import Job
from wavespace.training import run as training_run
from wavespace.training.multirun import set_direction
from wavespace_launcher import launch, worker
from wavespace_launcher.controller import Controller
from wavespace_launcher.launch import Member, read_search
from wavespace_launcher.ledger import Launch


def without_optuna() -> str:
    """Why a sweep by Optuna can't be tested here; "" where it can."""
    try:
        installed = version("hydra-optuna-sweeper")
    except PackageNotFoundError:
        return "needs Optuna: pip install wavespace[optuna]"
    if installed.startswith("1.4") and version("hydra-core").startswith("1.3"):
        return f"hydra-optuna-sweeper {installed} needs Hydra 1.4"
    return ""


needs_optuna = pytest.mark.skipif(bool(without_optuna()), reason=without_optuna())
PODS = [
    *("hydra/launcher=runpod", "hydra.launcher.image=us/image:1", "hydra.launcher.max_cost=20"),
    *("hydra.launcher.gpus=[A,B]", "hydra.launcher.entity=tester", "hydra.launcher.max_pods=2"),
]


def searches() -> list[str]:
    return [name for name in choices("sweep") if compose([f"sweep={name}"]).search is not None]


def member(*overrides: str) -> Member:
    cfg = compose(overrides)
    return Member(Job(0, "0" * 12, overrides), cfg, cfg)


def test_there_is_a_search_of_each_kind() -> None:
    assert {compose([f"sweep={name}"]).search.method for name in searches()} == {"bayes", "random", "grid"}


@pytest.mark.parametrize("name", searches())
def test_a_shipped_search_fits_its_experiment(name: str) -> None:
    of = member(f"sweep={name}")
    assert of.config.name != "run", "it names no experiment"
    check_shapes(of.config, make(of.config.data, "data").spec)
    search = read_search(of)  # each value, and the ends of each range, compose
    task = get_class(of.config.task._target_)
    assert search["metric"] == {"name": task.monitor, "goal": {"min": "minimize", "max": "maximize"}[task.mode]}
    if search["method"] == "grid":
        assert search["run_cap"] == math.prod(len(space["values"]) for space in search["parameters"].values())


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"optim.rate": {"min": 0.0, "max": 1.0}}, "optim.rate=0.0: there is no key 'optim.rate'"),
        ({"model.width": {"values": [16, "wide"]}}, "model.width = wide"),
        ({"model.width": {"distribution": "uniform", "min": 1, "max": 1.5}}, "model.width = 1.5"),
        (
            {"optim.lr": {"distribution": "uniform"}},
            "search.parameters.optim.lr has neither value, values, min and max",
        ),
    ],
)
def test_a_parameter_that_does_not_fit_is_told_before_anything_is_rented(parameters: dict, fault: str) -> None:
    cfg = compose(["sweep=salience_lr"])
    cfg.search.parameters = parameters
    with pytest.raises(ConfigError, match=re.escape(fault)):
        read_search(Member(Job(0, "", ("sweep=salience_lr",)), cfg, cfg))


def test_a_worker_trains_with_what_was_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_run, "train", done.append)
    monkeypatch.setattr(worker, "work", lambda job, text, launch, drawn: done.append((job, launch, drawn)) or 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    text = Job(0, "0" * 12, ("sweep=piano_roll", "seed=3")).text
    with pytest.raises(SystemExit):
        worker.main([f"job={text}", "launch=l", "optim.lr=3e-05", "patience=None", "data.midi=None", "compile=False"])
    job, of, drawn = done.pop()
    assert (of, drawn) == ("l", ["optim.lr=3e-05", "patience=null", "data.midi=null", "compile=False"])

    run = SimpleNamespace(config={}, name="", resumed=False)
    monkeypatch.setattr(worker, "_restore", lambda *_: None)
    monkeypatch.setattr(worker, "_store", lambda *_: None)
    run.config = SimpleNamespace(update=lambda *_, **__: None)
    said = worker._train(run, job, drawn)
    (cfg,) = done
    assert (cfg.optim.lr, cfg.patience, cfg.data.midi, cfg.compile, cfg.seed) == (3e-5, None, None, False, 3)
    assert cfg.logger["_target_"].endswith("WandbLogger")
    assert {"monitor", "mode", "step"} <= said.keys()
    assert "optim.lr=3e-05" in run.name

    for resumed in (False, True):  # to start over is said of runs before this one
        run.resumed = resumed
        worker._train(run, job, ["fresh=true"])
        assert done.pop().fresh is not resumed


# --- On pods, in virtual time --------------------------------------------------------------------------------


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedCloud]:
    """A simulated cloud whose clock is the launcher's."""
    with simulated(tmp_path) as cloud:

        class Here(Launch):
            def __init__(self, folder: Path, now: Callable[[], float] = cloud.world.time) -> None:
                super().__init__(folder, cloud.world.time)

        monkeypatch.setattr(launch, "Launch", Here)
        monkeypatch.setattr(launch, "Controller", lambda *given: Controller(*given, cloud.world))
        monkeypatch.chdir(tmp_path)
        yield cloud


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """`wavespace train -m …` in this process, and what it does at its end, unless it is killed."""
    ends: list[Callable[[], None]] = []
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(launch, "atexit", SimpleNamespace(register=ends.append))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    try:
        train.main(["-m", *words])
    except Killed:
        ends[0].__self__.held.close()  # type: ignore[attr-defined]  # a lock goes with its process
        raise
    else:
        for end in reversed(ends):
            end()
    finally:
        HydraConfig.instance().cfg = None
        signal.signal(signal.SIGTERM, before)


def events(cloud: SimulatedCloud) -> list[dict[str, Any]]:
    (path,) = (cloud.folder / "runs" / "launches").glob("*/ledger.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_search_draws_its_runs_and_ends(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.figure = lambda job, drawn: -abs(math.log(drawn["optim.lr"] / 3e-3))
    command(monkeypatch, *PODS, "sweep=salience_lr", "search.run_cap=5", "search.metric.name=val/figure")
    (path,) = (cloud.folder / "runs" / "launches").glob("*/results.json")
    jobs = json.loads(path.read_text())["jobs"]
    assert [job["state"] for job in jobs] == ["finished"] * 5
    rates = [float(job["overrides"][0].removeprefix("optim.lr=")) for job in jobs]
    assert len({*rates}) == 5
    assert all(3e-4 <= rate <= 3e-2 for rate in rates)
    best = max(jobs, key=lambda job: job["value"])
    assert f"5/5 done, 0 running, 0 waiting, 0 failed, best {best['value']:.4g}" in capsys.readouterr().out
    assert len(cloud.finished) == 5
    assert cloud.core.live() == []
    assert cloud.core.most_live == 2
    assert [sweep.state for sweep in cloud.wandb.core.sweeps.values()] == ["FINISHED"]
    assert cloud.wandb.drift == [] == cloud.runpod.drift


@needs_optuna
def test_optuna_keeps_its_pods_warm_from_batch_to_batch_and_ends_them_though_the_command_was_killed(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figure(job: Job, drawn: dict[str, Any]) -> float:
        rate = next(text for text in job.overrides if text.startswith("optim.lr="))
        return -abs(math.log(float(rate.partition("=")[2]) / 3e-3))

    cloud.figure = figure
    words = [*PODS, "experiment=synthetic_salience", "sweep=optuna_lr"]
    words += ["hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2"]
    with monkeypatch.context() as patch:
        patch.setattr(launch, "Controller", lambda of, *_: cloud.controller(of, killed_after=22))
        with pytest.raises(Killed):
            command(monkeypatch, *words)
    assert 0 < len(cloud.finished) < 6
    assert len(cloud.core.live()) == 2
    command(monkeypatch, *words)
    assert sorted(job.partition("|")[0] for _, job in cloud.finished) == list("012345")
    assert len(cloud.core.created) == 2, "a batch rented anew"
    assert cloud.core.live() == []
    assert [event["why"] for event in events(cloud) if event["kind"] == "drain"] == ["the command ended"]
    assert {sweep.state for sweep in cloud.wandb.core.sweeps.values()} == {"FINISHED"}
    found = OmegaConf.load(cloud.folder / "runs" / "synthetic_salience" / "optimization_results.yaml")
    values = [figure(Job.parse(job), {}) for _, job in cloud.finished]
    assert found.best_value == pytest.approx(max(values)), "the metric is better where it is larger"


# --- On this machine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "told", "direction"),
    [("piano_roll", [], "maximize"), ("reconstruction", [], "minimize"), ("piano_roll", ["minimize"], "minimize")],
)
def test_a_sweeper_goes_the_way_of_the_task_s_metric_or_as_it_is_told(
    task: str, told: list[str], direction: str
) -> None:
    cfg = OmegaConf.create({"task": compose([f"task={task}"]).task, "hydra": {"sweeper": {"direction": "minimize"}}})
    cfg.hydra.overrides = {"hydra": [f"hydra.sweeper.direction={way}" for way in told]}
    OmegaConf.set_readonly(cfg, True)
    set_direction(cfg)
    assert cfg.hydra.sweeper.direction == direction


def optuna_here(program: str, arguments: list[str]) -> None:
    """`wavespace train -m …` whose processes pretend; their metric is their learning rate."""
    from wavespace.cli import main

    sys.executable = program
    sys.argv = ["wavespace", "train", "-m", *RENDERED, *TRAINER, *arguments]
    main()


@needs_optuna
def test_optuna_on_this_machine_goes_the_way_of_the_task_s_metric(tmp_path: Path) -> None:
    words = ["sweep=optuna_lr", "hydra/launcher=local", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]
    ended = forked(optuna_here, in_place_of_python(tmp_path), words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = OmegaConf.load(tmp_path / "runs" / "run" / "optimization_results.yaml")
    done = [json.loads(path.read_text())["metrics"] for path in tmp_path.glob("runs/run/*/status.json")]
    values = [figures["val/figure"] for figures in done]
    assert len({*values}) == 4
    assert found.best_value == max(values)  # the task is a piano roll, whose metric is better where it is larger
    assert found.best_params["optim.lr"] == pytest.approx(found.best_value)

"""Checkpoints that a worker uploads during training are complete and consistent, and do not delay training."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from omegaconf import ListConfig

from wavespace.config import compose, signature
from wavespace.files import write_atomic
from wavespace.launchfile import Job
from wavespace.runfolder import RunFolder
from wavespace.signals import raising_on_stop
from wavespace_launcher import worker
from wavespace_launcher.plan import OTHER_VERSION, POD_FOLDER
from wavespace_launcher.pod_entry import PodEntry


class Training:
    """Writes a run folder in the order in which training does, with the step as every file's content."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.step = folder, 0
        write_atomic(folder.path / "metrics.csv", "step\n")

    def go_on(self) -> None:
        self.step += 1
        with (self.folder.path / "metrics.csv").open("a") as file:
            file.write(f"{self.step}\n")
        for path in (self.folder.best, self.folder.last):
            write_atomic(path, str(self.step))
        self.folder.update(step=self.step)


class Artifact:
    """Has no more than the names of its files until it is uploaded, as W&B's own, whose other version is the first."""

    version = "v0"

    def __init__(self, name: str, type: str, metadata: dict[str, Any]) -> None:
        self.name, self.metadata = name, metadata
        self.paths: dict[str, Path] = {}

    def add_file(self, path: str, name: str, policy: str, skip_cache: bool) -> None:
        assert (policy, skip_cache) == ("immutable", True), "it was to be copied nowhere: the disk of a pod is small"
        self.paths[name] = Path(path)


class Run:
    """Uploads when it is let; the first upload fails."""

    def __init__(self) -> None:
        self.asked, self.let = threading.Semaphore(0), threading.Semaphore(0)
        self.stored: list[tuple[Artifact, dict[str, str]]] = []
        self.failed = False

    def log_artifact(self, artifact: Artifact) -> Run:
        self.artifact = artifact
        return self

    def wait(self) -> None:
        self.asked.release()
        assert self.let.acquire(timeout=60)
        if not self.failed:
            self.failed = True
            raise ValueError("the network is away")
        self.stored.append((self.artifact, {name: path.read_text() for name, path in self.artifact.paths.items()}))


def test_a_checkpoint_is_stored_as_it_was_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "Artifact", Artifact)
    monkeypatch.setenv("WAVESPACE_STORE_SECONDS", "0.01")
    folder, run = RunFolder(tmp_path / "study" / "0123"), Run()
    training = Training(folder)
    with worker._storing(run, folder):
        training.go_on()
        for _ in range(3):
            assert run.asked.acquire(timeout=60)
            for _ in range(5):  # while it is uploaded
                training.go_on()
            run.let.release()
        assert run.asked.acquire(timeout=60)
        training.go_on()
        threading.Timer(0.2, run.let.release).start()
    assert len(run.stored) == 3, "it was to be stored again after a failure, and to be waited for at the end"
    assert "could not be stored: the network is away" in capsys.readouterr().err
    for artifact, files in run.stored:
        assert artifact.name == "checkpoint-study-0123"
        step = int(files["checkpoints/last.ckpt"])
        assert artifact.metadata["step"] == step < training.step
        assert files["checkpoints/best.ckpt"] == str(step)
        assert f'"step": {step}\n' in files["status.json"]
        assert files["metrics.csv"].split() == ["step", *map(str, range(1, step + 1))]
    assert list(folder.last.parent.glob(".storing-*")) == []


def test_what_is_set_aside_is_refused_where_training_wrote_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(RunFolder(tmp_path / "study" / "0123"))
    training.go_on()
    link = worker.os.link

    def slow(*paths: Path) -> None:
        link(*paths)
        if paths[0].name == "best.ckpt":
            training.go_on()

    monkeypatch.setattr(worker.os, "link", slow)
    assert not worker._set_aside(training.folder, tmp_path / "aside")


class Config(dict[str, Any]):
    def update(self, given: dict[str, Any], allow_val_change: bool) -> None:  # type: ignore[override]
        super().update(given)


@pytest.mark.parametrize(
    ("override", "drawn", "told"),
    [
        ("seed=1", [], "this image composes the job's overrides to "),
        ("model.new=1", [], "this image can't compose the job's overrides, and the launch could: "),
        ("seed=1", ["model.new=1"], ""),  # what a search draws is no planned job
    ],
)
def test_a_job_of_another_version_is_refused_and_its_pod_is_told(
    override: str, drawn: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, summary = list[int](), dict[str, Any]()
    run = SimpleNamespace(config=Config(), summary=summary, entity="us", project="p", id="r", resumed=False)
    run.finish = lambda exit_code: codes.append(exit_code)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    monkeypatch.setattr(worker, "_competing_run", lambda *_: None)
    monkeypatch.setenv(POD_FOLDER, str(tmp_path))
    job = Job(0, "0" * 12, (override,))
    assert worker.work(job, job.text, "launch", drawn) == 1
    assert codes == [1]
    if not told:
        assert "outcome" not in summary
        assert not (tmp_path / OTHER_VERSION).exists()
        return
    assert summary["outcome"] == "refused"
    assert summary["reason"] == (tmp_path / OTHER_VERSION).read_text()
    assert summary["reason"].startswith(told)
    assert summary["reason"].endswith("; build the image anew from the checkout that launches")
    assert "\n" not in summary["reason"]


def test_a_job_told_to_stop_while_it_composes_is_preempted_and_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, preempting, summary = list[int](), list[bool](), dict[str, Any]()
    run = SimpleNamespace(config=Config(), summary=summary, entity="us", project="p", id="r", resumed=False)
    run.finish = lambda exit_code: codes.append(exit_code)
    run.mark_preempting = lambda: preempting.append(True)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    monkeypatch.setattr(worker, "_competing_run", lambda *_: None)
    monkeypatch.setenv(POD_FOLDER, str(tmp_path))
    append, calls = ListConfig.append, iter(range(10**9))

    def told(self: ListConfig, item: Any) -> None:
        if next(calls) == 40:  # where OmegaConf makes an error of its own of what is raised in it
            signal.raise_signal(signal.SIGTERM)
        append(self, item)

    overrides = ("model=harmonic", "model.dilations=[[1,1],[12,1]]", "task=piano_roll")
    job = Job(0, signature(compose(overrides)), overrides)
    monkeypatch.setattr(ListConfig, "append", told)
    with raising_on_stop():
        assert worker.work(job, job.text, "launch", []) == 143
    assert next(calls) > 41
    assert (codes, preempting) == ([143], [True])
    assert "outcome" not in summary
    assert not (tmp_path / OTHER_VERSION).exists()


@pytest.mark.parametrize(("visible", "faulty"), [("none", False), ("all", not torch.cuda.is_available())])
def test_a_pod_whose_gpu_does_not_compute_says_why(
    visible: str, faulty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", visible)
    entry = PodEntry("launch", "pod", "us/project", until=0, idle=0, stay=False)
    fault = entry._self_test()
    assert bool(fault) == faulty, fault

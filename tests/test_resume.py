"""A run that is killed and repeated ends as one that was not: weights and metrics.csv, to the bit, for equal seeds."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import command, forked
from training import RENDERED, TRAINER, make_medley
from wavespace.config import compose
from wavespace.runfolder import RunFolder
from wavespace.tasks.base import Task
from wavespace.training import fit
from wavespace.training.run import run


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are made once the weights and figures are written, and take half of so short a run."""
    monkeypatch.setattr(fit, "save_samples", lambda *_: None)


def run_until_killed(when: int, overrides: list[str]) -> None:
    """Train until the step of that number begins."""
    begin = Task.on_train_batch_start

    def on_train_batch_start(self: Task, batch: Any, batch_idx: int) -> None:
        if self.global_step == when:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, batch, batch_idx)

    Task.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    run(compose(overrides))


def state_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(folder.last, weights_only=True)["state_dict"]


@pytest.mark.parametrize(("data", "workers", "killed_at"), [("map", 0, 5), ("map", 2, 3), ("fly", 0, 7), ("fly", 2, 4)])
def test_a_killed_run_goes_on_to_the_same_bits(data: str, workers: int, killed_at: int, tmp_path: Path) -> None:
    parts = make_medley(tmp_path / "medley") if data == "map" else RENDERED
    overrides = [*parts, *TRAINER, f"data.workers={workers}"]

    whole = compose([*overrides, f"runs={tmp_path / 'whole'}"])
    run(whole)

    broken = [*overrides, f"runs={tmp_path / 'broken'}"]
    killed = forked(run_until_killed, killed_at, broken)
    assert killed.returncode == -9, killed.stderr
    folder = RunFolder.of(compose(broken))
    assert folder.status()["state"] == "running"
    before = torch.load(folder.last, weights_only=True)["global_step"]
    assert 0 < before <= killed_at
    run(compose(broken))

    reference = RunFolder.of(whole)
    assert reference.path.name == folder.path.name
    assert (folder.path / "metrics.csv").read_text() == (reference.path / "metrics.csv").read_text()
    for path in ("last", "best"):
        ours, theirs = (torch.load(getattr(f, path), weights_only=True) for f in (folder, reference))
        assert ours["global_step"] == theirs["global_step"]
        for name, value in theirs["state_dict"].items():
            assert torch.equal(ours["state_dict"][name], value), name
    assert folder.status()["metrics"] == reference.status()["metrics"]


def test_other_seeds_give_other_bits(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        cfg = compose([*RENDERED, *TRAINER, "trainer.max_steps=1", "trainer.val_check_interval=1", f"seed={seed}"])
        cfg.runs = str(tmp_path)
        run(cfg)
        folders.append(RunFolder.of(cfg))
    first, other = (state_of(folder) for folder in folders)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_two_runs_of_one_configuration_do_not_write_at_once(tmp_path: Path) -> None:
    cfg = compose([*RENDERED, *TRAINER, f"runs={tmp_path}"])
    with RunFolder.of(cfg).writing(cfg):
        overrides = [*RENDERED, *TRAINER, f"runs={tmp_path}"]
        other = command("train", *overrides)
    assert other.returncode == 2
    assert "another process is running this configuration" in other.stderr
    assert "Traceback" not in other.stderr

"""A run that diverges stops, says at which step, keeps finite weights, and does not pretend success afterwards."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training import RENDERED, TRAINER
from wavespace.config import compose, signature
from wavespace.errors import BadCheckpoint, BadInput, Diverged, UserError
from wavespace.files import write_atomic
from wavespace.launchfile import Job
from wavespace.runfolder import RunFolder
from wavespace.tasks.piano_roll import PianoRoll
from wavespace.training import fit
from wavespace.training.callbacks import divergence
from wavespace.training.fit import checkpoint_to_resume
from wavespace.training.run import run
from wavespace_launcher.launch import Member
from wavespace_launcher.local import LocalJob
from wavespace_launcher.status import Board, job_results
from wavespace_launcher.wandb_client import WandbRun

Bad = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "save_samples", lambda *_: None)


def spoil(monkeypatch: pytest.MonkeyPatch, batches: set[int], change: Callable[[Any], Any]) -> list[int]:
    """Change the loss of some batches (from 1 on); returns the numbers of those that were trained on."""
    loss, seen = PianoRoll.loss, list[int]()

    def spoilt(self: Any, *given: Any) -> dict[str, Any]:
        found = loss(self, *given)
        if self.trainer.training:
            seen.append(len(seen) + 1)
            if seen[-1] in batches:
                found["loss"] = change(found["loss"])
        return found

    monkeypatch.setattr(PianoRoll, "loss", spoilt)
    return seen


def finite(path: Path) -> bool:
    return all(bool(value.isfinite().all()) for value in torch.load(path, weights_only=True)["state_dict"].values())


class NoGradient(torch.autograd.Function):
    """A finite loss whose gradient is not."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient * math.nan


CASES: dict[str, tuple[set[int], Callable[[Any], Any], list[str], str]] = {
    "nan": ({6}, lambda x: x * math.nan, [], "the loss is not finite at step 6"),
    "infinite": ({6}, lambda x: x * math.inf, [], "the loss is not finite at step 6"),
    "within an accumulation": (
        {14}, lambda x: x * math.nan, ["trainer.accumulate_grad_batches=2"], "the loss is not finite at step 7",
    ),
    "gradient": ({6}, NoGradient.apply, [], "the weights are not finite after step 6"),
    "at the first step": ({1}, lambda x: x * math.nan, [], "the loss is not finite at step 1"),
    "at the last step": ({8}, NoGradient.apply, [], "the weights are not finite after step 8"),
    "no validation": ({7}, lambda x: x * math.nan, ["trainer.limit_val_batches=0"], "the loss is not finite at step 7"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "read"),
    [(case, "each step") for case in CASES] + [(case, "now and then") for case in ("nan", "gradient", "no validation")],
)
def test_the_first_bad_step_is_named_and_no_checkpoint_holds_it(
    case: str, read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, change, more, reason = CASES[case]
    if read == "now and then":  # as on a GPU
        monkeypatch.setattr(divergence, "READ_EACH_STEP", ())
        more = [*more, "trainer.log_every_n_steps=8"]
    seen = spoil(monkeypatch, batches, change)
    cfg = compose([*RENDERED, *TRAINER, f"runs={tmp_path}", *more])
    folder = RunFolder.of(cfg)
    with pytest.raises(Diverged, match="diverged: ") as told:
        run(cfg)
    if case == "gradient":  # which is noticed at the next loss, or before the next checkpoint
        assert "not finite at step 7" in str(told.value) or "not finite after step 6" in str(told.value)
    else:
        assert reason in str(told.value)
    assert folder.status()["state"] == "diverged"
    assert folder.status()["reason"] in str(told.value)
    for path in (folder.last, folder.best):
        assert finite(path) if path.is_file() else case in ("at the first step", "no validation")

    before = len(seen)
    with pytest.raises(Diverged) as again:
        run(cfg)
    assert str(again.value) == str(told.value)
    assert len(seen) == before, "it was trained again"


def test_a_diverged_run_goes_on_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*RENDERED, *TRAINER, f"runs={tmp_path}"]
    cfg = compose(words)
    with monkeypatch.context() as patch:
        spoil(patch, {8}, lambda x: x * math.nan)
        with pytest.raises(Diverged, match="of step 6, is good"):
            run(cfg)
    folder = RunFolder.of(cfg)
    with (folder.path / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6", "7", "8"]
    resumed = compose([*words, "resume=last"])
    assert signature(resumed) == signature(cfg)
    assert run(resumed) is not None
    assert "going on from step 6" in capsys.readouterr().out
    assert folder.status()["state"] == "finished"
    assert folder.status()["reason"] is None

    # the last checkpoint is damaged, and the best one, of step 4, is not: the same end
    whole, weights = folder.last.read_bytes(), torch.load(folder.last, weights_only=True)["state_dict"]
    best = torch.load(folder.best, weights_only=True)["global_step"]
    middle = len(whole) // 2
    for damage in (whole[:1000], b"\0" * len(whole), whole[:middle] + bytes(64) + whole[middle + 64 :], b""):
        folder.last.write_bytes(damage)
        assert checkpoint_to_resume(cfg, folder) == (folder.best, best)
        assert "last.ckpt is damaged" in capsys.readouterr().out
        assert folder.last.read_bytes() == folder.best.read_bytes()
    folder.last.write_bytes(b"")
    (folder.path / "status.json").write_text(json.dumps(folder.status() | {"state": "preempted"}))
    run(cfg)
    again = torch.load(folder.last, weights_only=True)["state_dict"]
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    (folder.path / "status.json").write_text(json.dumps(folder.status() | {"state": "preempted"}))
    for path in (folder.last, folder.best):
        path.write_bytes(b"")
    with pytest.raises(BadCheckpoint, match=r"last.ckpt is damaged .* and .*best.ckpt is damaged .* fresh=true"):
        run(cfg)
    folder.best.unlink()
    with pytest.raises(BadCheckpoint, match=r"there is no .*best.ckpt; resume=last or fresh=true"):
        run(compose([*words, "resume=best"]))


def test_steps_that_16_bit_scaling_leaves_out_are_normal_and_an_end_of_them_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scale(strategy: Any, world: int) -> None:  # which Lightning does on GPUs alone
        strategy.precision_plugin.scaler = torch.amp.GradScaler("cpu")

    monkeypatch.setattr(fit, "fix_buckets", scale)
    words = [*RENDERED, *TRAINER, f"runs={tmp_path}", "trainer.precision=bf16-mixed"]
    with monkeypatch.context() as patch:
        spoil(patch, {1, 3}, NoGradient.apply)
        cfg = compose(words)
        run(cfg)
        assert RunFolder.of(cfg).status()["state"] == "finished"
    spoil(monkeypatch, set(range(1, 99)), NoGradient.apply)
    monkeypatch.setattr(divergence, "SMALLEST_SCALE", 2.0**14)
    with pytest.raises(Diverged, match="the gradients are not finite at step 3"):
        run(compose([*words, "seed=1"]))


def test_a_figure_that_is_no_number_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PianoRoll, "compute_metrics", lambda *_, **__: {PianoRoll.monitor.removeprefix("val/"): math.nan}
    )
    cfg = compose([*RENDERED, *TRAINER, f"runs={tmp_path}"])
    with pytest.raises(
        Diverged, match=f"{PianoRoll.monitor} is nan at step 4; its last checkpoint, of step 3, is good"
    ):
        run(cfg)
    assert not RunFolder.of(cfg).best.exists()


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("more", ["", "trainer.limit_val_batches=0"])
def test_an_empty_split_is_noticed_before_the_first_step(
    split: str, more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wavespace.data.base import DataModule

    monkeypatch.setattr(DataModule, f"{split}_dataloader", lambda self: [])
    seen = spoil(monkeypatch, set(), lambda x: x)
    with pytest.raises(BadInput, match=f"nothing in its {split} split"):
        run(compose([*RENDERED, *TRAINER, f"runs={tmp_path}", *filter(None, [more])]))
    assert not seen


@pytest.mark.parametrize(
    "word",
    ["trainer.precision=16-true", "trainer.precision=64-true", "trainer.precision=bf16-true", "trainer.precision=64",
     "trainer.precision=transformer-engine", f"seed={2**63}", f"seed={-(2**63) - 1}", "resume=3"],
)  # fmt: skip
def test_what_can_not_be_trained_in_is_a_fault_of_the_configuration(word: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]) as told:
        compose([*RENDERED, word])
    assert "1 faults" not in str(told.value)


def test_the_largest_seeds_train(tmp_path: Path) -> None:
    losses = []
    for seed in (2**63 - 1, -(2**63)):
        cfg = compose([*RENDERED, *TRAINER, "trainer.max_steps=1", f"runs={tmp_path}", f"seed={seed}"])
        run(cfg)
        folder = RunFolder.of(cfg)
        assert folder.status()["state"] == "finished"
        with (folder.path / "metrics.csv").open(newline="") as file:
            losses.append(float(next(csv.DictReader(file))["train/loss"]))
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]  # each is a seed of its own


def test_a_job_that_diverged_is_not_tried_again(tmp_path: Path) -> None:
    job = Job(0, "abc", ("a=1",))
    told = {"outcome": "diverged", "reason": "the loss is not finite at step 6"}
    (result,) = job_results([job], [WandbRun("r", "", "failed", "s", job.text, 0.0, 0.0, summary=told)], 3, 0.0, None)
    assert (result.state, result.ended, result.reason) == ("diverged", True, told["reason"])
    assert "0 running, 0 waiting, 1 failed" in Board("")._line([result])

    cfg = compose([*RENDERED, f"runs={tmp_path}"])
    local = LocalJob(Member(job, cfg, cfg), None)
    write_atomic(local.folder.path / "status.json", json.dumps({"state": "diverged", "reason": told["reason"]}))
    local.process, local.code = Any, 2  # type: ignore[assignment]
    local.look()
    assert local.ended
    assert (local.result().state, local.result().reason) == ("diverged", told["reason"])

"""Settings with which a run can not resume exactly are refused, and leftovers of a kill are removed."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytorch_lightning.callbacks import Timer

from processes import command
from training import RENDERED, TRAINER
from wavespace.config import compose
from wavespace.config.trainer import faults
from wavespace.runfolder import RunFolder
from wavespace.training.callbacks.progress import TrainingProgress

SMALL = [*RENDERED, *TRAINER]


@pytest.mark.parametrize("verb", ["check", "train"])
def test_verbs_refuse_them_in_a_sentence(verb: str, tmp_path: Path) -> None:
    found = command(verb, *SMALL, "+trainer.limit_train_batches=3", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert "trainer.limit_train_batches" in found.stderr
    assert "trainer.max_steps" in found.stderr
    assert "Traceback" not in found.stderr


def test_validation_by_the_clock_within_an_accumulation_is_refused() -> None:
    node = {"max_steps": 8, "val_check_interval": "00:00:01:00", "accumulate_grad_batches": 2}
    assert [key for key, _ in faults(node)] == ["val_check_interval"]
    assert not list(faults(node | {"accumulate_grad_batches": 1}))


def test_what_a_kill_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    cfg = compose([*SMALL, f"runs={tmp_path}"])
    folder = RunFolder.of(cfg)
    folder.last.parent.mkdir(parents=True)
    kept = {folder.last, folder.best, folder.path / "metrics.csv", folder.path / "output.log"}
    left = {folder.path / name for name in (".status.json.4711", ".config.yaml.1", ".report.html.99")}
    left |= {folder.last.with_name(name) for name in (".writing.ckpt", ".last.ckpt", ".last.ckpt.new")}
    for path in kept | left:
        path.write_text("x")
    (folder.last.with_name(".storing-x")).mkdir()
    with folder.writing(cfg):
        assert all(path.exists() for path in kept)
        assert not any(path.exists() for path in left)
        assert sorted(path.name for path in folder.last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize(
    ("max_steps", "duration", "left"), [(100, None, 90), (100, 30, 20), (20, 60, 10), (-1, 30, 20)]
)
def test_time_left_is_that_of_whichever_ends_first(max_steps: int, duration: int | None, left: float) -> None:
    now = time.monotonic()
    timer = Timer(None if duration is None else {"seconds": duration})
    timer._start_time["train"] = now - 10  # type: ignore[index]
    progress = TrainingProgress("val/loss")
    progress.since, progress.first_step = now - 10, 0
    trainer = SimpleNamespace(max_steps=max_steps, global_step=10, callbacks=[progress, timer])
    assert progress.seconds_left(trainer) == pytest.approx(left, abs=1)

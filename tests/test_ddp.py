"""Two processes train what one does, stop as one does, and end together."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import pytest
import torch

from processes import command, forked
from test_preemption import train_until_told
from training import TRAINER, make_medley
from wavespace import checkpoint
from wavespace.build import build
from wavespace.commands.evaluate import score
from wavespace.config import compose
from wavespace.errors import Incompatible
from wavespace.runfolder import RunFolder
from wavespace.training import distributed
from wavespace.training import fit as train
from wavespace.training.callbacks import samples

TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


def rows_of(folder: RunFolder) -> list[dict[str, float]]:
    with (folder.path / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_two_processes_that_are_told_to_stop_go_on_to_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each item is normalised by itself, so that it doesn't matter which others are beside it.
    overrides = [*make_medley(tmp_path / "medley"), *TRAINER, "model.norm=group", "task.heard=0"]
    monkeypatch.setattr(samples, "save_samples", lambda *_: None)
    alone = compose([*overrides, f"runs={tmp_path / 'alone'}"])
    train.run(alone)

    arguments = [*overrides, *TWO, f"runs={tmp_path / 'together'}"]
    folder = RunFolder.of(compose(arguments))
    assert folder.path.name == RunFolder.of(alone).path.name
    told = forked(train_until_told, "training", 5, True, arguments, OMP_NUM_THREADS="1")
    assert told.returncode == 143, told.stderr
    assert folder.status()["state"] == "preempted"
    assert torch.load(folder.last, weights_only=True)["global_step"] == 5
    assert not processes_of(folder)

    ended = command("train", *arguments, OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("going on from step 5") == ended.stdout.count("report.html") == 1
    assert not processes_of(folder)
    assert folder.status()["state"] == "finished"
    assert (folder.path / "samples" / "samples.json").is_file()

    ours, theirs = rows_of(folder), rows_of(RunFolder.of(alone))
    assert [row["step"] for row in ours] == list(range(1, 9))
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    figures = score(checkpoint.load(folder.path), build(alone).data, "val")
    assert {name: folder.status()["metrics"][f"val/{name}"] for name in figures} == pytest.approx(figures, rel=1e-6)


def processes_of(folder: RunFolder) -> list[str]:
    """Command lines that name a run folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if str(folder.path) in words:
            found.append(words)
    return found


def wait_for_one_that_fails(path: Path) -> None:
    distributed.PATIENCE = 0.5
    with distributed.others(RunFolder(path), 2):
        time.sleep(100)  # as a call that hears of nothing


def test_a_process_that_fails_ends_one_that_waits_for_it(tmp_path: Path) -> None:
    start = time.monotonic()
    ended = forked(wait_for_one_that_fails, tmp_path)  # without the config.yaml that the other is to read
    assert ended.returncode == 1
    assert time.monotonic() - start < 90
    assert "FileNotFoundError" in ended.stderr
    status = RunFolder(tmp_path).status()
    assert status["state"] == "failed"
    assert status["reason"].startswith("ChildProcessError: rank 1 of 2 ended with code 1")


@pytest.mark.parametrize(
    ("overrides", "environment", "sentence"),
    [
        (["data.batch_size=3"], {}, "data.batch_size=3 can't be shared evenly by 2 devices"),
        (["trainer.strategy=ddp_spawn"], {}, "trainer.strategy=ddp_spawn is not supported"),
        (["trainer.num_nodes=2"], {}, "trainer.num_nodes=2 takes processes that torchrun has started"),
        (["trainer.val_check_interval='00:00:01:00'"], {}, "goes by the clock"),
        (
            ["trainer.devices=1"],
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            "torchrun has started 2 processes",
        ),
    ],
)
def test_what_several_devices_cannot_train_is_refused(
    overrides: list[str], environment: dict[str, str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    parts = [*make_medley(tmp_path / "medley"), *TRAINER, *TWO, f"runs={tmp_path}"]
    with pytest.raises(Incompatible, match=sentence):
        train.run(compose([*parts, *overrides]))
    assert os.environ.get("LOCAL_RANK") == environment.get("LOCAL_RANK")

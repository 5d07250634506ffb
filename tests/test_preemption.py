"""A stopped command (Ctrl-C, SIGTERM, SIGHUP) says what it leaves, and a run resumes to the same bits."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import forked
from training import RENDERED, TRAINER, make_medley
from wavespace import build
from wavespace.config import compose
from wavespace.data.base import _start_loader
from wavespace.runfolder import RunFolder
from wavespace.signals import STOPS
from wavespace.tasks.base import Task
from wavespace.training import fit, scoring
from wavespace.training.run import run

MOMENTS: dict[str, tuple[Any, str]] = {
    "build": (build, "build"),
    "start": (Task, "on_fit_start"),
    "training": (Task, "training_step"),
    "validation": (Task, "validation_step"),
    "scoring": (scoring, "score"),
}


def train_until_told(
    moment: str, call: int, everybody: bool, arguments: list[str], number: int = signal.SIGTERM
) -> None:
    """`wavespace train`, to which a signal comes in the midst of a function's n-th call.

    With `everybody` it comes to the loaders' processes, too, as a terminal or a scheduler sends it.
    """
    from wavespace.cli import main

    os.setsid()
    torch.set_num_threads(1)  # as in this test's own process: sums depend on it
    owner, name = MOMENTS[moment]
    calls = itertools.count(1)

    def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def told(*given: Any, **named: Any) -> Any:
            if next(calls) == call:
                (os.killpg if everybody else os.kill)(os.getpid(), number)
            return function(*given, **named)

        return told

    setattr(owner, name, interrupted(getattr(owner, name)))
    fit.save_samples = lambda *_: None  # they come last, and take half of so short a run
    sys.argv = ["wavespace", "train", *arguments]
    main()


def test_a_run_that_is_told_to_stop_at_any_moment_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "save_samples", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # training leaves the number of threads as it is
    overrides = [*RENDERED, *TRAINER, "data.val_pieces=5"]  # two batches
    whole = compose([*overrides, f"runs={tmp_path / 'whole'}"])
    run(whole)

    broken = [*overrides, f"runs={tmp_path / 'broken'}"]
    folder = RunFolder.of(compose(broken))
    last: list[int | None] = []
    for moment, call, everybody, number in (
        ("build", 1, False, signal.SIGINT),
        ("start", 1, False, signal.SIGHUP),
        ("training", 2, False, signal.SIGINT),  # where no checkpoint is due
        ("validation", 1, False, signal.SIGTERM),  # after step 4
        ("training", 2, True, signal.SIGINT),
        ("training", 1, True, signal.SIGTERM),
        ("validation", 1, True, signal.SIGINT),  # the last one
        ("validation", 2, False, signal.SIGHUP),  # its last batch
        ("scoring", 1, False, signal.SIGINT),
    ):
        words = [*broken, f"data.workers={2 * everybody}"]
        ended = forked(train_until_told, moment, call, everybody, words, number, OMP_NUM_THREADS="1")
        assert ended.returncode == 128 + number, ended.stderr
        assert folder.status().get("state") == (None if moment == "build" else "preempted"), moment
        there = folder.last.is_file()
        last.append(torch.load(folder.last, weights_only=True)["global_step"] if there else None)
        where = f"resumes from step {last[-1]} of {folder.path}" if there else "before the first step"
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        assert where in ended.stderr
    assert last == [None, None, 2, 4, 6, 7, 8, 8, 8]
    ended = forked(train_until_told, "build", 2, False, broken, OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    assert "going on from step 8" in ended.stdout

    reference = RunFolder.of(whole)
    assert (folder.path / "metrics.csv").read_text() == (reference.path / "metrics.csv").read_text()
    for path in ("last", "best"):
        ours, theirs = (torch.load(getattr(f, path), weights_only=True) for f in (folder, reference))
        assert ours["global_step"] == theirs["global_step"]
        assert all(torch.equal(ours["state_dict"][name], value) for name, value in theirs["state_dict"].items())
    assert folder.status()["state"] == "finished"
    assert folder.status()["metrics"] == reference.status()["metrics"]


def test_a_run_told_within_an_accumulation_ends_the_step_and_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "save_samples", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    overrides = [*RENDERED, *TRAINER, "trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=0.01"]
    overrides += ["trainer.max_steps=4", "trainer.val_check_interval=2", "save_every=1"]
    whole = compose([*overrides, f"runs={tmp_path / 'whole'}"])
    run(whole)
    broken = [*overrides, f"runs={tmp_path / 'broken'}"]
    folder, reference = RunFolder.of(compose(broken)), RunFolder.of(whole)
    for batch, step in ((2, 1), (2, 2)):  # the second is followed by a validation
        ended = forked(train_until_told, "training", batch, False, broken, OMP_NUM_THREADS="1")
        assert ended.returncode == 143, ended.stderr
        assert torch.load(folder.last, weights_only=True)["global_step"] == step
    run(compose(broken))
    rows = (reference.path / "metrics.csv").read_text()
    assert [bool(line.split(",")[-1]) for line in rows.splitlines()[1:]] == [False, True, False, True]
    assert (folder.path / "metrics.csv").read_text() == rows
    ours, theirs = (torch.load(f.last, weights_only=True)["state_dict"] for f in (folder, reference))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_patience_that_is_over_stays_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [
        *RENDERED,
        *TRAINER,
        "patience=1",
        "optim.lr=1e-12",
        "trainer.val_check_interval=2",
        f"runs={tmp_path}",
    ]
    ended = forked(train_until_told, "scoring", 1, False, overrides, signal.SIGINT, OMP_NUM_THREADS="1")
    folder = RunFolder.of(compose(overrides))
    assert f"resumes from step 4 of {folder.path}" in ended.stderr
    monkeypatch.setattr(fit, "save_samples", lambda *_: None)
    run(compose(overrides))
    assert folder.status()["step"] == 4
    assert len((folder.path / "metrics.csv").read_text().splitlines()) == 5


def train_until_told_twice(arguments: list[str]) -> None:
    step = Task.training_step

    def told_twice(self: Task, *given: Any) -> Any:
        if self.global_step == 2:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
        return step(self, *given)

    Task.training_step = told_twice  # type: ignore[method-assign]
    train_until_told("scoring", 9, False, arguments)


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    overrides = [*RENDERED, *TRAINER, f"runs={tmp_path}"]
    ended = forked(train_until_told_twice, overrides, OMP_NUM_THREADS="1")
    assert ended.returncode == 130
    assert "stopped before the first step" in ended.stderr
    assert "Traceback" not in ended.stderr
    folder = RunFolder.of(compose(overrides))
    assert folder.status()["state"] == "preempted"
    assert not folder.last.exists()


def prepare_until_told(number: int, arguments: list[str]) -> None:
    """`wavespace prepare`, where a signal comes to all its processes while one of them writes a shard."""
    from wavespace.cli import main
    from wavespace.data.store import build as store

    os.setsid()
    build_shard = store._build_shard

    def told(*given: Any) -> None:
        os.killpg(0, number)
        build_shard(*given)

    store._build_shard = told
    sys.argv = ["wavespace", "prepare", *arguments]
    main()


@pytest.mark.parametrize("number", STOPS)
def test_what_prepares_leaves_no_traceback_of_its_processes(number: int, tmp_path: Path) -> None:
    data = [word for word in make_medley(tmp_path / "medley") if word.startswith("data")]
    ended = forked(prepare_until_told, number, data)
    assert ended.returncode == 128 + number
    assert ended.stderr == "wavespace: stopped; what is done is kept, and the same command resumes\n"


TOLD_WHILE_IMPORTING = """
import os, signal, sys
class Told:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Told())
from wavespace.cli import main
main()
"""


def test_a_run_that_is_told_to_stop_while_it_imports_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOLD_WHILE_IMPORTING, "train", *RENDERED, *TRAINER]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 143, ended.stderr
    assert ended.stderr == "wavespace: stopped\n"
    assert list(tmp_path.iterdir()) == []


def load_until_killed() -> None:
    items: Any = range(100)
    for _ in torch.utils.data.DataLoader(items, num_workers=2, worker_init_fn=_start_loader):
        os.kill(os.getpid(), signal.SIGKILL)


def test_loaders_end_with_a_killed_process() -> None:
    reading, writing = os.pipe()  # the loaders inherit its end
    process = multiprocessing.get_context("fork").Process(target=load_until_killed)
    process.start()
    os.close(writing)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert select.select([reading], [], [], 4.0)[0], "PyTorch's own look takes five seconds"
    os.close(reading)

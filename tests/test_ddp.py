"""Two processes train what one does, stop as one does, and end together."""

from __future__ import annotations

import csv
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from socket import socket

import pytest
import torch
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from processes import command, forked
from test_preemption import train_until_told
from training import TRAINER, make_medley
from wavespace import checkpoint
from wavespace.build import build
from wavespace.config import compose
from wavespace.errors import Incompatible
from wavespace.runfolder import RunFolder
from wavespace.training import distributed, fit
from wavespace.training.run import run
from wavespace.training.scoring import score

TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


def rows_of(folder: RunFolder) -> list[dict[str, float]]:
    with (folder.path / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_two_processes_that_are_told_to_stop_go_on_to_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each item is normalised by itself, so that it doesn't matter which others are beside it.
    overrides = [*make_medley(tmp_path / "medley"), *TRAINER, "model.norm=group", "task.multi_scale_items=0"]
    monkeypatch.setattr(fit, "save_samples", lambda *_: None)
    alone = compose([*overrides, f"runs={tmp_path / 'alone'}"])
    run(alone)

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


def test_a_run_of_several_processes_leaves_the_threads_of_later_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    start = distributed.subprocess.Popen
    monkeypatch.setattr(distributed.subprocess, "Popen", lambda _, **given: start(["cat"], **given))
    with distributed.spawn_ranks(RunFolder(tmp_path), 2):
        _set_num_threads_if_needed(2)  # as Lightning does
        assert "OMP_NUM_THREADS" in os.environ
    assert "OMP_NUM_THREADS" not in os.environ


def gradients_from_any_step(rank: int, world: int, port: int) -> None:
    """Gradients of a net that is set up at step 0, 1 or 2, reduced as `train` has it; they are equal bits."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * world)
    distributed.fix_buckets(strategy, world)
    found = []
    for start in range(3):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(61, 61) for _ in range(4)]
        net = DistributedDataParallel(torch.nn.Sequential(*layers), **strategy._ddp_kwargs)
        for step in range(start, 3):
            net.zero_grad()
            for batch in range(2):  # accumulated
                torch.manual_seed(100 * step + 10 * batch + rank)
                with net.no_sync() if batch == 0 else nullcontext():
                    net(torch.randn(8, 61)).square().sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert all(torch.equal(each, found[0]) for each in found)
    torch.distributed.destroy_process_group()


def test_accumulated_gradients_of_three_are_reduced_to_the_same_bits_from_whichever_step() -> None:
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(lambda rank: forked(gradients_from_any_step, rank, 3, port), range(3)))
    assert [each.returncode for each in ended] == [0, 0, 0], ended[0].stderr


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
    with distributed.spawn_ranks(RunFolder(path), 2):
        time.sleep(100)  # as a call that waits for the other


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
        run(compose([*parts, *overrides]))
    assert os.environ.get("LOCAL_RANK") == environment.get("LOCAL_RANK")

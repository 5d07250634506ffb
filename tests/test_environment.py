"""What a machine, a container or a scheduler sets around a run, as in reports from Slurm, Kubeflow and Docker users."""

from __future__ import annotations

import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from processes import command
from training import RENDERED, TRAINER
from wavespace.build import build
from wavespace.cli import main
from wavespace.config import compose
from wavespace.config.trainer import cluster_environment, rank
from wavespace.errors import Incompatible, UserError

SLURM_TASK = {
    "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4", "SLURM_NODELIST": "n1",
    "SLURM_NODEID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "3",
}  # fmt: skip
KUBEFLOW = {"KUBERNETES_PORT": "tcp://10.0.0.1", "MASTER_ADDR": "a", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}


def test_a_task_of_a_slurm_job_is_a_run_of_its_own(tmp_path: Path) -> None:
    ended = command("train", *RENDERED, *TRAINER, f"runs={tmp_path}", **SLURM_TASK)
    assert ended.returncode == 0, ended.stderr
    (metrics,) = tmp_path.glob("*/*/metrics.csv")
    assert len(metrics.read_text().splitlines()) == 1 + 8


@pytest.mark.parametrize(
    "environment", [{"RANK": "1"}, {"RANK": "worker-0"}, {"RANK": "", "WORLD_SIZE": "1"}, KUBEFLOW]
)
def test_a_rank_that_torchrun_did_not_set_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    # As rank 1 it would train to the end and keep nothing.
    ended = command("train", *RENDERED, *TRAINER, f"runs={tmp_path}", **environment)
    assert ended.returncode == 2
    assert "unset RANK" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("environment", "name", "number"), [
    ({}, "LightningEnvironment", 0),
    (SLURM_TASK, "LightningEnvironment", 0),
    ({"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "x"}, "LightningEnvironment", 0),
    (TORCHRUN, "TorchElasticEnvironment", 1),
])  # fmt: skip
def test_lightning_takes_no_scheduler_for_its_launcher(
    environment: dict[str, str], name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 7, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert type(cluster_environment()).__name__ == name
    assert rank() == rank_zero_only.rank == number


def test_batches_that_do_not_fit_into_shared_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = build(compose([*RENDERED, "data.workers=2"])).data
    data.setup()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**26, 2**26 - 1000, 1000))
    with pytest.raises(Incompatible, match=r"data\.workers=0, or start the container with a larger --shm-size"):
        data.train_dataloader()


def test_a_deleted_working_folder_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "argv", ["wavespace", "check"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2


def test_a_rank_is_read_as_torchrun_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {**TORCHRUN, "RANK": "2"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="RANK=2, LOCAL_RANK=1, WORLD_SIZE=2"):
        rank()

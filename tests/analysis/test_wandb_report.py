"""A report of a sweep on W&B: the unmodified client against a stand-in, sixty runs, one download of each history."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from made_runs import OPTIMUM, config_of
from standins.wandb_server import WandbCore, WandbServer
from wavespace.analysis.sweeps import on_wandb
from wavespace.launchfile import Job


def fill(core: WandbCore) -> str:
    """A sweep of 60 jobs; one of them failed, one is running, and a 61st run is a duplicate. Returns its id."""
    rng = np.random.default_rng(0)
    sweep = core.create_sweep({"method": "grid", "parameters": {"job": {"values": ["x"]}}}, "tester", "room")
    for index in range(61):
        lr, latent = float(10 ** rng.uniform(-4, -1)), 2 ** int(rng.integers(1, 6))
        config = config_of("remote", 0, lr, latent)
        signature = f"{index:012x}"
        job = Job(index, signature, (f"optim.lr={lr}", f"model.latent={latent}")).text
        launched = {"launch": "L1", "job": job, "pod": f"p{index % 4}", "pod_price": 0.3, "signature": signature}
        loss = 1 + np.log10(lr / OPTIMUM) ** 2 + 0.05 * rng.normal()
        history = [
            {"_step": row, "trainer/global_step": 10 * row, "val/l1_db": loss + 1 / row, "train/loss": loss}
            for row in range(1, 11)
        ]
        summary = {
            "val/l1_db": loss, "test/l1_db": loss + 0.1, "outcome": "finished", "minutes": 2.0, "dollars": 0.01,
            "step": 100, "monitor": "val/l1_db", "best_step": 80, "test/nan": math.nan,
        }  # fmt: skip
        state = {7: "crashed", 8: "running"}.get(index, "finished")
        if state != "finished":
            summary = {"reason": "OSError: no space left"} if state == "crashed" else {}
        core.upsert_run(
            "tester", "room", f"run{index}", sweep=sweep, state=state, config=config | launched, summary=summary,
            history=history, tags=["duplicate"] if index == 60 else [], display_name=f"remote/{signature}",
        )  # fmt: skip
    return sweep


AGAIN = """
import sys
from wavespace.analysis.sweeps import read_sweep
from wavespace.errors import UserError
runs, again = read_sweep(sys.argv[1]), read_sweep(sys.argv[1])
print(len(runs), len(again), max(run.metrics["val/l1_db"] for run in runs if run.metrics))
try:
    read_sweep("tester/room/nothing")
except UserError as error:
    print(error)
"""


def test_a_sweep_is_one_table_and_its_histories_are_downloaded_once(tmp_path: Path) -> None:
    core = WandbCore()
    sweep = fill(core)
    with WandbServer(core) as server:
        (tmp_path / "w").mkdir()

        place = {"HOME": str(tmp_path), "WANDB_DIR": "w", "WAVESPACE_CACHE": str(tmp_path / "cache")}
        environment = os.environ | server.env | place

        def call(*command: str) -> str:
            done = subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        call("-m", "wavespace", "report", f"tester/room/{sweep}", "--out", "page")
        assert server.counts["RunFullHistory"] == 60
        rows = pd.read_parquet(tmp_path / "page" / "runs.parquet")
        assert len(rows) == 60
        assert rows["state"].value_counts().to_dict() == {"finished": 58, "failed": 1, "running": 1}
        assert rows["reason"].dropna().tolist() == ["OSError: no space left", "on W&B it is running"]
        assert rows["dollars"].sum() == pytest.approx(0.58)
        first = rows[rows["signature"] == f"{3:012x}"].iloc[0]
        run = core.run("tester", "room", "run3")
        assert first["optim.lr"] == run.config["optim"]["lr"]
        assert first["val/l1_db"] == run.summary["val/l1_db"]
        assert first["val/l1_db:best"] == min(row["val/l1_db"] for row in run.history)
        assert (first["step"], first["best_step"], first["minutes"], first["model"]) == (100, 80, 2.0, "Dense")
        page = (tmp_path / "page" / "report.html").read_text()
        assert "optim.lr: least at" in page or "against optim.lr" in page
        assert page.count(f"{server.url}/tester/room/runs/") == 60

        listed = server.counts["Runs"] + server.counts["GetRuns"]
        core.upsert_run("tester", "room", "run8", state="finished", summary={"outcome": "finished", "val/l1_db": 9.0})
        said = call("-c", AGAIN, f"tester/room/{sweep}")
        assert server.counts["RunFullHistory"] == 61  # of the run that was running, twice asked for
        assert server.counts["Runs"] + server.counts["GetRuns"] <= 3 * listed + 1
        assert "60 60 9.0" in said
        assert "W&B shows no runs of this sweep" in said
        assert server.drift == []


def test_a_name_on_wandb_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert on_wandb("me/room/ab12") == "me/room/ab12"
    assert on_wandb("https://wandb.ai/me/room/sweeps/ab12?nw=x") == "me/room/ab12"
    assert on_wandb("runs/demo/ab12") is None
    assert on_wandb("/a/b") is None
    assert on_wandb("runs/demo") is None

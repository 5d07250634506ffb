"""Measure the overhead of a launch: `python benchmarks/launcher.py`, on stand-ins for both services.

Overhead is the time from the end of one run to the first training step of the next on the same machine; the peer is
`wandb agent` that starts `wavespace train` for the same settings. Idle is the time of a pod without a run, relative to
the time with one, for jobs of a minute, including the pod's start and end.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from launcher.cloud import Cloud, cloud
from training import RENDERED, TRAINER

WAVESPACE = [sys.executable, "-m", "wavespace.cli"]
LAUNCH = [
    *("hydra/launcher=runpod", "hydra.launcher.image=us/wavespace:1", "hydra.launcher.max_cost=5"),
    *("hydra.launcher.max_pods=1", "hydra.launcher.poll_seconds=5", "hydra.launcher.idle_timeout=2"),
]


def overheads(sky: Cloud) -> list[float]:
    """Seconds from each run's end to the next one's first step."""
    runs = sorted(sky.wandb.core.runs.values(), key=lambda run: run.created_at)
    first = [next(row["_timestamp"] for row in run.history if "train/loss" in row) for run in runs]
    return [begun - earlier.heartbeat_at for (earlier, _), (_, begun) in pairwise(zip(runs, first, strict=True))]


def ours(folder: Path, jobs: int, *extra: str) -> tuple[list[float], float]:
    """Overheads of a launch, and the pod's idle time as a share of its busy time."""
    with cloud(folder) as sky:
        seeds = "seed=" + ",".join(map(str, range(jobs)))
        command = [*WAVESPACE, "train", "-m", *RENDERED, *TRAINER, *extra, "name=launch", seeds, *LAUNCH]
        subprocess.run(command, env=sky.env, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (pod,) = sky.core.pods.values()
        ((start, stop),) = pod.billed
        busy = sum(run.heartbeat_at - _init(run) for run in sky.wandb.core.runs.values())
        return overheads(sky), ((stop or time.time()) - start - busy) / busy


def _init(run: object) -> float:
    return run.heartbeat_at - run.summary["_runtime"]  # type: ignore[attr-defined]


def bare(folder: Path, jobs: int) -> list[float]:
    """Overheads of `wandb agent` with `wavespace train` as its program."""
    with cloud(folder) as sky:
        command = ["${interpreter}", "-m", "wavespace.cli", "train", *RENDERED, *TRAINER, "name=bare", "logger=wandb"]
        config = {"method": "grid", "parameters": {"seed": {"values": list(range(jobs))}}}
        sweep = sky.wandb.core.create_sweep(
            config | {"command": [*command, "${args_no_hyphens}"]}, "tester", "wavespace"
        )
        agent = [sys.executable, "-m", "wandb", "agent", f"tester/wavespace/{sweep}"]
        subprocess.run(agent, env=sky.env, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return overheads(sky)


def main() -> None:
    """Measure and print."""
    os.environ.pop("WAVESPACE_RUNS", None)
    with tempfile.TemporaryDirectory() as aside:
        peer = statistics.median(bare(Path(aside) / "bare", 4))
        own = statistics.median(ours(Path(aside) / "ours", 4)[0])
        minute = (
            "trainer.max_time=00:00:01:00",
            "trainer.max_steps=-1",
            "trainer.val_check_interval=1000",
            "data.val_pieces=1",
        )
        _, idle = ours(Path(aside) / "idle", 6, *minute)
    print(f"a job's overhead: launch {own:.1f} s, bare wandb agent {peer:.1f} s, ratio {own / peer:.2f}")
    print(f"idle pod time, of busy time, for jobs of a minute: {idle:.3f} (goal 0.10)")


if __name__ == "__main__":
    main()

"""Whole launches with real processes: the command, `wandb agent`s, workers that train; only the services are ours.

A launch with several pods at once is in virtual time, in `test_money.py` and `test_chaos.py`.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from launcher.cloud import PLANTED, Cloud, cloud
from processes import begun, forked, wavespace
from standins.wandb_server import Run
from training import RENDERED, TRAINER
from wavespace import analysis

LAUNCH = [
    *("hydra/launcher=runpod", "hydra.launcher.image=us/wavespace:1", "hydra.launcher.max_cost=5"),
    *("hydra.launcher.poll_seconds=1", "hydra.launcher.idle_timeout=3", "hydra.launcher.max_pods=1"),
]
STEPS = 120
LONGER = [f"{key}={STEPS}" for key in ("trainer.max_steps", "trainer.val_check_interval")]


@pytest.fixture
def sky(tmp_path: Path) -> Iterator[Cloud]:
    with cloud(tmp_path) as here:
        yield here


def start(sky: Cloud, *words: str) -> BaseProcess:
    return begun([sky.folder / "out.txt"] * 2, sky.folder, sky.env, wavespace, *words)


def ended(process: BaseProcess, sky: Cloud) -> None:
    process.join(600)
    assert process.exitcode == 0, (sky.folder / "out.txt").read_text()


def until(happens: Callable[[], object], what: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"{what} did not happen in {seconds:g} s"
        time.sleep(0.1)


def runs_of(sky: Cloud) -> list[Run]:
    """W&B's runs of jobs, oldest first."""
    return [run for run in list(sky.wandb.core.runs.values()) if run.job_type != "pod"]


def states(sky: Cloud) -> list[str]:
    return [run.state for run in runs_of(sky)]


def steps(run: Run) -> list[int]:
    return [row["trainer/global_step"] for row in run.history if "train/loss" in row]


def results(sky: Cloud) -> list[dict]:
    (path,) = (sky.folder / "runs" / "launches").glob("*/results.json")
    return json.loads(path.read_text())["jobs"]


def architecture(checkpoint: str) -> None:
    import wavespace

    print(type(wavespace.load(checkpoint).model).__name__)


def test_a_launch_whose_controller_is_killed_is_left_alone_and_attached_to_later(sky: Cloud) -> None:
    command = ["train", "-m", *RENDERED, *TRAINER, "name=killed", "seed=0,1", *LAUNCH]
    first = start(sky, *command)
    until(lambda: "finished" in states(sky), "a first result")
    first.kill()
    first.join()
    ended(start(sky, *command, "hydra.launcher.detach=true"), sky)
    assert "wavespace pods attach" in (sky.folder / "out.txt").read_text()
    until(lambda: not sky.core.list(), "the pod's own end")
    assert [pod.ended_by for pod in sky.core.pods.values()] == ["pod"]
    ended(start(sky, "pods", "attach"), sky)

    jobs, runs = results(sky), runs_of(sky)
    assert [(job["index"], job["state"]) for job in jobs] == [(0, "finished"), (1, "finished")]
    assert sorted(run.config["job"][0] for run in runs) == ["0", "1"]
    assert len(sky.wandb.core.sweeps) == 1
    assert len(sky.core.created) == 1, "a pod too many"
    assert sky.wandb.drift == [] == sky.runpod.drift
    for run in runs:  # a run tells all of itself
        assert run.summary["outcome"] == "finished"
        assert run.config["data"]["seconds"] == 1.0
        assert run.config["pod_name"].startswith("ws-")
        assert run.summary["val/note_f1_onset"] == pytest.approx(jobs[int(run.config["job"][0])]["value"])
        assert steps(run) == list(range(1, 9)), "a step is missing or twice"
        assert {"_type": "audio-file"}.items() <= run.summary["samples/0 input"].items()

    # Its checkpoint travels: a notebook opens it by the artifact's name.
    artifact = f"wandb:tester/wavespace/checkpoint-killed-{runs[0].config['signature']}:latest"
    loaded = forked(architecture, artifact, cwd=sky.folder, **sky.env)
    assert loaded.stdout.split()[-1:] == ["Harmonic"], loaded.stderr

    # The launch's folder is read where it lies, by the command and from Python.
    (launch,) = (sky.folder / "runs" / "launches").iterdir()
    rows = analysis.table(launch)
    assert rows["state"].tolist() == ["finished"] * 2
    assert rows["seed"].tolist() == [0, 1]
    assert rows["val/note_f1_onset"].tolist() == [job["value"] for job in jobs]
    assert set(rows["monitor"]) == {"val/note_f1_onset"}
    ended(start(sky, "report", str(launch)), sky)
    page = (launch / "report.html").read_text()
    assert all(signature in page for signature in rows["signature"])

    # No key is anywhere but in the headers of requests. The pods' own environment has Runpod's secret, by name.
    said = [text.encode() for text in sky.runpod.requests] + sky.wandb.bodies
    said += [path.read_bytes() for path in sky.folder.rglob("*") if path.is_file()]
    for name, key in PLANTED.items():
        assert not any(key.encode() in text for text in said), f"{name} was written or sent"
    assert all(pod.env["WANDB_API_KEY"] == "{{ RUNPOD_SECRET_WANDB_API_KEY }}" for pod in sky.core.pods.values())


def test_runs_go_on_elsewhere_where_they_were_preempted_and_from_what_was_stored_where_the_host_is_lost(
    sky: Cloud,
) -> None:
    core, sky.runtime.base["WAVESPACE_STORE_SECONDS"] = sky.wandb.core, "0.3"
    sky.core.grace = 60.0
    command = ["train", "-m", *RENDERED, *TRAINER, *LONGER, "save_every=5", "data.val_pieces=1", "name=lost"]
    running = start(sky, *command, "seed=0,1", *LAUNCH)

    # The first job's pod is told to stop, and another one goes on with the same run at the step where it stopped.
    until(lambda: any(len(steps(run)) > 20 for run in runs_of(sky)), "training")
    sky.core.spot_stop(sky.core.live()[0])
    until(lambda: "finished" in states(sky), "the preempted run's end")
    preempted = runs_of(sky)[0]
    assert preempted.state == "finished"
    assert steps(preempted) == list(range(1, STEPS + 1)), "a step is missing or twice"
    assert "restored" in "".join(path.read_text() for path in sky.folder.rglob("agent.log"))

    # The second job's host is lost without a signal.
    until(lambda: len(runs_of(sky)) > 1, "the second job")
    first = runs_of(sky)[1]
    artifacts = lambda: [a for a in list(core.artifacts.values()) if a.run == first.id]  # noqa: E731
    stored = lambda: [a for a in artifacts() if a.state == "COMMITTED"]  # noqa: E731
    until(lambda: len(artifacts()) >= 3, "a second checkpoint that supersedes the first")
    assert len(stored()) <= 2
    sky.core.lose(sky.core.live()[0])
    time.sleep(0.5)  # for what was on its way
    first.heartbeat_at -= 1000  # W&B takes minutes to see that
    newest = stored()[-1]
    files = dict(newest.files)
    ended(running, sky)

    # What was stored is of one moment, and what it superseded is gone.
    step = torch.load(io.BytesIO(files["checkpoints/last.ckpt"]), weights_only=True)["global_step"]
    assert json.loads(files["status.json"])["step"] == json.loads(newest.metadata or "")["step"] == step > 0
    assert set(range(1, step + 1)) <= set(steps_of(files["metrics.csv"]))
    second = runs_of(sky)[2]
    (last,) = [a for a in core.artifacts.values() if a.state == "COMMITTED" and a.name == newest.name]
    assert json.loads(last.metadata or "") == {"state": "finished", "step": STEPS}

    # It went on from there.
    assert [run.state for run in runs_of(sky)] == ["finished", "crashed", "finished"]
    assert steps(second) == list(range(step + 1, STEPS + 1)), "it was to go on from the last stored step"
    assert steps_of(last.files["metrics.csv"]) == list(range(1, STEPS + 1)), "a step is missing or twice"
    assert len(sky.core.created) == 3, "each was to go on on another pod"
    assert sky.core.list() == []
    assert sky.wandb.drift == [] == sky.runpod.drift
    assert [(job["state"], job["attempts"]) for job in results(sky)] == [("finished", 0), ("finished", 1)]


def steps_of(metrics: bytes) -> list[int]:
    return [int(row["step"]) for row in csv.DictReader(io.StringIO(metrics.decode()))]

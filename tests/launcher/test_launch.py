"""Whole launches with real processes: the command, `wandb agent`s, workers that train; only the services are ours."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from launcher.cloud import PLANTED, Cloud, cloud
from training import RENDERED, TRAINER
from wavespace import analysis

WAVESPACE = [sys.executable, "-m", "wavespace.cli"]
LAUNCH = [
    *("hydra/launcher=runpod", "hydra.launcher.image=us/wavespace:1", "hydra.launcher.max_cost=5"),
    *("hydra.launcher.poll_seconds=1", "hydra.launcher.idle_timeout=3"),
]


@pytest.fixture
def sky(tmp_path: Path) -> Iterator[Cloud]:
    with cloud(tmp_path) as here:
        yield here


def start(sky: Cloud, *words: str) -> subprocess.Popen[str]:
    out = (sky.folder / "out.txt").open("a")
    return subprocess.Popen([*WAVESPACE, *words], env=sky.env, cwd=sky.folder, text=True, stdout=out, stderr=out)


def until(happens: Callable[[], object], what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"{what} did not happen in {seconds:g} s"
        time.sleep(0.2)


def states(sky: Cloud) -> Counter[str]:
    return Counter(run.state for run in sky.wandb.core.runs.values())


def results(sky: Cloud) -> list[dict]:
    (path,) = (sky.folder / "runs" / "launches").glob("*/results.json")
    return json.loads(path.read_text())["jobs"]


def test_a_launch_whose_controller_is_killed(sky: Cloud) -> None:
    command = ["train", "-m", *RENDERED, *TRAINER, "name=killed", "seed=0,1,2", *LAUNCH, "hydra.launcher.max_pods=2"]
    first = start(sky, *command)
    until(lambda: states(sky)["finished"] >= 1, "a first result")
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = start(sky, *command)
    assert again.wait(180) == 0, (sky.folder / "out.txt").read_text()

    jobs = results(sky)
    assert [(job["index"], job["state"]) for job in jobs] == [(0, "finished"), (1, "finished"), (2, "finished")]
    runs = [run for run in sky.wandb.core.runs.values() if run.job_type != "pod" and "duplicate" not in run.tags]
    assert Counter(run.config["job"] for run in runs) == Counter({run.config["job"]: 1 for run in runs})
    assert len(sky.wandb.core.sweeps) == 1
    assert sky.core.list() == []
    assert len(sky.core.created) == 2, "a pod too many"
    assert sky.wandb.drift == [] == sky.runpod.drift
    for run in runs:  # a run tells all of itself
        assert run.summary["outcome"] == "finished"
        assert run.config["data"]["seconds"] == 1.0
        assert run.config["pod_name"].startswith("ws-")
        assert run.summary["val/note_f1_onset"] == pytest.approx(jobs[int(run.config["job"][0])]["value"])
        steps = [row["trainer/global_step"] for row in run.history if "train/loss" in row]
        assert steps == list(range(1, 9)), "a step is missing or twice"
        assert {"_type": "audio-file"}.items() <= run.summary["samples/0 input"].items()

    # The launch's folder is read where it lies, by the command and from Python.
    (launch,) = (sky.folder / "runs" / "launches").iterdir()
    rows = analysis.table(launch)
    assert rows["state"].tolist() == ["finished"] * 3
    assert rows["seed"].tolist() == [0, 1, 2]
    assert rows["val/note_f1_onset"].tolist() == [job["value"] for job in jobs]
    assert set(rows["monitor"]) == {"val/note_f1_onset"}
    assert start(sky, "report", str(launch)).wait(120) == 0, (sky.folder / "out.txt").read_text()
    assert all(run.name in (launch / "report.html").read_text() for run in runs)

    # Its checkpoint travels: a notebook opens it by the artifact's name.
    script = "import sys, wavespace; print(type(wavespace.load(sys.argv[1]).model).__name__)"
    artifact = f"wandb:tester/wavespace/checkpoint-killed-{runs[0].config['signature']}:latest"
    opened = [sys.executable, "-c", script, artifact]
    loaded = subprocess.run(opened, env=sky.env, cwd=sky.folder, text=True, capture_output=True, timeout=120)
    assert loaded.stdout.split()[-1:] == ["Harmonic"], loaded.stderr

    # No key is anywhere but in the headers of requests. The pods' own environment has Runpod's secret, by name.
    said = [text.encode() for text in sky.runpod.requests] + sky.wandb.bodies
    said += [path.read_bytes() for path in sky.folder.rglob("*") if path.is_file()]
    for name, key in PLANTED.items():
        assert not any(key.encode() in text for text in said), f"{name} was written or sent"
    assert all(pod.env["WANDB_API_KEY"] == "{{ RUNPOD_SECRET_WANDB_API_KEY }}" for pod in sky.core.pods.values())


def test_a_preempted_run_goes_on_elsewhere_at_the_step_where_it_stopped(sky: Cloud) -> None:
    longer = ["trainer.max_steps=160", "trainer.val_check_interval=160", "save_every=160", "data.val_pieces=1"]
    command = ["train", "-m", *RENDERED, *TRAINER, *longer, "name=preempted", "fresh=true", "seed=0", *LAUNCH]
    sky.core.grace = 60.0
    running = start(sky, *command, "hydra.launcher.max_pods=1")
    history = lambda: [row for run in sky.wandb.core.runs.values() for row in run.history if "train/loss" in row]  # noqa: E731
    until(lambda: len(history()) > 20, "training")
    sky.core.spot_stop(sky.core.live()[0])
    assert running.wait(240) == 0, (sky.folder / "out.txt").read_text()

    (run,) = [run for run in sky.wandb.core.runs.values() if run.job_type != "pod"]
    assert run.state == "finished"
    assert len(sky.core.created) == 2, "it was to go on on another pod"
    assert [row["trainer/global_step"] for row in history()] == list(range(1, 161)), "a step is missing or twice"
    assert "restored" in "".join(path.read_text() for path in sky.folder.rglob("agent.log"))
    assert sky.core.list() == []
    (job,) = results(sky)
    assert (job["state"], job["attempts"]) == ("finished", 0)


def test_a_run_whose_host_is_lost_goes_on_elsewhere_from_what_was_stored_on_the_way(sky: Cloud) -> None:
    longer = ["trainer.max_steps=160", "trainer.val_check_interval=160", "save_every=5", "data.val_pieces=1"]
    command = ["train", "-m", *RENDERED, *TRAINER, *longer, "name=lost", "seed=0", *LAUNCH]
    core, sky.runtime.base["WAVESPACE_STORE_SECONDS"] = sky.wandb.core, "0.3"
    running = start(sky, *command, "hydra.launcher.max_pods=1")
    stored = lambda: [a for a in core.artifacts.values() if a.state == "COMMITTED"]  # noqa: E731
    until(lambda: len(core.artifacts) >= 3, "a second checkpoint that supersedes the first")
    assert len(stored()) <= 2
    (first,) = [run for run in core.runs.values() if run.job_type != "pod"]
    sky.core.lose(sky.core.live()[0])
    time.sleep(0.5)  # for what was on its way
    first.heartbeat_at -= 1000  # W&B takes minutes to see that
    newest = stored()[-1]
    files = dict(newest.files)
    assert running.wait(240) == 0, (sky.folder / "out.txt").read_text()

    # What was stored is of one moment, and what it superseded is gone.
    step = torch.load(io.BytesIO(files["checkpoints/last.ckpt"]), weights_only=True)["global_step"]
    assert json.loads(files["status.json"])["step"] == json.loads(newest.metadata or "")["step"] == step > 0
    assert set(range(1, step + 1)) <= set(steps_of(files["metrics.csv"]))
    (last,) = stored()
    assert json.loads(last.metadata or "") == {"state": "finished", "step": 160}

    # It went on from there.
    (second,) = [run for run in core.runs.values() if run.job_type != "pod" and run.id != first.id]
    assert (first.state, second.state) == ("crashed", "finished")
    assert len(sky.core.created) == 2
    logged = [row["trainer/global_step"] for row in second.history if "train/loss" in row]
    assert logged == list(range(step + 1, 161)), "it was to go on from the last stored step"
    assert steps_of(last.files["metrics.csv"]) == list(range(1, 161)), "a step is missing or twice"
    assert sky.wandb.drift == [] == sky.runpod.drift
    (job,) = results(sky)
    assert (job["state"], job["attempts"]) == ("finished", 1)


def steps_of(metrics: bytes) -> list[int]:
    return [int(row["step"]) for row in csv.DictReader(io.StringIO(metrics.decode()))]


def test_a_detached_launch_ends_its_pod_and_is_attached_to_later(sky: Cloud) -> None:
    command = ["train", "-m", *RENDERED, *TRAINER, "name=left", "seed=0", *LAUNCH, "hydra.launcher.detach=true"]
    assert start(sky, *command).wait(90) == 0
    assert "wavespace pods attach" in (sky.folder / "out.txt").read_text()
    until(lambda: not sky.core.list(), "the pod's own end")
    assert [pod.ended_by for pod in sky.core.pods.values()] == ["pod"]
    assert start(sky, "pods", "attach").wait(60) == 0, (sky.folder / "out.txt").read_text()
    assert [job["state"] for job in results(sky)] == ["finished"]
    assert len(sky.core.created) == 1, "nothing was left to rent a pod for"

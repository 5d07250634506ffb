"""A large launch in which much goes wrong, with real processes: the command, `wandb agent`s and workers that train.

`make chaos` runs it. What goes wrong is seeded; whom it meets is up to the machine's scheduler. A pod takes about a
gigabyte. The checkout must stay as it is meanwhile: each process reads it, and a job refuses another version's work.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from launcher.cloud import Cloud, cloud
from launcher.test_launch import start, steps_of, until
from training import RENDERED, TRAINER
from wavespace.launchfile import read_results
from wavespace_launcher.ledger import Launch
from wavespace_launcher.wandb_client import DUPLICATE

JOBS = int(os.environ.get("WAVESPACE_CHAOS_JOBS", "0"))
PODS = int(os.environ.get("WAVESPACE_CHAOS_PODS", "8"))
SEED = int(os.environ.get("WAVESPACE_CHAOS_SEED", "0"))
STEPS, RETRIES, POLL = 2, 3, 3.0
TINY = [
    *("data.val_pieces=1", "data.test_pieces=1", "data.piece_seconds=2.0"),
    *(f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}", "save_every=1"),
]
COMMAND = [
    *("train", "-m", *RENDERED, *TRAINER, *TINY, "name=chaos", f"seed=range(0,{JOBS})", "hydra/launcher=runpod"),
    *("hydra.launcher.image=us/wavespace:1", "hydra.launcher.max_cost=10", "hydra.launcher.max_hours=2"),
    *(f"hydra.launcher.max_pods={PODS}", f"hydra.launcher.retries={RETRIES}", f"hydra.launcher.poll_seconds={POLL}"),
]
BLOWS = {"agent": 6, "worker": 6, "host": 3, "spot": 3, "controller": 1}
"""What is struck, and how often beside the others: processes by a word of their command line."""

LATE = 30.0
"""Seconds by which a controller may know less than W&B: answers get lost, and it shares its processor with much."""


def unsettle(sky: Cloud) -> None:
    """Answers of both services get lost or make no sense, W&B's grid errs, machines are full."""
    for kind in ("lost", "429", "500", "html"):
        sky.wandb.fail("*", kind, times=None, probability=0.004)
        sky.runpod.fail("*", kind, times=10**9, probability=0.02)
    sky.wandb.fail("UpsertSweep", "lost")
    sky.runpod.fail("podFindAndDeployOnDemand", "capacity", times=10**9, probability=0.2)
    core = sky.wandb.core
    core.issue_twice, core.issue_never = 0.05, 0.05
    core.silence = core.pending_silence = 90.0  # three heartbeats of the client's
    sky.runtime.base["WAVESPACE_STORE_SECONDS"] = "1"


def strike(sky: Cloud, kind: str, rng: random.Random) -> bool:
    """Kill a process of a pod's, or a pod; False where there is none."""
    if kind in ("host", "spot"):
        victims = sky.core.live()
        if victims and kind == "host":
            sky.core.lose(rng.choice(victims))
        elif victims:
            sky.core.grace = rng.choice([1.0, 60.0])  # with time to save its training, and without
            sky.core.spot_stop(rng.choice(victims))
        return bool(victims)
    found = [process for process in sky.core.processes() if kind in words(process)]
    if found:
        os.kill(rng.choice(found), signal.SIGKILL)
    return bool(found)


def words(process: int) -> list[str]:
    """A process's command line; nothing where it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def run_to_the_end(sky: Cloud, rng: random.Random) -> Counter[str]:
    """The same command until its launch has settled; for every third run or so that W&B hands out, a blow follows."""
    struck: Counter[str] = Counter()
    handed_out, due, end = 0, list[float](), time.monotonic() + 600 + 60 * JOBS
    while True:
        process = start(sky, *COMMAND)
        struck["commands"] += 1
        try:
            while process.poll() is None:
                time.sleep(0.5)
                now, runs = time.monotonic(), len(sky.wandb.core.runs)
                assert now < end, "the launch does not end"
                due += [now + rng.uniform(0, 30) for _ in range(runs - handed_out) if rng.random() < 0.3]
                handed_out = runs
                for when in [when for when in due if when <= now]:
                    (kind,) = rng.choices(list(BLOWS), list(BLOWS.values()))
                    if kind == "controller":
                        process.kill()
                    if kind == "controller" or strike(sky, kind, rng):
                        due.remove(when)
                        struck[kind] += 1
        finally:
            process.kill()
        if events(sky)[-1:] == ["settled"]:
            return struck
        time.sleep(rng.choice([0.0, 5.0, 30.0]))  # until somebody notices


def events(sky: Cloud) -> list[str]:
    """Kinds of the ledger's events, once there is one."""
    return [event["kind"] for launch in Launch.all(sky.folder / "runs") for event in launch.events()]


def hold(sky: Cloud) -> None:
    """What must be true at the end, by what the stand-ins have seen."""
    (launch,) = Launch.all(sky.folder / "runs")
    told, found = json.loads((launch.folder / "results.json").read_text()), read_results(launch.folder)
    core = sky.wandb.core
    runs = {run.id: run for run in core.runs.values() if run.job_type != "pod"}
    assert told["why"] == "every job has ended"
    assert [result.index for result in found] == list(range(JOBS)), "an override-set is lost, or is there twice"
    stored = [run for run in runs.values() if run.state == "finished" and run.summary.get("outcome") == "finished"]
    ends = {str(run.config["job"]): run.heartbeat_at for run in sorted(stored, key=lambda run: -run.heartbeat_at)}
    counted = [result.run for result in found if result.state == "finished"]
    assert len(set(counted)) == len(counted) == len(ends), "a result is lost, or counts twice"
    for job, result in zip(launch.plan.jobs, found, strict=True):
        if result.state == "finished":
            run = runs[str(result.run)]
            assert run in stored
            assert (run.config["job"], run.config["seed"]) == (job.text, job.index), "the result is another job's"
            assert result.value == run.summary["val/note_f1_onset"]
            name = f"checkpoint-chaos-{job.signature}"
            (*_, last) = [a for a in core.artifacts.values() if (a.name, a.state) == (name, "COMMITTED")]
            assert steps_of(last.files["metrics.csv"]) == list(range(1, STEPS + 1)), "a step is missing or twice"
        else:
            tried = [run for run in runs.values() if run.config["job"] == job.text and DUPLICATE not in run.tags]
            assert (result.state, bool(result.reason)) == ("failed", True)
            assert len(tried) >= result.attempts > RETRIES

    until(lambda: not sky.core.processes(), "the end of the pods' processes")
    assert sky.core.list() == [], "a pod is left"
    assert sky.core.spent() <= told["spent"] + 1e-3 <= launch.plan.settings.max_cost
    assert sky.core.most_live <= PODS
    for creation in sky.core.created:
        left = sum(ends.get(job.text, creation.time) > creation.time - LATE for job in launch.plan.jobs)
        assert creation.live <= left + 1  # one may have come by itself, from a request thought lost
    assert sky.wandb.drift == [] == sky.runpod.drift


@pytest.mark.skipif(not JOBS, reason="`make chaos` runs it")
def test_many_jobs_of_which_many_are_struck(tmp_path: Path) -> None:
    with cloud(tmp_path) as sky:
        unsettle(sky)
        struck = run_to_the_end(sky, random.Random(SEED))
        print("struck:", struck, "| faults of W&B:", [(fault.kind, fault.hits) for fault in sky.wandb.faults])
        print("faults of Runpod:", Counter(sky.runpod.faults.fired), "| pods:", len(sky.core.created))
        print("runs:", Counter(run.state for run in sky.wandb.core.runs.values()), f"| ${sky.core.spent():.3f}")
        hold(sky)

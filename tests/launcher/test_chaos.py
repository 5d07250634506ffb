"""Launches in which much goes wrong at once: each job ends once, no pod is left, no dollar too much is spent.

Virtual time; `make chaos` runs the large one, and more seeds.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from launcher.simulation import Chances, Killed, SimulatedCloud, finish, simulated
from wavespace.launchfile import JobResult
from wavespace_launcher.ledger import Launch
from wavespace_launcher.wandb_client import NoResponse

SEEDS = range(int(os.environ.get("WAVESPACE_CHAOS_SEEDS", "12")))


def unsettle(cloud: SimulatedCloud, rng: random.Random) -> None:
    """Hosts vanish, agents die, jobs fail, answers are lost, W&B's grid errs, machines are full or never start."""
    cloud.chances = Chances(host_lost=1.5, spot=1.0, agent_killed=2.0, job_fails=0.05)
    cloud.wandb.core.issue_twice, cloud.wandb.core.issue_never = 0.1, 0.1
    lost = dict.fromkeys(("lost", "refuse", "429", "html", "no_data"), 0.04)
    for kind, probability in lost.items():
        for operation in ("podFindAndDeployOnDemand", "podTerminate", "pods"):
            cloud.runpod.fail(operation, kind, times=10**9, probability=probability)
    cloud.runpod.fail("podFindAndDeployOnDemand", "capacity", times=10**9, probability=0.2)
    cloud.wandb.fail("UpsertSweep", "lost", times=1, probability=0.3)
    slow = cloud.core.boot
    cloud.core.boot = lambda pod: float("inf") if rng.random() < 0.08 else slow(pod)
    cloud.core.list_lag = rng.choice([0.0, 0.0, 20.0])


def run_to_the_end(cloud: SimulatedCloud, launch: Launch, rng: random.Random, kills: int) -> list[JobResult]:
    """The same command again and again, killed now and then."""
    while True:
        killed_after = rng.randrange(60) if kills else None
        kills -= 1
        try:
            controller = cloud.controller(Launch(launch.folder, cloud.world.time), killed_after)
            return finish(cloud, controller)
        except (Killed, NoResponse):
            cloud.world.sleep(rng.choice([5.0, 60.0, 1800.0]))  # until somebody notices


def hold(cloud: SimulatedCloud, launch: Launch, found: list[JobResult], jobs: int) -> None:
    """What must be true after any launch."""
    plan = launch.plan
    assert [result.index for result in found] == list(range(jobs))
    assert cloud.core.live() == [], "a pod is left"
    assert cloud.core.spent() <= plan.settings.max_cost
    assert cloud.core.most_live <= plan.settings.max_pods
    done = Counter(job for _, job in cloud.finished)
    events = [json.loads(line) for line in (launch.folder / "ledger.jsonl").read_text().splitlines()]
    why = next(event["why"] for event in reversed(events) if event["kind"] == "drain")
    for job, result in zip(plan.jobs, found, strict=True):
        if result.state == "finished":
            assert done[job.text] >= 1
            assert result.value == job.index, "the result is another job's"
        elif why == "every job has ended":
            assert result.state == "failed"
            assert result.attempts > plan.settings.retries
    if why != "every job has ended":  # a launch may give up, in words; it then has tried
        assert "did nothing" in why or "before any succeeded" in why or "max_cost" in why, why
    ends = {text: min(time for time, job in cloud.finished if job == text) for text in done}
    for creation in cloud.core.created:
        known = sum(
            ends.get(job.text, creation.time) > creation.time - 2 * plan.settings.poll_seconds for job in plan.jobs
        )
        assert creation.live <= max(known, 1) + 1  # one may have come by itself, from a request thought lost
    assert cloud.wandb.drift == [] == cloud.runpod.drift


@pytest.mark.parametrize("seed", SEEDS)
def test_a_launch_in_which_much_goes_wrong(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    with simulated(tmp_path, seed=seed, job_seconds=rng.choice([20.0, 120.0])) as cloud:
        unsettle(cloud, rng)
        launch = cloud.launch(6, retries=2, max_cost=rng.choice([3.0, 30.0]))
        found = run_to_the_end(cloud, launch, rng, kills=rng.randrange(4))
        hold(cloud, launch, found, 6)


@pytest.mark.skipif("WAVESPACE_CHAOS_SEEDS" not in os.environ, reason="`make chaos` runs it")
def test_200_jobs_on_8_pods(tmp_path: Path) -> None:
    rng = random.Random(0)
    with simulated(tmp_path, seed=0, job_seconds=300.0) as cloud:
        unsettle(cloud, rng)
        launch = cloud.launch(200, retries=3, max_cost=100.0, max_pods=8)
        # Of so many pods, three in a row may do nothing by chance: the same command resumes.
        for kills in (12, 0, 0, 0):
            found = run_to_the_end(cloud, launch, rng, kills)
            if all(result.ended for result in found):
                break
        hold(cloud, launch, found, 200)
        assert sum(result.state == "finished" for result in found) >= 195

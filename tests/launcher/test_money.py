"""The ten rules that limit the cost (docs/runpod.md), each with a test that fails when its check is removed.

Virtual time, as in `simulation`; one pair of stand-ins serves every test, emptied between them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.simulation import STEP, Killed, SimulatedCloud, SimulatedPod, finish, simulated
from standins import runpod_server
from standins.wandb_server import KEY
from wavespace.commands import pods as verb
from wavespace_launcher import pod_entry
from wavespace_launcher.controller import GRACE, Controller
from wavespace_launcher.launch import RunpodSession, interruptible
from wavespace_launcher.ledger import Launch
from wavespace_launcher.plan import OTHER_VERSION
from wavespace_launcher.pod_entry import PodEntry
from wavespace_launcher.runpod_client import NoResponse, Runpod
from wavespace_launcher.wandb_client import Wandb, WandbSweep

RENT = "podFindAndDeployOnDemand"
Lives = Callable[[SimulatedPod], None]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedCloud]:
    with simulated(tmp_path_factory.mktemp("launches"), job_seconds=20.0) as cloud:
        yield cloud


@pytest.fixture
def cloud(stand_ins: SimulatedCloud, tmp_path: Path) -> Iterator[SimulatedCloud]:
    empty(stand_ins, tmp_path)
    yield stand_ins
    assert stand_ins.runpod.drift == [] == stand_ins.wandb.drift
    vars(stand_ins).update(job_seconds=20.0)
    for name in ("create", "start", "boot", "list_lag"):  # what a test has put in their places
        setattr(stand_ins.core, name, PLAIN[name](stand_ins))
    stand_ins.chances = type(stand_ins.chances)()


PLAIN: dict[str, Callable[[SimulatedCloud], Any]] = {
    "create": lambda cloud: type(cloud.core).create.__get__(cloud.core),
    "start": lambda cloud: cloud._start,
    "boot": lambda cloud: lambda pod: cloud.core.gpus[pod.gpu].boot_seconds,
    "list_lag": lambda cloud: 0.0,
}


def empty(cloud: SimulatedCloud, folder: Path) -> None:
    """Accounts on which nothing ever was."""
    cloud.folder = folder
    core, wandb = cloud.core, cloud.wandb.core
    core.pods.clear(), core.created.clear(), cloud.finished.clear()
    core.capacity.clear()
    core.most_live = 0
    for sweep in wandb.sweeps:
        wandb.delete_sweep(sweep)
    wandb.projects.clear()
    cloud.runpod.faults.clear(), cloud.runpod.requests.clear(), cloud.wandb.faults.clear()
    cloud.world.moves[:] = [core.tick]


def left(cloud: SimulatedCloud) -> list[str]:
    """Pods that cost: also a stopped one does, for its disk."""
    return [pod.name for pod in cloud.core.pods.values() if pod.gone is None]


def events(launch: Launch, kind: str) -> list[dict[str, Any]]:
    return [event for event in launch.events() if event["kind"] == kind]


def why(launch: Launch) -> str:
    return events(launch, "drain")[-1]["why"]


def at(cloud: SimulatedCloud, seconds: float, deed: Callable[[], object]) -> None:
    """Do something once, when so much time has passed."""
    due = cloud.world.now + seconds

    def move() -> None:
        if cloud.world.now >= due:
            cloud.world.moves.remove(move)
            deed()

    cloud.world.moves.append(move)


def until_killed(cloud: SimulatedCloud, launch: Launch, seconds: float) -> None:
    """Lead a launch for so long, then be gone."""

    def kill() -> None:
        raise Killed

    controller = cloud.controller(launch)
    vars(controller)["_end_all"] = lambda: None  # nothing runs after a `kill -9`
    at(cloud, seconds, kill)
    with pytest.raises(Killed):
        finish(cloud, controller)


def pods_that(cloud: SimulatedCloud, change: Lives) -> None:
    """Each pod is another than the usual."""

    def start(pod: runpod_server.Pod) -> SimulatedPod:
        simulated = PLAIN["start"](cloud)(pod)
        change(simulated)
        return simulated

    cloud.core.start = start


def without_own_end(pod: SimulatedPod) -> None:
    """Its entry's timers fail."""
    pod.until = pod.idle = math.inf


def hung(pod: SimulatedPod) -> None:
    """Its container runs, and nothing in it does."""
    pod.move = lambda: None  # type: ignore[method-assign]
    pod.cloud.world.moves[-1] = pod.move


def without_runpods_end(pod: SimulatedPod) -> None:
    pod.pod.terminate_after = math.inf


class Crash(Exception):
    """An error of ours."""


def crashing(controller: Controller, at_step: int) -> Controller:
    """A controller in which something goes wrong at the end of a step."""
    steps = itertools.count(1)

    def show(*_: object) -> None:
        if next(steps) == at_step:
            raise Crash

    controller.show = show
    return controller


# --- M1: nothing that costs is known only to a process


@pytest.mark.parametrize("lag", [0.0, 20.0], ids=["listed at once", "listed late"])
def test_m1_a_lost_answer_and_then_an_error_of_ours_leave_no_pod(cloud: SimulatedCloud, lag: float) -> None:
    cloud.core.list_lag = lag
    cloud.runpod.fail(RENT, "lost")
    launch = cloud.launch(2)
    with pytest.raises(Crash):
        finish(cloud, crashing(cloud.controller(launch), at_step=1))
    cloud.world.sleep(lag)
    assert len(cloud.core.created) == 1
    assert left(cloud) == []


def test_m1_an_error_while_ctrl_c_is_obeyed_still_ends_the_pods(cloud: SimulatedCloud) -> None:
    controller = cloud.controller(cloud.launch(3))

    def interrupt_and_fail() -> None:
        crashing(controller, at_step=1)
        raise KeyboardInterrupt

    at(cloud, 60, interrupt_and_fail)
    with pytest.raises(Crash):
        finish(cloud, controller)
    assert len(cloud.core.created) == 3
    assert left(cloud) == []


def test_m1_a_controller_may_be_killed_at_any_line_and_the_next_one_goes_on(
    cloud: SimulatedCloud, tmp_path: Path
) -> None:
    for killed_after in itertools.count():
        empty(cloud, tmp_path / str(killed_after))
        cloud.core.list_lag = 20.0
        launch = cloud.launch(2, max_pods=2, poll_seconds=60)
        ended = False
        with suppress(Killed):
            finish(cloud, cloud.controller(Launch(launch.folder, cloud.world.time), killed_after))
            ended = True
        if not ended:
            cloud.world.sleep(5)
            found = finish(cloud, cloud.controller(launch))
            assert [result.state for result in found] == ["finished", "finished"], killed_after
        assert Counter(job for _, job in cloud.finished) == Counter(job.text for job in launch.plan.jobs), killed_after
        assert len(cloud.wandb.core.sweeps) == 1, killed_after
        assert left(cloud) == [], killed_after
        slots = [pod.name.rsplit("-", 1)[0] for pod in cloud.core.pods.values()]
        assert sorted(slots) == sorted(set(slots)), f"two pods for one slot: {killed_after}"
        if ended:
            break
    assert killed_after > 25


# --- M2: dollars


def liability(cloud: SimulatedCloud) -> float:
    """What the account has spent, and must spend if every pod lives as long as Runpod lets it."""
    rest = sum((pod.terminate_after - cloud.world.now) / 3600 * pod.price for pod in cloud.core.live())
    return cloud.core.spent() + rest


def test_m2_no_more_pods_than_could_be_paid_to_their_last_second(cloud: SimulatedCloud) -> None:
    seen: list[float] = []
    cloud.world.moves.append(lambda: seen.append(liability(cloud)))
    cloud.job_seconds = 1800.0
    launch = cloud.launch(8, max_pods=8, max_cost=2.0, gpus=["A"], clouds=["community"], poll_seconds=120)
    found = finish(cloud, cloud.controller(launch))
    assert cloud.core.most_live == 3  # of $0.60 each
    assert max(seen) <= 2.0
    assert all(result.state == "finished" for result in found)


def test_m2_a_price_above_the_listed_one_ends_pods_before_the_money_does(cloud: SimulatedCloud) -> None:
    plain = cloud.core.create

    def dear(*arguments: Any, **facts: Any) -> runpod_server.Pod:
        pod = plain(*arguments, **facts)
        pod.price *= 3
        return pod

    cloud.core.create = dear  # type: ignore[method-assign]
    cloud.job_seconds = 1e5
    pods_that(cloud, without_own_end)
    launch = cloud.launch(6, max_pods=3, max_cost=2.0, gpus=["A"], clouds=["community"], poll_seconds=120)
    finish(cloud, cloud.controller(launch))
    assert cloud.core.most_live == 3
    assert cloud.core.spent() <= 2.0
    assert left(cloud) == []
    assert {event["why"] for event in events(launch, "pod.ending")} >= {"its price would exceed max_cost"}


def test_m2_a_price_that_rises_while_a_request_is_unanswered_is_no_error(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(2, max_pods=2, max_cost=2.3, clouds=["community"])
    cloud.core.limit("A", 0)
    cloud.core.limit("A", 1, data_center="US-TX-3")
    cloud.runpod.fail(RENT, "refuse", after=2)  # the one for a dearer B, of which no id is known then

    def rise() -> None:
        cloud.core.created[0].pod.price = 0.7

    at(cloud, 5, rise)
    finish(cloud, cloud.controller(launch))
    assert cloud.core.spent() <= 2.3
    (unsure,) = events(launch, "pod.unsure")
    ended = [event["name"] for event in events(launch, "pod.ending") if "max_cost" in event["why"]]
    assert ended == [cloud.core.created[0].pod.name] != [unsure["name"]]


@pytest.mark.parametrize("said", ["Your balance is too low", "Your spending limit is reached"])
def test_m2_a_refusal_of_the_account_ends_the_launch_at_once(cloud: SimulatedCloud, said: str) -> None:
    def refuse(*_: Any, **__: Any) -> runpod_server.Pod:
        raise runpod_server.Refused(said)

    cloud.core.create = refuse  # type: ignore[method-assign]
    launch, begun = cloud.launch(2), cloud.world.now
    finish(cloud, cloud.controller(launch))
    assert why(launch) == f"A (community): {said}"
    assert cloud.world.now - begun < 60


def test_m2_a_launch_without_money_for_another_pod_ends_in_words(cloud: SimulatedCloud) -> None:
    cloud.job_seconds = 3000.0
    launch = cloud.launch(
        9, max_pods=2, max_cost=0.7, max_hours=1.0, gpus=["A"], clouds=["community"], poll_seconds=120
    )
    found = finish(cloud, cloud.controller(launch))
    assert "of max_cost are left" in why(launch)
    assert 0 < sum(result.state == "finished" for result in found) < 9
    assert cloud.core.spent() <= 0.7


# --- M3: three ends, each enough by itself


def test_m3_a_pods_entry_ends_it_when_it_is_idle_or_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    entry = PodEntry("launch", "pod-of-a-test", "us/project", until=now + 7200, idle=300.0, stay=False)
    assert entry._over() is None
    now += 301
    assert "no job for 5 minutes" in str(entry._over())
    entry.last_work = now = entry.until - 100
    assert entry._over() is None
    now += 60
    assert entry._over() == "its time is over"
    assert now < entry.until


def test_m3_without_controller_and_date_a_pod_ends_itself(cloud: SimulatedCloud) -> None:
    pods_that(cloud, without_runpods_end)
    launch = cloud.launch(9, max_pods=2, max_hours=0.2, idle_timeout=2)
    until_killed(cloud, launch, 60)
    for name in list(cloud.wandb.core.sweeps):
        cloud.wandb.core.set_sweep_state(name, "PAUSED")  # no more jobs, and none that is all done
    assert len(cloud.core.live()) == 2
    cloud.world.sleep(2 * 60 + 60)
    assert left(cloud) == []
    assert {pod.ended_by for pod in cloud.core.pods.values()} == {"account"}  # the simulated entry's call


def test_m3_without_controller_and_entry_runpod_ends_a_pod(cloud: SimulatedCloud) -> None:
    pods_that(cloud, hung)
    launch = cloud.launch(2, max_pods=2, max_hours=0.5)
    until_killed(cloud, launch, 60)
    cloud.world.sleep(1800 - 60)
    assert left(cloud) == []
    assert {pod.ended_by for pod in cloud.core.pods.values()} == {"deadline"}


def test_m3_without_entry_and_date_the_controller_ends_a_pod_that_works_too_long(cloud: SimulatedCloud) -> None:
    def lasting(pod: SimulatedPod) -> None:
        without_own_end(pod), without_runpods_end(pod)

    pods_that(cloud, lasting)
    cloud.job_seconds = 1e9
    launch = cloud.launch(1, max_hours=0.51, max_cost=0.36, poll_seconds=120)
    finish(cloud, cloud.controller(launch))
    assert [event["why"] for event in events(launch, "pod.ending")] == ["its time is over"] * 2
    assert all(cloud.core.cost(pod) <= pod.price * (1836 + 120) / 3600 for pod in cloud.core.pods.values())
    assert cloud.core.spent() <= events(launch, "settled")[0]["spent"], "the ledger knows of less than was spent"


def test_m3_without_entry_and_date_the_controller_ends_a_pod_that_does_nothing(cloud: SimulatedCloud) -> None:
    def idling(pod: SimulatedPod) -> None:
        hung(pod), without_runpods_end(pod)

    pods_that(cloud, idling)
    launch = cloud.launch(1, idle_timeout=2, max_hours=0.25, poll_seconds=30)
    finish(cloud, cloud.controller(launch))
    assert {event["why"] for event in events(launch, "pod.ending")} == {"it had no job"}
    assert cloud.core.spent() < 3 * 0.5 * (2 * 60 + GRACE + 4 * 30) / 3600
    assert left(cloud) == []


def test_m3_a_controller_comes_back_to_pods_of_a_dead_one(cloud: SimulatedCloud) -> None:
    def lasting(pod: SimulatedPod) -> None:
        without_own_end(pod), without_runpods_end(pod)

    pods_that(cloud, lasting)
    cloud.job_seconds = 1e9
    launch = cloud.launch(2, max_pods=2, max_hours=0.5)
    until_killed(cloud, launch, 60)
    cloud.world.sleep(20_000)
    assert len(cloud.core.live()) == 2
    verb.reap([launch])
    assert left(cloud) == []


# --- M4: no more pods than jobs


def test_m4_pods_are_as_few_as_the_jobs_that_are_left(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(2, max_pods=5)
    finish(cloud, cloud.controller(launch))
    assert cloud.core.most_live == 2
    empty(cloud, cloud.folder / "more")
    launch = cloud.launch(5, max_pods=2, poll_seconds=5)
    cloud.core.list_lag = 20.0
    finish(cloud, cloud.controller(launch))
    assert cloud.core.most_live == 2


def test_m4_pods_that_have_not_begun_end_when_the_jobs_have(cloud: SimulatedCloud) -> None:
    cloud.core.boot = lambda pod: 0.0 if pod.name.endswith("-0-1") else 600.0
    launch = cloud.launch(3, max_pods=3)
    over: list[float] = []

    def look() -> None:
        known = [when for when, _ in cloud.finished if when <= cloud.world.now - 2 * 15]
        if len(cloud.core.live()) > 3 - len(known):
            over.append(cloud.world.now)

    cloud.world.moves.append(look)
    found = finish(cloud, cloud.controller(launch))
    assert {cloud.core.pods[str(result.pod)].name for result in found} == {f"ws-{launch.id}-0-1"}
    assert over == []


def test_m4_a_pod_that_waits_while_another_does_the_last_job_ends(cloud: SimulatedCloud) -> None:
    cloud.job_seconds = 600.0

    def second_is_short() -> None:
        cloud.job_seconds = 30.0

    pods_that(cloud, without_own_end)
    at(cloud, 60, second_is_short)  # the two jobs that have begun are long; the third, on a pod that is late, is short
    cloud.core.boot = lambda pod: 90.0 if pod.name.endswith("-2-1") else 0.0
    launch = cloud.launch(3, max_pods=3)
    finish(cloud, cloud.controller(launch))
    (third,) = [pod for pod in cloud.core.pods.values() if pod.name.endswith("-2-1")]
    assert third.gone is not None
    assert third.gone - third.created < 90 + 10 + 30 + GRACE + 4 * 15
    assert [event["why"] for event in events(launch, "pod.ending") if event["name"] == third.name] == ["surplus"]


def test_m4_a_pod_that_did_a_job_between_two_looks_is_not_idle(cloud: SimulatedCloud) -> None:
    cloud.core.boot = lambda pod: 60.0 if pod.name.endswith("-1-1") else 20.0
    cloud.job_seconds = 25.0  # so that each look finds a run that has just been issued, and has no pod yet
    launch = cloud.launch(2, max_pods=2, poll_seconds=40, retries=0)
    found = finish(cloud, cloud.controller(launch))
    assert [(result.state, result.attempts) for result in found] == [("finished", 0)] * 2


# --- M5: machines that do not start


def test_m5_three_machines_that_do_not_start_are_of_three_kinds_and_the_last(cloud: SimulatedCloud) -> None:
    cloud.core.boot = lambda pod: math.inf
    launch = cloud.launch(4, max_pods=1, boot_timeout=5)
    finish(cloud, cloud.controller(launch))
    tried = [(pod.gpu, pod.cloud) for _, pod, _ in cloud.core.created]
    assert tried == [("A", "COMMUNITY"), ("A", "SECURE"), ("B", "COMMUNITY")]
    assert why(launch) == "the last 3 pods did nothing"
    for pod in cloud.core.pods.values():
        assert cloud.core.cost(pod) < pod.price * (5 * 60 + 4 * 15) / 3600
    cloud.core.boot = lambda pod: 20.0
    found = finish(cloud, cloud.controller(launch))  # the same command, once the cause is mended
    assert [result.state for result in found] == ["finished"] * 4


def test_m5_the_next_kind_of_machine_does_the_jobs(cloud: SimulatedCloud) -> None:
    cloud.core.boot = lambda pod: math.inf if pod.gpu == "A" else 20.0
    launch = cloud.launch(2, max_pods=1, boot_timeout=5)
    found = finish(cloud, cloud.controller(launch))
    assert [result.state for result in found] == ["finished", "finished"]
    assert [pod.gpu for _, pod, _ in cloud.core.created] == ["A", "A", "B"]


# --- M6: what cannot work


def test_m6_three_failures_before_any_success_end_the_launch(cloud: SimulatedCloud) -> None:
    cloud.chances.always_fails = frozenset(range(40))
    launch = cloud.launch(40, max_pods=1, retries=0)
    finish(cloud, cloud.controller(launch))
    assert why(launch) == "3 jobs failed before any succeeded: it failed"
    assert len(cloud.wandb.core.runs) <= 5
    assert len(cloud.core.created) == 1
    finish(cloud, cloud.controller(launch))  # the same command, and the cause is not mended: it ends as soon
    assert len(cloud.wandb.core.runs) <= 10
    cloud.chances.always_fails = frozenset()
    found = finish(cloud, cloud.controller(launch))
    assert [result.state for result in found].count("finished") >= 30
    assert why(launch) == "every job has ended"


def test_m6_failures_after_a_success_end_no_launch(cloud: SimulatedCloud) -> None:
    cloud.chances.always_fails = frozenset(range(1, 6))
    launch = cloud.launch(7, max_pods=1, retries=0)
    found = finish(cloud, cloud.controller(launch))
    assert [result.state for result in found] == ["finished", *["failed"] * 5, "finished"]
    assert why(launch) == "every job has ended"


def test_m6_pods_whose_self_test_fails_end_the_launch(cloud: SimulatedCloud) -> None:
    def broken(pod: SimulatedPod) -> None:
        hung(pod)
        at(pod.cloud, 10, lambda: pod.cloud.core.terminate(pod.pod.id))

    pods_that(cloud, broken)
    launch = cloud.launch(6, max_pods=1)
    finish(cloud, cloud.controller(launch))
    assert why(launch) == "the last 3 pods did nothing"
    assert len(cloud.core.created) == 3


def test_m6_a_job_that_another_version_refuses_ends_the_launch_and_costs_no_attempt(cloud: SimulatedCloud) -> None:
    cloud.chances.refuses = frozenset([2, 3, 4])
    launch = cloud.launch(5, max_pods=1, retries=0)
    found = finish(cloud, cloud.controller(launch))
    assert [result.state for result in found] == ["finished", "finished", "retry", "queued", "queued"]
    assert why(launch) == "this image is another; the same command with it resumes"
    assert len(cloud.core.created) == 1
    assert left(cloud) == []
    finish(cloud, cloud.controller(launch))  # with the same image
    assert len(cloud.core.created) == 2
    cloud.chances.refuses = frozenset()
    found = finish(cloud, cloud.controller(launch))
    assert [(result.state, result.attempts) for result in found] == [("finished", 0)] * 5
    assert len(cloud.finished) == 5


def test_m6_a_pod_of_another_version_ends_at_the_first_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PodEntry("launch", "pod", "us/project", until=math.inf, idle=60.0, stay=True)
    entry.folder, started = tmp_path, list[WandbSweep]()

    def start(sweep: WandbSweep) -> subprocess.Popen[bytes]:
        started.append(sweep)
        (tmp_path / OTHER_VERSION).write_text("this image is another")
        return subprocess.Popen(["sleep", "60"])

    monkeypatch.setattr(pod_entry, "Wandb", lambda *_: None)
    monkeypatch.setattr(pod_entry, "LOOK", 0.05)
    for name, stand_in in {
        "_start_agent": start,
        "_self_test": lambda: None,
        "_open_sweep": lambda _: WandbSweep("", "", True),
    }.items():
        monkeypatch.setattr(entry, name, stand_in)
    assert entry._work() == "this image is another"
    assert len(started) == 1


# --- M7: whatever ends the process ends the pods


def interrupt() -> None:
    raise KeyboardInterrupt


def test_m7_ctrl_c_saves_training_and_settles(cloud: SimulatedCloud) -> None:
    cloud.job_seconds = 1e4
    launch = cloud.launch(2, max_pods=2)
    at(cloud, 100, interrupt)
    with pytest.raises(KeyboardInterrupt):
        finish(cloud, cloud.controller(launch))
    assert left(cloud) == []
    assert [run.state for run in cloud.wandb.core.runs.values()] == ["preempted", "preempted"]
    assert [sweep.state for sweep in cloud.wandb.core.sweeps.values()] == ["FINISHED"]
    assert [event["why"] for event in events(launch, "settled")] == ["interrupted"]
    assert len(events(launch, "pod.stopped")) == 2


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_m7_ctrl_c_twice_does_not_wait_for_training_to_be_saved(cloud: SimulatedCloud, twice: bool) -> None:
    def slow_to_save(pod: SimulatedPod) -> None:
        pod.terminate = lambda: None  # type: ignore[method-assign]

    pods_that(cloud, slow_to_save)
    cloud.job_seconds = 1e4
    launch = cloud.launch(2, max_pods=2, poll_seconds=10)
    begun = cloud.world.now
    for seconds in (100, 110)[: 1 + twice]:
        at(cloud, seconds, interrupt)
    with pytest.raises(KeyboardInterrupt):
        finish(cloud, cloud.controller(launch))
    ends = [pod.gone - begun for pod in cloud.core.pods.values() if pod.gone is not None]
    assert len(ends) == 2
    assert all(end < 110 + GRACE / 2 for end in ends) if twice else all(100 + GRACE <= end < 160 for end in ends)
    assert left(cloud) == []


def test_m7_sigterm_and_the_interpreters_end_do_the_same(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(2, max_pods=2)
    at(cloud, 50, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with interruptible(), pytest.raises(KeyboardInterrupt):
        finish(cloud, cloud.controller(launch))
    assert left(cloud) == []

    controller = cloud.controller(cloud.launch(2, name="290101-000001-01234567", max_pods=2))
    controller.step()
    assert len(cloud.core.live()) == 2
    session = object.__new__(RunpodSession)  # as a sweeper's error leaves it, between two batches
    session.controller, session.settings = controller, controller.settings
    session.held = controller.launch.as_controller()  # type: ignore[assignment]
    session.held.close = lambda: None  # type: ignore[method-assign]
    session._close()
    assert left(cloud) == []


def test_m7_an_end_without_an_answer_says_at_once_what_it_does_and_may_be_given_up(
    cloud: SimulatedCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    pods_that(cloud, hung)
    controller = cloud.controller(cloud.launch(2, max_pods=2, max_hours=1.5))
    controller.step()
    cloud.runpod.fail("*", "refuse", times=math.inf)
    session = object.__new__(RunpodSession)
    session.controller, session.settings, session.held = controller, controller.settings, ExitStack()
    said: list[str] = []

    def look() -> None:
        said.append(capsys.readouterr().out)

    def look_and_interrupt() -> None:
        look()
        interrupt()

    at(cloud, 5, look)
    at(cloud, 1800, look_and_interrupt)
    at(cloud, 1830, look_and_interrupt)
    begun = cloud.world.now
    session._close()
    assert begun + 1830 <= cloud.world.now < begun + 1840
    assert len(left(cloud)) == 2
    names = ", ".join(pod.name for pod in cloud.core.live())
    date = datetime.fromtimestamp(begun + 5400).strftime("%Y-%m-%d %H:%M")
    first, between, second = said
    assert first.count("Runpod gave no answer") == second.count("Runpod gave no answer") == 1
    assert f"still trying to end {names} until it answers (Ctrl-C " in first
    assert f"still trying to end {names} for 8 minutes or more (Ctrl-C gives up)" in second
    for text in (first, second):
        assert f"`wavespace pods reap {controller.launch.id}`" in text
        assert f"Runpod itself does at {date} (terminateAfter)" in text
    assert "still trying" not in between
    for seconds in (60, 90):  # or it would try for ever
        at(cloud, seconds, interrupt)
    session._close()
    assert cloud.world.now < begun + 1840, "it was given up"


def test_m7_only_detach_leaves_pods(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(4, max_pods=2)
    cloud.controller(launch).rent_and_leave()
    assert len(cloud.core.live()) == 2
    cloud.world.sleep(3600)
    assert left(cloud) == []
    assert len(cloud.finished) == 4
    found = finish(cloud, cloud.controller(launch))
    assert [result.state for result in found] == ["finished"] * 4


def test_m7_reap_leaves_a_detached_launch_until_its_date(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lasting(pod: SimulatedPod) -> None:
        without_own_end(pod), without_runpods_end(pod)

    monkeypatch.setattr(verb, "time", cloud.world)
    pods_that(cloud, lasting)
    cloud.job_seconds = 1e9
    launch = cloud.launch(2, max_pods=2, max_hours=0.5)
    cloud.controller(launch).rent_and_leave()
    verb.reap([launch])
    assert len(left(cloud)) == 2
    assert capsys.readouterr().out.count("is of a detached launch, and ends by itself, by 2") == 2
    cloud.core.spot_stop(cloud.core.live()[0])  # which then costs, and does nothing
    verb.reap([launch])
    assert len(left(cloud)) == 1
    cloud.world.sleep(1800)
    verb.reap([launch])
    assert left(cloud) == []
    again = cloud.launch(2, name="290101-000001-01234567", max_pods=2)
    cloud.controller(again).rent_and_leave()
    until_killed(cloud, again, 60)  # somebody had attached to it
    verb.reap([again])
    assert left(cloud) == []


# --- M8: no answer is not "no pods"


@pytest.mark.parametrize("kind", ["429", "html", "no_data", "refuse"])
def test_m8_half_an_hour_without_a_listing_changes_nothing(cloud: SimulatedCloud, kind: str) -> None:
    cloud.job_seconds = 2400.0
    launch = cloud.launch(2, max_pods=2, poll_seconds=120)
    at(cloud, 150, lambda: cloud.runpod.fail("pods", kind, times=math.inf))
    at(cloud, 1950, cloud.runpod.faults.clear)
    found = finish(cloud, cloud.controller(launch))
    assert len(cloud.runpod.faults.fired) > 0
    assert len(cloud.core.created) == 2
    assert [result.state for result in found] == ["finished", "finished"]
    assert [result.attempts for result in found] == [0, 0]


def test_m8_a_launch_is_not_settled_while_nobody_lists_pods(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(2, max_pods=2)
    controller = cloud.controller(launch)
    controller.step()
    cloud.runpod.fail("pods", "500", times=math.inf)
    cloud.runpod.fail("podTerminate", "500", times=10)
    at(cloud, 1800, cloud.runpod.faults.clear)
    begun = cloud.world.now
    controller.settle("a test")
    assert events(launch, "settled")[0]["t"] >= begun + 1800
    assert left(cloud) == []


@pytest.mark.parametrize("answer", [None, {}, [{"name": "a pod without an id"}], [None]])
def test_m8_a_listing_that_makes_no_sense_is_no_answer(cloud: SimulatedCloud, answer: Any) -> None:
    runpod = Runpod()
    runpod._sdk = SimpleNamespace(get_pods=lambda: answer)
    with pytest.raises(NoResponse):
        runpod.list()


def test_m8_a_launch_whose_ledger_was_lost_waits_for_a_listing(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(2, max_pods=2)
    cloud.controller(launch).step()
    (launch.folder / "ledger.jsonl").unlink()
    cloud.runpod.fail("pods", "html", times=5)
    cloud.controller(launch).settle("a test")
    assert len(cloud.core.created) == 2
    assert left(cloud) == []
    assert len(events(launch, "pod.gone")) == 2


def test_m8_an_error_of_ours_waits_for_a_listing_too(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(2, max_pods=2)
    cloud.runpod.fail(RENT, "lost")
    controller = crashing(cloud.controller(launch), at_step=1)
    cloud.runpod.fail("pods", "html", times=20, after=1)
    with pytest.raises(Crash):
        finish(cloud, controller)
    assert len(cloud.core.created) == 1
    assert left(cloud) == []


# --- M9: secrets


def test_m9_no_key_is_written_or_sent(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = 'hard"to\\quote-0123456789'
    planted = [os.environ["RUNPOD_API_KEY"], KEY, hard]
    monkeypatch.setenv("OTHER_TOKEN", hard)
    monkeypatch.setattr(cloud.wandb, "keep", True)
    cloud.wandb.bodies.clear()
    plain, said = cloud.core.create, iter([*planted, KEY])  # to each kind of machine

    def telltale(*arguments: Any, **facts: Any) -> runpod_server.Pod:
        if key := next(said, None):
            raise runpod_server.Refused(f"no pods for {key} today")
        return plain(*arguments, **facts)

    cloud.core.create = telltale  # type: ignore[method-assign]
    cloud.chances.always_fails = frozenset([0])
    launch = cloud.launch(2, max_pods=1, retries=0, env={"MODE": "fast"}, secrets=["WANDB_API_KEY", "OTHER_TOKEN"])
    notes: list[str] = []
    controller = cloud.controller(launch)
    controller.show = lambda found, note: notes.append(note)
    finish(cloud, controller)
    verb.status([launch])
    written = "".join(path.read_text() for path in launch.folder.rglob("*") if path.is_file())
    assert written.count("no pods for *** today") == 4
    assert len(events(launch, "pod.refused")) == 4
    assert any("no pods for *** today" in note for note in notes)
    pod = next(iter(cloud.core.pods.values()))
    assert pod.env["WANDB_API_KEY"] == "{{ RUNPOD_SECRET_WANDB_API_KEY }}"
    assert pod.env["OTHER_TOKEN"] == "{{ RUNPOD_SECRET_OTHER_TOKEN }}"
    assert pod.env["MODE"] == "fast"
    shown = capsys.readouterr()
    sent = "".join(cloud.runpod.requests) + b"".join(cloud.wandb.bodies).decode(errors="replace")
    for text in (written, sent, pod.args, str(pod.env), shown.out, shown.err, *notes):
        for secret in planted:
            assert secret not in text
            assert json.dumps(secret)[1:-1] not in text


# --- M10: other people's pods


def test_m10_pods_of_others_are_never_touched(cloud: SimulatedCloud, capsys: pytest.CaptureFixture[str]) -> None:
    launch = cloud.launch(3, max_pods=2)
    names = [
        "train", "ws", "ws-", "ws-0-1", f"ws-{launch.id}", f"ws-{launch.id}-notes", f"ws-{launch.id}-x-1",
        f"ws-{launch.id}-1-0-1", f"ws-{launch.id}9-0-1", f"ws-{launch.id[:-1]}-0-1", f"xws-{launch.id}-0-1",
        f"WS-{launch.id}-0-1", f"ws-{launch.id}-0-1 copy", f"\nws-{launch.id}-0-1",
    ]  # fmt: skip
    cloud.core.start = lambda pod: PLAIN["start"](cloud)(pod) if pod.args else runpod_server.Idle()
    foreign = [cloud.core.create(name, "A") for name in names]
    finish(cloud, cloud.controller(launch))
    second = cloud.launch(2, name="290101-000001-01234567")
    with pytest.raises(Crash):
        finish(cloud, crashing(cloud.controller(second), at_step=2))
    verb.reap([launch, second])
    assert {pod.name for pod in cloud.core.live()} == set(names)
    assert all(pod.status == "RUNNING" for pod in foreign)
    assert len(cloud.core.created) == len(names) + 4


def test_m10_reap_ends_pods_of_a_dead_controller_and_no_others(
    cloud: SimulatedCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    dead, led = cloud.launch(2), cloud.launch(2, name="290101-000001-01234567")
    for launch in (dead, led):
        cloud.controller(launch).step()
    with led.as_controller():
        verb.reap([dead, led])
        assert {pod.name for pod in cloud.core.live()} == {f"ws-{led.id}-0-1", f"ws-{led.id}-1-1"}
    assert capsys.readouterr().out.count("left alone") == 2
    cloud.runpod.fail("pods", "500")
    with pytest.raises(ValueError, match="nothing was ended"):
        verb.reap([led])
    cloud.runpod.fail("podTerminate", "500")
    verb.reap([led])
    assert "run this again" in capsys.readouterr().out
    assert len(cloud.core.live()) == 1
    verb.reap([led])
    assert left(cloud) == []


# --- Sweeps: never a second one


def test_a_lost_answer_makes_no_second_sweep(cloud: SimulatedCloud) -> None:
    cloud.wandb.fail("UpsertSweep", "lost")
    launch = cloud.launch(2, max_pods=2)
    found = finish(cloud, cloud.controller(launch))
    assert [result.state for result in found] == ["finished", "finished"]
    assert sum(len(sweep.runs) for sweep in cloud.wandb.core.sweeps.values()) == 2
    assert len(events(launch, "sweep")) == 1


def test_a_sweep_is_not_stuck_because_a_pod_had_waited_before_it_was_made(cloud: SimulatedCloud) -> None:
    wandb = cloud.wandb.core
    wandb.issue_never = 1.0
    at(cloud, 120, lambda: setattr(wandb, "issue_never", 0.0))  # the first sweep has closed without giving out its job

    def looks_seldom(pod: SimulatedPod) -> None:
        ask, pod.stay = pod._ask, True
        looks = lambda: (cloud.world.now - pod.began) % 90 < STEP  # noqa: E731
        pod._ask = lambda: ask() if pod.agent or looks() else None  # type: ignore[method-assign]

    pods_that(cloud, looks_seldom)
    found = finish(cloud, cloud.controller(cloud.launch(1, idle_timeout=10)))
    assert [(result.state, result.attempts) for result in found] == [("finished", 0)]
    assert len(wandb.sweeps) == 2


def test_1100_jobs_are_three_sweeps_and_one_launch(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(1100, max_pods=1)
    cloud.controller(launch).step()
    cloud.controller(launch).step()  # another process finds them
    sizes = {event["name"]: event["jobs"] for event in events(launch, "sweep.intent")}
    assert sorted(itertools.chain.from_iterable(sizes.values())) == list(range(1100))
    sweeps = cloud.wandb.core.sweeps.values()
    assert [len(sweep.points or ()) for sweep in sweeps] == [500, 500, 100]
    assert {sweep.config["name"] for sweep in sweeps} == set(sizes) == {f"{launch.id}-{n}" for n in (1, 2, 3)}
    assert len(cloud.core.created) == 1
    assert {sweep.name for sweep in Wandb("tester", "wavespace").sweeps(launch.id)} == set(sizes)


def test_without_w_and_b_nothing_is_rented(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(2)
    controller = cloud.controller(launch)
    controller.wandb.create = lambda config: (_ for _ in ()).throw(NoResponse("W&B is away"))  # type: ignore[method-assign]
    controller.step()
    assert cloud.core.created == []
    assert controller.trouble == "W&B is away"

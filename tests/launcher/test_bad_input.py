"""Mistakes are reported in one sentence before anything is rented, and `wavespace pods` shows the state of launches."""

from __future__ import annotations

import itertools
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runpod
from omegaconf import OmegaConf

from launcher.simulation import SimulatedCloud, finish, simulated
from standins.runpod_server import Refused
from wavespace import cli
from wavespace.commands import pods as verb
from wavespace.config import composition
from wavespace.errors import UserError
from wavespace.launchfile import Job
from wavespace_launcher.launch import RunpodSession, preflight
from wavespace_launcher.ledger import Launch

FONTS = str(Path.home() / ".cache" / "matplotlib")
"""Where matplotlib keeps what takes it seconds to find, whatever HOME says later."""

GOOD = {"max_cost": 5.0, "image": "us/image:1", "gpus": ["A"], "entity": "tester"}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedCloud]:
    with simulated(tmp_path_factory.mktemp("launches"), job_seconds=20.0) as cloud:
        yield cloud


@pytest.fixture
def cloud(stand_ins: SimulatedCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedCloud:
    """On which nothing is yet; commands run in an empty folder."""
    stand_ins.folder = tmp_path / "runs"
    stand_ins.core.pods.clear(), stand_ins.core.created.clear()
    for sweep in stand_ins.wandb.core.sweeps:
        stand_ins.wandb.core.delete_sweep(sweep)
    stand_ins.wandb.core.projects.clear()
    stand_ins.runpod.faults.clear(), stand_ins.runpod.counts.clear()
    stand_ins.world.moves[:] = [stand_ins.core.tick]
    monkeypatch.setattr(runpod, "api_key", None)
    monkeypatch.setenv("MPLCONFIGDIR", FONTS)
    monkeypatch.setenv("WAVESPACE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return stand_ins


def hold_that_nothing_happened(cloud: SimulatedCloud) -> None:
    assert cloud.core.created == []
    assert cloud.wandb.core.sweeps == {}
    assert list(cloud.folder.glob("launches/*")) == []


class Ended(SimpleNamespace):
    code: int
    out: str
    err: str


@pytest.fixture
def wavespace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line, in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["wavespace", *arguments])
        before = signal.getsignal(signal.SIGTERM)
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        finally:
            signal.signal(signal.SIGTERM, before)
        return Ended(code=code, **capsys.readouterr()._asdict())

    return run


def train(**given: Any) -> list[str]:
    settings = {f"hydra.launcher.{key}={str(value).replace(' ', '')}" for key, value in (GOOD | given).items()}
    return ["train", "-m", "hydra/launcher=runpod", *sorted(settings)]


# --- The command line


def test_wrong_settings_and_config_dir_are_told_by_the_command(cloud: SimulatedCloud, wavespace: Any) -> None:
    ended = wavespace(*train(max_cost="null", max_pods="some"), "seed=1")
    assert ended.code == 2
    assert "hydra.launcher.max_cost is missing: the most, in dollars" in ended.err
    assert "hydra.launcher.max_pods = 'some': input should be a valid integer" in ended.err
    Path("own").mkdir()
    ended = wavespace("train", "--config-dir", "own", *train()[1:], "seed=1")
    assert ended.code == 2
    assert re.fullmatch(r"wavespace: --config-dir \S+ is not on a pod; build an image with its .*\n", ended.err)
    assert cloud.runpod.counts == {}
    hold_that_nothing_happened(cloud)


def test_an_override_that_does_not_compose_is_told_before_anything_is_asked(
    cloud: SimulatedCloud, wavespace: Any
) -> None:
    ended = wavespace(*train(), "model.width=4,wide")
    assert ended.code == 2
    assert "model.width = wide" in ended.err
    assert "Traceback" not in ended.err
    assert cloud.runpod.counts == {}
    hold_that_nothing_happened(cloud)


def test_a_dry_run_tells_the_ceiling_and_does_nothing(cloud: SimulatedCloud, wavespace: Any) -> None:
    ended = wavespace(*train(dry_run="true", max_hours=2, max_cost=50, spot="true", max_pods=3), "seed=1,2")
    assert ended.code == 0
    assert "price ceiling: $1.00 " in ended.out  # two jobs, two hours, $0.25 the dearer cloud
    assert "2 jobs, at most 3 pods, $50" in ended.out
    assert re.search(r'"0\|[0-9a-f]{8}\|seed=1"', ended.out)
    assert "podRentInterruptable" in ended.out
    assert set(cloud.runpod.counts) == {"gpuTypes"}
    hold_that_nothing_happened(cloud)


def test_a_dry_run_shows_no_secrets_value(
    cloud: SimulatedCloud, wavespace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = 'hard"to\\quote-0123456789'
    for name, value in {"SOME_TOKEN": "planted-in-this-process", "OTHER_TOKEN": hard, "MODE": hard}.items():
        monkeypatch.setenv(name, value)
    given = ["+hydra.launcher.env.MODE=${oc.env:MODE}", "name=planted-in-this-process", "seed=1,2"]
    ended = wavespace(*train(dry_run="true"), *given)
    assert ended.code == 0
    assert "name=*** seed=1\n" in ended.out
    assert '|name=*** seed=1"' in ended.out
    assert re.search(r'key: "MODE", value: "\*\*\*"', ended.out)
    for secret in ("planted-in-this-process", "hard", "quote-0123456789"):
        assert secret not in ended.out + ended.err


@pytest.mark.parametrize(
    "given",
    [
        ["hydra.launcher.env=[MODE,LEVEL]"],
        ["hydra.launcher.env=['MODE', \"LEVEL\"]"],
        ["hydra.launcher.env={MODE: fast, LEVEL: '2'}"],
        ["+hydra.launcher.env.MODE=fast", "+hydra.launcher.env.LEVEL='2'"],
    ],
    ids=["list", "list of quoted", "mapping", "one by one"],
)
def test_variables_of_pods_are_listed_or_told(
    cloud: SimulatedCloud, wavespace: Any, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.setenv("MODE", "fast")
    monkeypatch.setenv("LEVEL", "2")
    ended = wavespace(*train(dry_run="true"), *given, "hydra.launcher.secrets={WANDB_API_KEY:other}", "seed=1")
    assert ended.code == 0, ended.err
    for text in ('"MODE", value: "fast"', '"LEVEL", value: "2"', '"WANDB_API_KEY", value: "{{ RUNPOD_SECRET_other }}"'):
        assert text in ended.out


def test_files_are_read_once_for_members_of_the_same_parts(
    cloud: SimulatedCloud, wavespace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose_by_hydra, read = composition.compose_by_hydra, list[Sequence[str]]()

    def note(overrides: Sequence[str], *arguments: Any, **facts: Any) -> Any:
        read.append(overrides)
        return compose_by_hydra(overrides, *arguments, **facts)

    monkeypatch.setattr(composition, "compose_by_hydra", note)
    composition._pickled.cache_clear()
    ended = wavespace(*train(dry_run="true"), "seed=1,2,1", "data.soundfont='a b'")
    assert read
    assert not {"seed=1", "seed=2"} & {*itertools.chain(*read)}  # a seed is set in what was read for all of them
    jobs = re.findall(r"^ +(\d)  [0-9a-f]{12}  (.*)$", ended.out, re.MULTILINE)
    quoted = "data.soundfont='a b'"
    assert jobs == [("0", f"seed=1 {quoted}"), ("1", f"seed=2 {quoted}"), ("2", f"seed=1 {quoted}")]


# --- Before anything is rented


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"gpus": ["a A"]}, "hydra.launcher.gpus: Runpod has no GPU 'a A', did you mean 'A'? It has: A, B"),
        ({"gpus": ["H100"]}, "hydra.launcher.gpus: Runpod has no GPU 'H100'. It has: A, B"),
        ({"gpus": ["C"], "clouds": ["secure"]}, "C are not offered in secure cloud"),
        ({"max_cost": 0.29}, "max_cost=0.29 is less than an hour of the cheapest pod: A (community) costs $0.3 "),
        ({"secrets": {"OTHER": "OTHER"}}, "hydra.launcher.secrets: pods need WANDB_API_KEY"),
        ({"env": {"X": "prefix-planted-in-this-process"}}, "hydra.launcher.env.X would send a secret in plain text"),
    ],
)  # fmt: skip
def test_what_can_be_known_before_is_told_before(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: str
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "planted-in-this-process")
    none = type(cloud.core.gpus["A"])("C", 24, None, 0.5, None, 0.5)
    if "C" in given.get("gpus", ()):
        monkeypatch.setitem(cloud.core.gpus, "C", none)
    with pytest.raises(UserError) as caught:
        preflight(cloud.settings(**GOOD | given))
    assert told in str(caught.value)
    assert "planted-in-this-process" not in str(caught.value)
    assert "\n" not in str(caught.value)
    hold_that_nothing_happened(cloud)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("RUNPOD_API_KEY", "", "there is no Runpod key: set RUNPOD_API_KEY"),
        ("RUNPOD_API_KEY", "not-the-right-key", "Runpod does not accept the key in RUNPOD_API_KEY"),
        ("WANDB_API_KEY", "short-key", "W&B can't be used: set WANDB_API_KEY to a key of 40 or more characters"),
    ],
)
def test_a_key_that_is_missing_or_wrong_is_told_and_not_shown(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        preflight(cloud.settings(**GOOD))
    assert told in str(caught.value)
    assert not value or value not in str(caught.value)
    hold_that_nothing_happened(cloud)


@pytest.mark.parametrize("kind", ["refuse", "html", "429"])
def test_a_service_that_is_away_is_told(cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    cloud.runpod.fail("gpuTypes", kind, times=10)
    with pytest.raises(UserError, match="try again later"):
        preflight(cloud.settings(**GOOD))
    hold_that_nothing_happened(cloud)


# --- The same command again


def opened(cloud: SimulatedCloud, **given: Any) -> RunpodSession:
    """A session up to the moment in which it would rent."""
    session = object.__new__(RunpodSession)
    session.settings, session.keep_pods, session.held = cloud.settings(**GOOD | given), False, ExitStack()
    session.controller = None
    jobs = [Job(0, "0" * 12, ("seed=0",)), Job(1, "1" * 12, ("seed=1",))]
    with session.held:
        session._open(jobs, None, OmegaConf.create({"runs": str(cloud.folder), "name": "study"}))
    return session


@pytest.fixture(autouse=True)
def no_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atexit.register", lambda function: function)


def test_the_same_command_goes_on_and_another_does_not(
    cloud: SimulatedCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = opened(cloud).controller, opened(cloud, max_cost=9.0, retries=3).controller
    assert first is not None
    assert again is not None
    assert first.launch.id == again.launch.id
    assert again.settings.max_cost == 9.0
    assert "going on with launch" in capsys.readouterr().out
    assert len(Launch.all(cloud.folder)) == 1
    other = opened(cloud, project="another").controller
    assert other is not None
    assert other.launch.id != first.launch.id


def test_the_same_command_beside_its_first_changes_no_plan(cloud: SimulatedCloud) -> None:
    launch = opened(cloud).controller.launch  # type: ignore[union-attr]
    with launch.as_controller(), pytest.raises(UserError, match="is controlled by another process"):
        opened(cloud, max_cost=50.0)
    assert launch.plan.settings.max_cost == GOOD["max_cost"]


def test_a_detached_launch_that_can_rent_nothing_fails(
    cloud: SimulatedCloud, wavespace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Refused("Your balance is too low")

    monkeypatch.setattr(cloud.core, "create", refuse)
    ended = wavespace(*train(detach="true", poll_seconds=0.1), "seed=1")
    assert ended.code == 2
    assert "job 0 (seed=1) is queued: the launch ended before it was done (A (community): Your balance" in ended.err
    assert "left 0 pods" not in ended.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--verify", "hydra/launcher=runpod"], "--verify and --config-dir don't reach a pod"),
        (["hydra/launcher=runpod", *train(detach="true")[3:]], "leave out hydra.launcher.detach"),
    ],
)
def test_what_prepare_can_t_do_on_a_pod_is_told(
    cloud: SimulatedCloud, wavespace: Any, words: list[str], told: str
) -> None:
    ended = wavespace("prepare", "data=synthetic", *words)
    assert ended.code == 2
    assert told in ended.err
    hold_that_nothing_happened(cloud)


def test_a_sweep_that_was_deleted_meanwhile_is_told_and_nothing_is_rented(cloud: SimulatedCloud) -> None:
    launch = opened(cloud).controller.launch  # type: ignore[union-attr]
    controller = cloud.controller(Launch(launch.folder, cloud.world.time))
    controller._create_sweeps()
    (sweep,) = cloud.wandb.core.sweeps
    cloud.wandb.core.delete_sweep(sweep)
    with pytest.raises(UserError, match=f"sweep {launch.id}-1 was deleted at W&B, .* run the command again"):
        opened(cloud)
    assert cloud.core.created == []


def test_a_sweep_that_is_deleted_under_a_running_launch_ends_it(cloud: SimulatedCloud) -> None:
    launch = cloud.launch(4, max_pods=1)
    controller = cloud.controller(launch)

    def delete(*_: object) -> None:
        if len(cloud.finished) == 1:
            cloud.wandb.core.delete_sweep(next(iter(cloud.wandb.core.sweeps)))
            cloud.world.moves[:] = [cloud.core.tick]  # the agent hears 404
            cloud.finished.clear()

    cloud.finished.clear()
    controller.show = delete
    finish(cloud, controller)
    drained = [event["why"] for event in launch.events() if event["kind"] == "drain"]
    assert len(drained) == 1
    assert "was deleted at W&B" in drained[0]
    assert cloud.core.live() == []


# --- wavespace pods


@pytest.fixture
def launches(cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """One that is settled, one whose controller died with two pods."""
    monkeypatch.setattr(verb, "time", cloud.world)
    monkeypatch.setattr(verb, "_controller", lambda launch: cloud.controller(Launch(launch.folder, cloud.world.time)))
    settled = cloud.launch(2, max_pods=2)
    finish(cloud, cloud.controller(settled))
    cloud.wandb.core.projects.clear()  # its runs have the names of the other's
    dead = cloud.launch(3, name="290102-000000-89abcdef", max_pods=2)
    cloud.controller(dead).step()
    cloud.world.sleep(30)
    return [settled, dead]


def test_pods_without_launches_or_with_too_many_are_told(cloud: SimulatedCloud, wavespace: Any) -> None:
    ended = wavespace("pods", "status")
    assert ended.code == 2
    assert "there is no launch in" in ended.err
    for name in ("290101-000000-01234567", "290102-000000-01234567"):
        cloud.launch(1, name=name)
    ended = wavespace("pods", "stop", "0123")
    assert ended.code == 2
    assert "is named '0123': 290101-000000-01234567, 290102-000000-01234567" in ended.err
    ended = wavespace("pods", "cost", "zzz", "--runs", str(cloud.folder))
    assert ended.code == 2
    assert "no launch in" in ended.err
    assert "Traceback" not in ended.err


def test_status_and_cost_tell_of_every_launch(cloud: SimulatedCloud, launches: list[Launch], wavespace: Any) -> None:
    ended = wavespace("pods", "status")
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}
    assert " settled " in lines[launches[0].id]
    assert " unattended " in lines[launches[1].id]
    ended = wavespace("pods", "cost")
    spent = cloud.core.spent()
    total = float(ended.out.split()[-1])
    assert spent - 0.01 <= total <= spent + 0.05
    assert f"ws-{launches[1].id}-1-1" in ended.out


def test_the_status_of_one_launch_shows_its_jobs_and_pods(
    cloud: SimulatedCloud, launches: list[Launch], wavespace: Any
) -> None:
    ended = wavespace("pods", "status", "89abcdef")
    assert ended.code == 0
    assert f"ws-{launches[1].id}-0-1" in ended.out
    assert ended.out.count(" queued ") + ended.out.count(" running ") + ended.out.count(" preempted ") == 3
    assert len(cloud.core.live()) == 2


def test_stop_ends_a_launch_whose_controller_died(
    cloud: SimulatedCloud, launches: list[Launch], wavespace: Any
) -> None:
    ended = wavespace("pods", "stop", "89abcdef")
    assert ended.code == 0
    assert cloud.core.live() == []
    assert "ended: `wavespace pods stop`" in ended.out
    events = [event["kind"] for event in launches[1].events()]
    assert events[-1] == "settled"
    assert " settled " in wavespace("pods", "status", "89abcdef").out


@pytest.mark.parametrize("obeys", [True, False])
def test_stop_tells_a_controller_that_lives(
    obeys: bool, cloud: SimulatedCloud, launches: list[Launch], wavespace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which obeys at its next step, or is killed before."""
    leading = launches[1].as_controller()
    leading.__enter__()

    def obey(seconds: float) -> None:
        assert launches[1].end_requested()
        if obeys:
            finish(cloud, cloud.controller(Launch(launches[1].folder, cloud.world.time)))
        leading.__exit__(None, None, None)

    monkeypatch.setattr(verb, "time", SimpleNamespace(sleep=obey, time=cloud.world.time))
    ended = wavespace("pods", "stop", "89abcdef")
    assert "is controlled by another process" in ended.out
    assert cloud.core.live() == []
    drained = [event["why"] for event in launches[1].events() if event["kind"] == "drain"]
    assert drained == ["`wavespace pods stop`"]


def test_attach_goes_on_after_a_controllers_death(
    cloud: SimulatedCloud, launches: list[Launch], wavespace: Any
) -> None:
    launches[1].save(replace(launches[1].plan, keep_pods=True))  # for more jobs of the sweeper that died with it
    ended = wavespace("pods", "attach", "89abcdef")
    assert ended.code == 0
    assert ended.out.count(" finished ") == 3
    assert cloud.core.live() == []
    assert len(cloud.wandb.core.sweeps) == 2


def test_reap_ends_the_pods_and_their_cost(cloud: SimulatedCloud, launches: list[Launch], wavespace: Any) -> None:
    ended = wavespace("pods", "reap")
    assert ended.out.count(" ended\n") == 2
    assert cloud.core.live() == []
    assert "there are no pods of ours" in wavespace("pods", "reap").out


def test_reap_ends_a_detached_launchs_pods_only_by_its_name(
    cloud: SimulatedCloud, launches: list[Launch], wavespace: Any
) -> None:
    launches[1].write("detached")
    ended = wavespace("pods", "reap")
    assert ended.out.count("is of a detached launch, and ends by itself, by 2") == 2
    with (launches[1].folder / "ledger.jsonl").open("a") as ledger:
        ledger.write("1\n")
    assert wavespace("pods", "reap").out.count("is no event of a launch; mend it, or ") == 2
    assert len(cloud.core.live()) == 2
    assert wavespace("pods", "reap", "01234567").out == "there are no pods of ours\n"
    assert wavespace("pods", "reap", "89abcdef").out.count(" ended\n") == 2
    assert cloud.core.live() == []

"""Plain data of a launch: settings, jobs, plan and ledger on disk, results, and the text that rents a pod."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
import string
from datetime import datetime
from pathlib import Path
from typing import Any

import graphql
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standins.runpod_server import _SCHEMA
from wavespace.config import conf_dir
from wavespace.errors import BadInput, ConfigError
from wavespace.launchfile import JobResult, read_results, write_results
from wavespace_launcher.controller import add_jobs, affordable_hours, command, environment
from wavespace_launcher.ledger import Launch, redacted
from wavespace_launcher.plan import (
    Candidate,
    Job,
    LocalSettings,
    Plan,
    RunpodSettings,
    digest,
    launch_of,
    new_launch_id,
    pod_name,
    read_settings,
    sweep_config,
)
from wavespace_launcher.runpod_client import Offer, creation
from wavespace_launcher.state import State
from wavespace_launcher.status import job_results, search_job_results
from wavespace_launcher.wandb_client import HEARTBEAT_TIMEOUT, WandbRun, competing_run

BASIS: dict[str, Any] = {"max_cost": 5, "image": "us/image:1", "gpus": ["A"]}
# What a command line can carry: no NUL, and no halves of characters.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
JOBS = st.builds(
    Job, st.integers(0, 10**6), st.text("0123456789abcdef", min_size=12, max_size=12), st.tuples(TEXT, TEXT)
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def job(index: int) -> Job:
    return Job(index, f"{index:012x}", (f"seed={index}",))


def plan(jobs: int = 3, **given: Any) -> Plan:
    return Plan(id="290101-000000-01234567", study="study", jobs=tuple(map(job, range(jobs))),
                settings=RunpodSettings.of(BASIS | given))  # fmt: skip


# --- Settings


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_cost": None}, "hydra.launcher.max_cost is missing: the most, in dollars, that the whole launch may"),
        ({"max_cost": 0}, "hydra.launcher.max_cost = 0: input should be greater than 0"),
        ({"max_cost": -1.5}, "hydra.launcher.max_cost = -1.5: "),
        ({"max_cost": float("inf")}, "hydra.launcher.max_cost = inf: input should be a finite number"),
        ({"max_cost": float("nan")}, "hydra.launcher.max_cost = nan: "),
        ({"max_cost": "much"}, "hydra.launcher.max_cost = 'much': input should be a valid number"),
        ({"image": None}, "hydra.launcher.image is missing: the image that pods run"),
        ({"image": ""}, "hydra.launcher.image = '': "),
        ({"image": "two words"}, "hydra.launcher.image = 'two words': "),
        ({"gpus": []}, "hydra.launcher.gpus = []: list should have at least 1 item"),
        ({"gpus": "A"}, "hydra.launcher.gpus = 'A': input should be a valid list"),
        ({"gpus": ['A"B']}, "hydra.launcher.gpus.0 = 'A\"B': "),
        ({"clouds": ["private"]}, "hydra.launcher.clouds.0 = 'private': input should be 'community' or 'secure'"),
        ({"clouds": []}, "hydra.launcher.clouds = []: "),
        ({"cuda": ["13"]}, "hydra.launcher.cuda.0 = '13': "),
        ({"cuda": [13.0]}, "hydra.launcher.cuda.0 = 13.0: input should be a valid string"),
        ({"max_pods": 0}, "hydra.launcher.max_pods = 0: "),
        ({"max_pods": 2.5}, "hydra.launcher.max_pods = 2.5: "),
        ({"max_hours": 0}, "hydra.launcher.max_hours = 0: "),
        ({"boot_timeout": -1}, "hydra.launcher.boot_timeout = -1: "),
        ({"idle_timeout": 0}, "hydra.launcher.idle_timeout = 0: "),
        ({"poll_seconds": 0}, "hydra.launcher.poll_seconds = 0: "),
        ({"retries": -1}, "hydra.launcher.retries = -1: "),
        ({"disk": 1}, "hydra.launcher.disk = 1: "),
        ({"project": "a/b"}, "hydra.launcher.project = 'a/b': "),
        ({"entity": ""}, "hydra.launcher.entity = '': "),
        ({"spot": "perhaps"}, "hydra.launcher.spot = 'perhaps': "),
        ({"env": {"A": 1}}, "hydra.launcher.env.A = 1: input should be a valid string"),
        ({"env": ["NOT_HERE_AT_ALL"]}, "hydra.launcher.env: this machine has no variable NOT_HERE_AT_ALL"),
        ({"secrets": {"A": None}}, "hydra.launcher.secrets.A = None: "),
        ({"max_costs": 3}, "hydra.launcher.max_costs: there is no such key; keys: max_cost, image, "),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_in_a_line_with_its_key(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunpodSettings.of(BASIS | given)
    lines = [line for line in str(caught.value).splitlines() if line != "the launcher's settings have faults:"]
    assert len(lines) == 1
    assert told in lines[0]


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RunpodSettings.of({"gpus": [], "max_pods": 0, "clouds": ["x"], "color": "red"})
    for key in ("max_cost", "image", "gpus", "max_pods", "clouds.0", "color"):
        assert f"hydra.launcher.{key}" in str(caught.value)


def test_the_yaml_has_every_setting_and_its_default() -> None:
    written = yaml.safe_load((conf_dir() / "hydra" / "launcher" / "runpod.yaml").read_text())
    assert written.pop("_target_") == "hydra_plugins.wavespace_launchers.RunpodLauncher"
    assert set(written) == set(RunpodSettings.__dataclass_fields__)
    of_yaml = RunpodSettings.of(written | {"max_cost": 5, "image": "us/image:1"})
    assert of_yaml == RunpodSettings.of(BASIS | {key: written[key] for key in ("gpus", "cuda")})


def test_hosts_are_asked_for_that_run_the_cuda_of_the_pinned_torch() -> None:
    written = yaml.safe_load((conf_dir() / "hydra" / "launcher" / "runpod.yaml").read_text())
    lock = conf_dir().parent / "requirements.lock"
    if not lock.is_file():
        pytest.skip("needs requirements.lock, which only a checkout has")
    found = re.search(r"^nvidia-cuda-runtime[\w-]*==(\d+)\.(\d+)\.", lock.read_text(), re.MULTILINE)
    assert found is not None
    needed = int(found[1]), int(found[2])
    assert written["cuda"]
    assert all(tuple(map(int, version.split("."))) >= needed for version in written["cuda"])


def test_candidates_come_in_the_order_of_the_settings() -> None:
    chosen = RunpodSettings.of(BASIS | {"gpus": ["A", "B"], "data_centers": ["X", "Y"]})
    texts = [str(candidate) for candidate in chosen.candidates]
    assert texts[:5] == ["A (community, X)", "A (community, Y)", "A (secure, X)", "A (secure, Y)", "B (community, X)"]
    assert len(set(texts)) == 8


# --- Jobs and plans


@quick
@given(JOBS)
def test_a_job_survives_its_text(job: Job) -> None:
    again = Job.parse(job.text)
    assert (again.index, again.overrides) == (job.index, job.overrides)
    assert job.signature.startswith(again.signature)
    assert again.text == job.text


@pytest.mark.parametrize("overrides", [(), ("",), ("a='b c'",), ("a|b",), ("~drop",), ("+n=[1,'2']",), ("ü=\n\t日",)])
def test_a_job_of_unusual_overrides_survives_its_text(overrides: tuple[str, ...]) -> None:
    assert Job.parse(Job(7, "0123456789ab", overrides).text) == Job(7, "01234567", overrides)


@pytest.mark.parametrize("text", ["", "x", "x|01234567|a=1", "1|0|a='"])
def test_what_is_no_job_is_told(text: str) -> None:
    with pytest.raises(BadInput, match="is not a job"):
        Job.parse(text)


@quick
@given(st.lists(JOBS, max_size=4), TEXT, st.booleans(), st.sampled_from([None, {"method": "random", "run_cap": 3}]))
def test_a_plan_survives_its_json(jobs: list[Job], study: str, stay: bool, search: dict[str, Any] | None) -> None:
    chosen = RunpodSettings.of(BASIS | {"secrets": {"A": "b"}, "env": {"MODE": study}, "cuda": ["13.0"]})
    whole = Plan(id="x-y", study=study, jobs=tuple(jobs), settings=chosen, search=search, keep_pods=stay)
    assert Plan.from_json(whole.to_json()) == whole


def test_the_digest_tells_what_is_done_and_not_what_it_may_cost() -> None:
    def of(jobs: int = 3, study: str = "study", search: Any = None, **given: Any) -> str:
        return digest(RunpodSettings.of(BASIS | given), study, map(job, range(jobs)), search)

    money = {
        "max_cost": 50,
        "max_pods": 9,
        "gpus": ["B"],
        "spot": True,
        "image": "us/image:2",
        "retries": 4,
        "cuda": ["13.0"],
    }
    assert of(**money) == of()
    others = [of(jobs=2), of(study="other"), of(project="other"), of(entity="other"), of(search={"method": "random"})]
    assert len({of(), *others}) == 6
    assert re.fullmatch(r"\d{6}-\d{6}-[0-9a-f]{8}", new_launch_id(of()))


@quick
@given(st.integers(0, 99), st.integers(1, 99), st.text(string.ascii_lowercase + string.digits + "-", min_size=1))
def test_a_pods_name_tells_its_launch(slot: int, attempt: int, launch: str) -> None:
    assert launch_of(pod_name(launch, slot, attempt)) == launch
    assert launch_of(f"x{pod_name(launch, slot, attempt)}") is None
    assert launch_of(f"{pod_name(launch, slot, attempt)}x") is None
    assert launch_of(pod_name(f"{launch}-1", slot, attempt)) != launch


def test_a_sweep_hands_out_each_job_once_and_a_search_draws() -> None:
    grid = sweep_config(plan(), "n-1", plan().jobs)
    assert grid["parameters"]["job"] == {"values": [job(index).text for index in range(3)]}
    assert grid["method"] == "grid"
    search = {
        "method": "bayes",
        "run_cap": 5,
        "metric": {"name": "m"},
        "parameters": {"optim.lr": {"min": 0, "max": 1}},
    }
    drawn = sweep_config(dataclasses.replace(plan(1), search=search), "n-1", plan(1).jobs)
    assert drawn["parameters"]["optim.lr"] == {"min": 0, "max": 1}
    assert drawn["run_cap"] == 5
    for config in (grid, drawn):
        assert config["command"] == ["${interpreter}", "-m", "wavespace.cli", "worker", "${args_no_hyphens}"]
        assert config["parameters"]["launch"] == {"value": plan().id}


def test_jobs_are_added_to_a_plan_once(tmp_path: Path) -> None:
    launch = Launch.create(tmp_path, plan(2))
    add_jobs(launch, [job(1), job(2)])
    add_jobs(launch, [job(1), job(2)])
    assert launch.plan.jobs == plan(3).jobs


# --- The ledger


def ledger(folder: Path, *kinds: str) -> Launch:
    folder.mkdir(exist_ok=True)
    launch = Launch(folder, lambda: 5.0)
    for number, kind in enumerate(kinds):
        launch.write(kind, number=number, why='with "quotes"\nand ü')
    return launch


def test_a_ledger_whose_last_line_was_cut_anywhere_goes_on(tmp_path: Path) -> None:
    launch = ledger(tmp_path, "one", "two")
    whole = (tmp_path / "ledger.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole) + 1):
        (tmp_path / "ledger.jsonl").write_bytes(whole[:length])
        happened = ["one", "two"] if length >= len(whole) - 1 else ["one"]
        assert [event["kind"] for event in launch.events()] == happened, length
        launch.write("three")
        assert [event["kind"] for event in launch.events()] == [*happened, "three"], length


def test_a_ledger_without_a_line_is_empty(tmp_path: Path) -> None:
    assert list(Launch(tmp_path).events()) == []
    (tmp_path / "ledger.jsonl").write_bytes(b"")
    assert list(Launch(tmp_path).events()) == []
    assert State.of([]).live == []


def test_one_controller_leads_a_launch(tmp_path: Path) -> None:
    launch = Launch.create(tmp_path, plan())
    assert not launch.has_controller
    with launch.as_controller():
        assert Launch(launch.folder).has_controller
        with pytest.raises(ValueError, match="is controlled by another process"), Launch(launch.folder).as_controller():
            pass
    assert not launch.has_controller


def test_secrets_never_reach_the_ledger_whatever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hard = 'a"b\\c\nd-é-0123'
    for name, value in {
        "A_TOKEN": hard,
        "PASSWORD": "18000000",
        "MY_KEY": hard + "longer",
        "LEVEL": "harmless0",
    }.items():
        monkeypatch.setenv(name, value)
    launch = Launch(tmp_path, lambda: 1800000000.5)
    launch.write(
        "pod.refused", why=f"no {hard}longer and no {hard}", number=18000000, nested=[{"a": [hard]}], to="harmless0"
    )
    (event,) = launch.events()
    assert event["why"] == "no *** and no ***"
    assert event["nested"] == [{"a": ["***"]}]
    assert (event["t"], event["number"], event["to"]) == (1800000000.5, 18000000, "harmless0")
    assert json.dumps(hard)[1:-1] not in (tmp_path / "ledger.jsonl").read_text()
    assert redacted(f"<{hard}>") == "<***>"


def test_an_override_with_a_secret_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "not-for-everybody")
    shown = Job(0, "0" * 12, ("logger.token=not-for-everybody",))
    with pytest.raises(ConfigError, match="named as a secret") as caught:
        Launch.create(tmp_path, dataclasses.replace(plan(), jobs=(shown,)))
    assert "not-for-everybody" not in str(caught.value)
    assert list(tmp_path.rglob("*.json")) == []


def test_a_launch_is_found_by_a_part_of_its_name(tmp_path: Path) -> None:
    ids = ["290101-000000-aaaaaaaa", "290102-000000-bbbbbbbb", "290103-000000-aaaaaaaa"]
    for id in ids:
        Launch.create(tmp_path, dataclasses.replace(plan(), id=id))
    assert Launch.named(tmp_path, "bbbb").id == ids[1]
    assert Launch.named(tmp_path, ids[0]).id == ids[0]
    with pytest.raises(BadInput, match=f"more than one launch .* is named 'aaaa': {ids[0]}, {ids[2]}"):
        Launch.named(tmp_path, "aaaa")
    with pytest.raises(BadInput, match=r"no launch .* is named 'cccc'"):
        Launch.named(tmp_path, "cccc")


# --- Money, by the ledger alone


@quick
@given(st.floats(0.01, 10), st.floats(0, 100), st.floats(0.1, 24), st.floats(0.5, 200), st.booleans())
def test_what_one_more_pod_may_cost_is_there(
    price: float, committed: float, hours: float, cost: float, alone: bool
) -> None:
    chosen = RunpodSettings.of(BASIS | {"max_cost": cost, "max_hours": hours})
    may = affordable_hours(chosen, committed, price, alone=alone)
    assert 0 <= may <= hours
    assert may == 0 or committed + may * price <= cost * (1 + 1e-9)
    if committed + hours * price <= cost * (1 - 1e-9):
        assert may == hours


EVENTS = [
    {"t": 0.0, "kind": "sweep.intent", "name": "s", "jobs": [0]},
    {"t": 0.0, "kind": "sweep", "name": "s", "id": "i"},
    {"t": 100.0, "kind": "pod.intent", "name": "p", "slot": 0, "attempt": 1, "candidate": ["A", "secure", None],
     "price": 3.6, "until": 1100.0},
    {"t": 101.0, "kind": "pod", "name": "p", "id": "x"},
    {"t": 200.0, "kind": "pod.price", "name": "p", "price": 7.2},
    {"t": 300.0, "kind": "pod.ready", "name": "p"},
    {"t": 600.0, "kind": "pod.gone", "name": "p"},
]  # fmt: skip


def test_a_pod_costs_from_its_request_to_the_listing_that_missed_it_and_never_beyond_its_date() -> None:
    asked = State.of(EVENTS[:3])
    assert asked.spent(600) == pytest.approx(0.5)
    assert asked.committed(600) == pytest.approx(1.0)
    assert asked.spent(10**6) == pytest.approx(1.0)
    assert State.of(EVENTS[:5]).committed(600) == pytest.approx(2.0)
    gone = State.of(EVENTS)
    assert gone.spent(10**6) == gone.committed(10**6) == pytest.approx(1.0)
    assert gone.live == []
    never = State.of([*EVENTS[:3], {"t": 150.0, "kind": "pod.refused", "name": "p", "why": "none left"}])
    assert never.committed(600) == 0
    late = State.of([*EVENTS[:4], {"t": 1500.0, "kind": "pod.overdue", "name": "p"}])
    assert late.spent(10**6) == pytest.approx(1.4)


# --- Fates


@st.composite
def runs(draw: st.DrawFn) -> list[WandbRun]:
    found = []
    for number in range(draw(st.integers(0, 7))):
        state = draw(st.sampled_from(
            ["running", "finished", "failed", "crashed", "killed", "preempted", "preempting", "pending"]
        ))  # fmt: skip
        created = draw(st.floats(0, 1000))
        told = {"outcome": draw(st.sampled_from(["finished", None]))} if state == "finished" else {}
        text = draw(st.sampled_from([job(0).text, job(1).text, job(2).text, None, "another's"]))
        beat = draw(st.floats(created, 1000))
        found.append(WandbRun(
            f"r{number}", "", state, "s", text, created, beat, draw(st.booleans()), "pod", beat - created,
            {"m": float(number)} | told, {"pod_price": 0.5},
        ))  # fmt: skip
    return found


@quick
@given(runs(), st.integers(0, 3), st.integers(0, 2**32))
def test_each_job_has_one_fate_whatever_its_runs(found: list[WandbRun], retries: int, seed: int) -> None:
    jobs = [job(index) for index in range(3)]
    status = job_results(jobs, found, retries, 1000.0, "m")
    assert [result.index for result in status] == [0, 1, 2]
    shuffled = random.Random(seed).sample(found, len(found))
    assert job_results(jobs, shuffled, retries, 1000.0, "m") == status
    assert job_results(jobs, [run for run in found if not run.duplicate], retries, 1000.0, "m") == status
    for own, result in zip(jobs, status, strict=True):
        of = [run for run in found if run.job == own.text and not run.duplicate]
        stored = [run for run in of if run.stored]
        ended = [run for run in of if not run.stored and not run.alive(1000.0)]
        waiting = [run for run in ended if run.state in ("preempted", "preempting", "pending")]
        assert (result.state == "finished") == bool(stored)
        assert result.attempts == len(ended) - len(waiting)
        assert (result.state == "queued") == (not of)
        assert result.state != "failed" or result.attempts > retries
        assert result.state != "retry" or 0 < result.attempts <= retries
        assert result.dollars == pytest.approx(sum(run.seconds for run in of) / 3600 * 0.5, abs=1e-4)
        if result.run is not None:
            (counts,) = [run for run in of if run.id == result.run]
            assert result.value == counts.summary["m"]
        if stored:
            assert result.run in {run.id for run in stored}
        assert (result.reason is None) == (result.state != "failed")


@quick
@given(runs(), st.integers(0, 2**32))
def test_of_runs_of_one_job_at_most_one_has_no_rival_among_the_living(found: list[WandbRun], seed: int) -> None:
    same = [dataclasses.replace(run, job="j", duplicate=False) for run in found]
    alive = [run for run in same if run.alive(1000.0)]
    without = [run for run in alive if competing_run(run.id, same, resumed=False, now=1000.0) is None]
    assert len(without) <= 1
    if alive and not any(run.stored for run in same):
        assert without == [min(alive, key=lambda run: (run.created, run.id))]


def test_silence_is_death() -> None:
    run = WandbRun("r", "", "running", "s", job(0).text, 0.0, 0.0)
    assert job_results([job(0)], [run], 0, HEARTBEAT_TIMEOUT - 1, None)[0].state == "running"
    assert job_results([job(0)], [run], 0, HEARTBEAT_TIMEOUT + 1, None)[0].state == "failed"
    assert job_results([job(0)], [run], 1, HEARTBEAT_TIMEOUT + 1, None)[0].state == "retry"


def test_a_searchs_runs_are_its_jobs() -> None:
    drawn = [WandbRun(f"r{i}", "", "finished", "s", "0||", float(i), 9.0, summary={"outcome": "finished", "m": i / 2},
                 config={"optim.lr": i, "pod": "x"}) for i in (1, 0)]  # fmt: skip
    found = search_job_results(drawn, ["optim.lr"], 10.0, "m")
    assert [(result.index, result.overrides, result.value) for result in found] == [
        (0, ("optim.lr=0",), 0.0),
        (1, ("optim.lr=1",), 0.5),
    ]


def test_fates_survive_their_file(tmp_path: Path) -> None:
    found = [
        JobResult(0, ("a=1",), "finished", "r", value=0.5, metrics={"m": 0.5}),
        JobResult(1, ("a=2",), "failed", reason="so"),
    ]
    assert read_results(tmp_path) == []
    write_results(tmp_path, found, spent=1.0)
    assert read_results(tmp_path) == found
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        read_results(tmp_path)


# --- The text that rents a pod


def sent(offer: Offer) -> tuple[str, dict[str, Any]]:
    """The mutation and its input as a GraphQL server reads them."""
    document = graphql.parse(creation(offer))
    assert graphql.validate(_SCHEMA, document) == []
    (definition,) = document.definitions
    assert isinstance(definition, graphql.OperationDefinitionNode)
    (field,) = definition.selection_set.selections
    assert isinstance(field, graphql.FieldNode)
    return field.name.value, graphql.value_from_ast_untyped(field.arguments[0].value)


def offer(
    chosen: RunpodSettings, start: str = "wavespace", env: dict[str, str] | None = None, name: str = "n"
) -> Offer:
    return Offer(name, chosen.candidates[0], 0.25, 1_800_000_000.0, start, env or {}, chosen)


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@quick
@given(ANY, ANY, st.dictionaries(ANY, ANY, max_size=3))
def test_whatever_is_sent_arrives_as_it_was(name: str, start: str, env: dict[str, str]) -> None:
    _, given = sent(offer(plan().settings, start, env, name))
    assert (given["name"], given["dockerArgs"]) == (name, start)
    assert {item["key"]: item["value"] for item in given["env"]} == env


@pytest.mark.parametrize(
    "text", ['"', "\\", '\\"', "\n", "\r\n", "\t", "\u2028", "\x00", "\x7f", "🎹", '"""', "{}()$!#"]
)
def test_signs_of_graphql_arrive_as_text(text: str) -> None:
    assert sent(offer(plan().settings, text))[1]["dockerArgs"] == text


def test_a_request_has_the_date_the_place_the_price_and_the_drivers() -> None:
    plain, given = sent(offer(plan().settings))
    assert plain == "podFindAndDeployOnDemand"
    assert datetime.fromisoformat(given["terminateAfter"]).timestamp() == 1_800_000_000
    assert not {"bidPerGpu", "allowedCudaVersions", "networkVolumeId", "dataCenterId"} & set(given)
    wishes = {"spot": True, "cuda": ["13.0", "13.1"], "volume": "v1", "data_centers": ["EU-RO-1"], "clouds": ["secure"]}
    spot, given = sent(offer(plan(**wishes).settings))
    assert spot == "podRentInterruptable"
    assert given["bidPerGpu"] == 0.25
    assert given["allowedCudaVersions"] == ["13.0", "13.1"]
    assert (given["networkVolumeId"], given["volumeMountPath"]) == ("v1", "/workspace")
    assert (given["cloudType"], given["dataCenterId"], given["gpuTypeId"]) == ("SECURE", "EU-RO-1", "A")
    assert given["gpuCount"] == 1


def test_a_pod_is_told_all_that_it_must_know_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-key-that-must-not-travel" * 2)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("RUNPOD_API_BASE_URL", raising=False)
    of = plan(env={"MODE": "a b"}, secrets={"WANDB_API_KEY": "other"}, volume="v", idle_timeout=2.5)
    assert environment(of.settings, 0.25) == {
        "WANDB_BASE_URL": "http://127.0.0.1:1", "WAVESPACE_RUNS": "/workspace/runs", "WAVESPACE_POD_PRICE": "0.25",
        "MODE": "a b", "WANDB_API_KEY": "{{ RUNPOD_SECRET_other }}",
    }  # fmt: skip
    start = command(of, "us/project", "ws-x-0-1", 1_800_000_000.4)
    assert start == (
        f"wavespace pod-entry {of.id} --name ws-x-0-1 --path us/project --until 1800000000 --idle 2.5"
    )  # fmt: skip
    assert command(dataclasses.replace(of, keep_pods=True), "us/project", "n", 0.0).endswith(" --stay")


def test_candidates_of_a_machine_read_well() -> None:
    assert str(Candidate("A", "secure", None)) == "A (secure)"
    assert list(itertools.islice(map(str, plan().settings.candidates), 2)) == ["A (community)", "A (secure)"]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"processes": 2, "raise_on_failure": False, "_target_": "x"}, None),
        ({"processes": None}, None),
        ({"processes": 0}, "hydra.launcher.processes = 0: input should be greater than or equal to 1"),
        ({"processes": True}, "hydra.launcher.processes = True: input should be a valid integer"),
        ({"raise_on_failure": "no"}, "hydra.launcher.raise_on_failure = 'no': input should be a valid boolean"),
        ({"pods": 2}, "hydra.launcher.pods: there is no such key; keys: processes, raise_on_failure"),
    ],
)
def test_settings_of_local_processes(given: dict[str, Any], fault: str | None) -> None:
    if fault is None:
        assert read_settings(LocalSettings, given).processes == given["processes"]
        return
    with pytest.raises(ConfigError, match=re.escape(fault)):
        read_settings(LocalSettings, given)

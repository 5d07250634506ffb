"""The stand-in for W&B, held against the unmodified client: its library, its agent and its command line."""

from __future__ import annotations

import base64
import http.client
import json
import math
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from standins.wandb_server import KEY, Refused, WandbCore, WandbServer

ME = ("tester", "room")

LIFE = """
import json, os, sys
import numpy, wandb
from click.testing import CliRunner
from wandb.cli.cli import cli

seen = {}
fast = wandb.Settings(x_file_stream_transmit_interval=1)
with wandb.init(project="room", id="first", name="First", job_type="train", tags=["a", "b"], settings=fast,
                config={"job": "0|x", "optim": {"lr": 0.1}}) as run:
    run.config.update({"launch": "L1"})
    print("said aloud", flush=True)
    for step in range(5):
        run.log({"loss": 1.0 / (step + 1), "step": step})
    run.log({"picture": wandb.Image(numpy.zeros((4, 4, 3), dtype=numpy.uint8))})
    run.summary["best"] = 0.25
    with open("weights.bin", "w") as file:
        file.write("one")
    artifact = wandb.Artifact("weights", type="model", metadata={"step": 5})
    artifact.add_file("weights.bin")
    run.log_artifact(artifact, aliases=["latest", "step-5"])
with wandb.init(project="room", id="first", resume="allow", settings=fast) as run:
    seen["resumed"] = [run.resumed, run.starting_step, run.config["launch"]]
    run.log({"loss": 0.1})
    with open("weights.bin", "w") as file:
        file.write("two!")
    artifact = wandb.Artifact("weights", type="model")
    artifact.add_file("weights.bin")
    run.log_artifact(artifact).wait()
    used = run.use_artifact("weights:v0")
    seen["used"] = open(os.path.join(used.download("down0"), "weights.bin")).read()
with wandb.init(project="room", id="second", name="Second", job_type="test", resume="allow", tags=["b"], settings=fast,
                config={"job": "1|y"}) as run:
    seen["resumed_new"] = run.resumed
    run.log({"loss": 0.7})

api = wandb.Api()
def names(**filters):
    return sorted(run.id for run in wandb.Api().runs("tester/room", filters=filters, lazy=False, per_page=1))
seen["found"] = {
    "job": names(**{"config.job": "0|x"}), "value": names(**{"config.job.value": "1|y"}),
    "launch": names(**{"config.launch": "L1"}), "tags": names(tags="a"), "either": names(tags={"$in": ["a", "b"]}),
    "jobType": names(jobType="train"), "nested": names(**{"config.optim.lr": {"$lt": 0.2}}),
    "summary": names(**{"summary_metrics.best": {"$exists": True}}), "none": names(sweep="nothing"),
    "both": names(**{"$and": [{"state": "finished"}, {"$or": [{"name": "x"}, {"display_name": {"$regex": "^Fir"}}]}]}),
}
try:
    names(colour="blue")
except Exception as error:
    seen["unknown filter"] = str(error)
run = api.run("tester/room/first")
seen["run"] = {
    "config": run.config, "summary": {k: run.summary[k] for k in ("loss", "best")},
    "state": run.state, "name": run.name,
    "created_at": run.created_at, "heartbeat_at": run.heartbeat_at, "tags": run.tags, "job_type": run.job_type,
    "metrics": run.summary_metrics["best"], "sweep": run.sweep, "last": run.lastHistoryStep,
    "history": [row.get("loss") for row in run.history(pandas=False)], "frame": len(run.history()),
    "sampled": [row["loss"] for row in run.history(keys=["loss"], pandas=False)],
    "scan": [(row["_step"], row["loss"]) for row in run.scan_history(keys=["loss"])],
    "whole": len(list(run.scan_history())), "metadata": run.metadata is not None,
    "files": sorted(file.name for file in run.files() if "media" not in file.name),
    "missing": run.file("nothing.txt").md5, "logs": [[line.number, line.content] for line in run.console_logs()],
    "tail": [line.content for line in run.console_logs(last=1)],
}
with open("note.txt", "w") as file:
    file.write("hello")
run.upload_file("note.txt")
seen["file"] = run.file("note.txt").download(root="down1").read()
run.tags.append("late")
run.config["added"] = 3
run.update()
again = wandb.Api().run("tester/room/first")
seen["updated"] = [again.tags, again.config["added"], again.state, again.config["job"]]
artifact = api.artifact("tester/room/weights:latest")
seen["artifact"] = [artifact.version, sorted(artifact.aliases), artifact.type, artifact.size,
                    open(os.path.join(artifact.download("down2"), "weights.bin")).read(),
                    api.artifact("tester/room/weights:step-5").metadata, artifact.logged_by().id]
seen["artifacts"] = [a.version for a in api.artifacts("model", "tester/room/weights")]
seen["exists"] = [api.artifact_exists("tester/room/weights:v0"), api.artifact_exists("tester/room/weights:v7"),
                  api.artifact_exists("tester/room/other:latest")]
seen["logged"] = [a.name for a in again.logged_artifacts()]
seen["inputs"] = [a.name for a in again.used_artifacts()]
api.artifact("tester/room/weights:v0").delete(delete_aliases=True)
seen["left"] = [a.version for a in wandb.Api().artifacts("model", "tester/room/weights")]

config = {"name": "L1", "method": "grid", "parameters": {"job": {"values": ["0|x", "1|y"]}}}
sweep_id = wandb.sweep(config, project="room", entity="tester")
twin = wandb.sweep(config, project="room", entity="tester")
sweeps = wandb.Api().project("room", "tester").sweeps(per_page=1)
seen["sweeps"] = [[s.name, s.display_name, s.config["name"], s.state, s.id in (sweep_id, twin)] for s in sweeps]
def told(*args):
    done = CliRunner().invoke(cli, ["sweep", *args])
    assert done.exit_code == 0, done.output
told("--stop", f"tester/room/{sweep_id}")
told("--cancel", f"tester/room/{twin}")
seen["ended"] = [wandb.Api().sweep(f"tester/room/{name}").state for name in (sweep_id, twin)]
seen["expected"] = wandb.Api().sweep(f"tester/room/{twin}").expected_run_count

doomed = wandb.init(project="room", id="doomed", settings=fast)
api.run("tester/room/doomed").delete()
doomed.log({"loss": 1})
doomed.finish()
seen["projects"] = [p.name for p in api.projects("tester")]
with open("seen.json", "w") as file:
    json.dump(seen, file, default=str)
"""

JOB = """
import signal, sys, time
import wandb

job = sys.argv[1].removeprefix("job=")
run = wandb.init(resume="allow", settings=wandb.Settings(x_file_stream_transmit_interval=1))
print("from", job, run.resumed, run.starting_step, flush=True)
run.log({"step": run.starting_step})
if job == "0|preempted" and not run.resumed:
    run.mark_preempting()
    run.finish(exit_code=143)
    sys.exit(143)
if job == "2|stopped":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    time.sleep(60)
run.finish()
"""


def client_env(server: WandbServer, folder: Path) -> dict[str, str]:
    """The environment of a client that leaves nothing outside `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    places = {
        name: str(folder) for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | server.env | places | {"PATH": path, "OMP_NUM_THREADS": "1"}


def until(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], WandbServer]]:
    """What a client saw of W&B, and the server."""
    folder = tmp_path_factory.mktemp("life")
    with WandbServer(WandbCore(deleted_status=404), keep=True) as server:
        server.fail("UpsertSweep", "lost")
        server.fail("Runs", "html", after=1)
        server.fail("file_stream", "refuse", after=1)
        done = subprocess.run(
            [sys.executable, "-c", LIFE],
            cwd=folder,
            env=client_env(server, folder),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        yield json.loads((folder / "seen.json").read_text()), server


def test_a_run_comes_back_as_it_was_logged(life: tuple[dict[str, Any], WandbServer]) -> None:
    seen, server = life
    run, losses = seen["run"], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert run["config"] == {"job": "0|x", "optim": {"lr": 0.1}, "launch": "L1", "added": 3}  # added: by update, later
    assert (run["name"], run["job_type"], run["state"], run["sweep"]) == ("First", "train", "finished", None)
    assert run["summary"] == {"loss": 0.1, "best": 0.25}
    assert run["metrics"] == 0.25
    assert run["history"] == pytest.approx([*losses, None, 0.1])
    assert run["sampled"] == pytest.approx([*losses, 0.1])
    assert run["scan"] == [[step, pytest.approx(loss)] for step, loss in [*enumerate(losses), (6, 0.1)]]
    assert (run["last"], run["frame"], run["whole"]) == (6, 7, 7)
    assert run["created_at"].endswith("Z")
    assert run["heartbeat_at"] >= run["created_at"]
    assert seen["resumed"] == [True, 6, "L1"]
    assert seen["resumed_new"] is False
    kept = server.core.runs["first"]
    assert (kept.exit_code, kept.created_at <= kept.heartbeat_at) == (0, True)
    (picture,) = [content for name, content in kept.files.items() if name.startswith("media/images/picture_5_")]
    assert picture.startswith(b"\x89PNG")


def test_runs_are_found_by_what_the_client_filters(life: tuple[dict[str, Any], WandbServer]) -> None:
    seen, _ = life
    assert seen["found"] == {
        "job": ["first"],
        "value": ["second"],
        "launch": ["first"],
        "tags": ["first"],
        "either": ["first", "second"],
        "jobType": ["first"],
        "nested": ["first"],
        "summary": ["first"],
        "none": [],
        "both": ["first"],
    }
    assert seen["unknown filter"] == "unknown field 'colour' of a run"


def test_files_and_changes_of_a_run_are_kept(life: tuple[dict[str, Any], WandbServer]) -> None:
    seen, server = life
    assert seen["file"] == "hello"
    assert server.core.runs["first"].files["note.txt"] == b"hello"
    assert {"config.yaml", "wandb-metadata.json", "wandb-summary.json"} <= set(seen["run"]["files"])
    assert seen["run"]["metadata"]
    assert seen["run"]["missing"] == "0"
    assert [0, "said aloud"] in seen["run"]["logs"]
    assert len(seen["run"]["tail"]) == 1
    assert seen["updated"] == [["a", "b", "late"], 3, "finished", "0|x"]


def test_artifacts_come_back_by_version_and_alias(life: tuple[dict[str, Any], WandbServer]) -> None:
    seen, _ = life
    assert seen["used"] == "one"
    assert seen["artifact"] == ["v1", ["latest"], "model", 4, "two!", {"step": 5}, "first"]
    assert seen["artifacts"] == ["v1", "v0"]
    assert seen["left"] == ["v1"]  # v0 was deleted
    assert seen["exists"] == [True, False, False]
    assert seen["logged"] == ["weights:v0", "weights:v1"]
    assert seen["inputs"] == ["weights:v0"]


def test_sweeps_are_listed_and_ended_by_the_command_line(life: tuple[dict[str, Any], WandbServer]) -> None:
    seen, server = life
    # An answer was lost, the client asked again without a word, and now there is one more than it knows of.
    assert sorted(seen["sweeps"]) == [["L1", None, "L1", "PENDING", known] for known in (False, True, True)]
    assert [fault.hits for fault in server.faults] == [1, 1, 1]
    assert seen["ended"] == ["FINISHED", "CANCELED"]
    assert seen["expected"] == 2
    assert [sweep.config["parameters"]["job"]["values"] for sweep in server.core.sweeps.values()] == [
        ["0|x", "1|y"]
    ] * 3


def test_a_run_deleted_while_it_lives_is_lost_without_a_word(life: tuple[dict[str, Any], WandbServer]) -> None:
    _, server = life
    assert "doomed" not in server.core.runs
    with pytest.raises(Refused, match="not found"):
        server.core.touch(*ME, "doomed")


def test_the_client_asks_for_nothing_that_is_not_known(life: tuple[dict[str, Any], WandbServer]) -> None:
    _, server = life
    assert server.drift == ["Runs: unknown field 'colour' of a run"]  # which a test asked for
    assert not any(KEY.encode() in body for body in server.bodies)


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def jobs(count: int, **more: Any) -> dict[str, Any]:
    return {"method": "grid", "parameters": {"job": {"values": list(range(count))}}} | more


def finish(core: WandbCore, run_id: str) -> None:
    core.upsert_run(*ME, run_id)
    core.stream(*ME, run_id, exit_code=0, complete=True)


def test_silence_is_a_crash_or_the_end_of_a_preemption() -> None:
    clock = Clock()
    core = WandbCore(clock=clock, pending_silence=math.inf)
    agent = core.create_agent(core.create_sweep(jobs(3), *ME))
    names = [core.heartbeat(agent, {})[0]["run_id"] for _ in range(3)]
    core.upsert_run(*ME, names[0])
    core.upsert_run(*ME, names[1])
    core.stream(*ME, names[1], preempting=True)
    clock.now += 299
    core.touch(*ME, names[0])
    clock.now += 2
    assert [core.runs[name].state for name in names] == ["running", "preempted", "pending"]
    clock.now += 299
    assert [core.runs[name].state for name in names] == ["crashed", "preempted", "pending"]
    assert core.heartbeat(agent, {}) == [
        {"type": "resume", "run_id": names[1], "program": None, "args": {"job": {"value": 1}}}
    ]
    core.touch(*ME, names[0])
    assert core.runs[names[0]].state == "running"  # it was only late


def test_a_grid_is_issued_once_and_the_sweep_ends_with_its_last_run() -> None:
    core = WandbCore()
    config = {"method": "grid", "parameters": {"a": {"values": [1, 2]}, "b": {"value": "x"}, "c": {"values": [3, 4]}}}
    sweep = core.create_sweep(config, *ME)
    assert core.sweeps[sweep].state == "PENDING"
    one, two = core.create_agent(sweep), core.create_agent(sweep)
    issued = [core.heartbeat(agent, {})[0] for agent in (one, two, one, two)]
    points = [tuple(entry["value"] for entry in command["args"].values()) for command in issued]
    assert sorted(points) == [(1, "x", 3), (1, "x", 4), (2, "x", 3), (2, "x", 4)]
    names = [command["run_id"] for command in issued]
    for name in names[:3]:
        finish(core, name)
    assert core.heartbeat(one, {}) == []  # the last may yet be preempted
    assert core.sweeps[sweep].state == "RUNNING"
    core.upsert_run(*ME, names[3])
    core.stream(*ME, names[3], preempting=True)
    for _ in range(2):  # sent again after a lost answer
        core.stream(*ME, names[3], exit_code=143, complete=True)
    assert [command["type"] for command in core.heartbeat(one, {})] == ["resume"]
    assert core.heartbeat(two, {}) == []
    finish(core, names[3])
    assert core.sweeps[sweep].state == "FINISHED"
    assert core.heartbeat(two, {}) == [{"type": "exit"}]


def test_agents_are_told_to_stop_and_to_exit() -> None:
    core = WandbCore()
    sweep = core.create_sweep(jobs(9), *ME)
    agent = core.create_agent(sweep)
    name = core.heartbeat(agent, {})[0]["run_id"]
    core.upsert_run(*ME, name)
    assert core.heartbeat(agent, {name: True}) == []
    core.stop_run(*ME, name)
    assert core.touch(*ME, name)
    assert core.heartbeat(agent, {name: True}) == [{"type": "stop", "run_id": name}]
    core.stream(*ME, name, exit_code=1, complete=True)
    assert core.runs[name].state == "killed"
    core.set_sweep_state(sweep, "PAUSED")
    assert core.heartbeat(agent, {}) == []
    core.set_sweep_state(sweep, "FINISHED")
    assert core.heartbeat(agent, {"another": True}) == []  # may end its run
    assert core.heartbeat(agent, {}) == [{"type": "exit"}]
    core.set_sweep_state(sweep, "CANCELED")
    assert core.heartbeat(agent, {"another": True}) == [{"type": "exit"}]
    core.delete_sweep(sweep)
    with pytest.raises(Refused) as refused:
        core.heartbeat(agent, {})
    assert refused.value.status == 404


def test_points_go_missing_and_come_twice_where_a_test_wants_it() -> None:
    core = WandbCore(seed=5, issue_twice=0.3, issue_never=0.2)
    sweep = core.create_sweep(jobs(100), *ME)
    agent = core.create_agent(sweep)
    issued: list[int] = []
    while (command := core.heartbeat(agent, {})[0])["type"] == "run":
        issued.append(command["args"]["job"]["value"])
        finish(core, command["run_id"])
    dropped = [point["job"] for point in core.sweeps[sweep].dropped]
    assert sorted(set(issued) | set(dropped)) == list(range(100))
    assert set(issued) & set(dropped) == set()
    assert 10 < len(dropped) < 30
    assert 12 < len(issued) - len(set(issued)) < 40


def test_draws_keep_to_their_ranges_until_the_cap() -> None:
    parameters = {
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
        "x": {"distribution": "uniform", "min": -1.0, "max": 1.0},
        "n": {"distribution": "int_uniform", "min": 1, "max": 3},
        "q": {"distribution": "q_uniform", "min": 0, "max": 10, "q": 5},
        "model": {"values": ["a", "b"]},
    }
    core = WandbCore(seed=1)
    sweep = core.create_sweep({"method": "bayes", "parameters": parameters, "run_cap": 400}, *ME)
    agent = core.create_agent(sweep)
    while (command := core.heartbeat(agent, {})[0])["type"] == "run":
        finish(core, command["run_id"])
    drawn = [run.config for run in core.runs.values()]
    assert len(drawn) == 400
    assert all(1e-4 <= point["lr"] <= 1e-1 and -1 <= point["x"] <= 1 for point in drawn)
    assert 0.4 < sum(point["lr"] < 10**-2.5 for point in drawn) / 400 < 0.6  # the middle of a logarithmic range
    assert {point["n"] for point in drawn} == {1, 2, 3}
    assert {point["q"] for point in drawn} == {0, 5, 10}
    assert {point["model"] for point in drawn} == {"a", "b"}
    for spec in ({"min": 0, "max": 1}, {"distribution": "uniform", "min": 2, "max": 1}, {}):
        with pytest.raises(Refused, match="parameter bad"):
            core.create_sweep({"method": "random", "parameters": {"bad": spec}}, *ME)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, "abc"),
        ({"config.lr": 0.1}, "a"),
        ({"config.optim.lr": {"$gte": 2}}, "bc"),
        ({"config.dotted.key": 7}, "c"),
        ({"config.lr": None}, "bc"),
        ({"config.lr": {"$exists": False}}, "bc"),
        ({"config.lr": {"$exists": True}}, "a"),
        ({"config.lr": {"$ne": 0.1}}, "bc"),
        ({"config.lr": {"$lt": "text"}}, ""),
        ({"tags": "x"}, "ab"),
        ({"tags": {"$nin": ["y"]}}, "ac"),
        ({"tags": {"$in": ["y", "z"]}}, "bc"),
        ({"summaryMetrics.loss": {"$gt": 1, "$lte": 3}}, "bc"),
        ({"$or": [{"name": "a"}, {"$and": [{"jobType": "train"}, {"state": "running"}]}]}, "ab"),
        ({"$nor": [{"name": "a"}, {"display_name": {"$regex": "^Run"}}]}, "c"),
        ({"createdAt": {"$gt": "2027-01-15T08:00:00Z"}}, "bc"),
    ],
)
def test_filters_are_those_of_mongo(filters: dict[str, Any], found: str) -> None:
    clock = Clock()
    core = WandbCore(clock=clock)
    rows = [
        ("a", {"lr": 0.1}, {"loss": 1}, ["x"], "eval", "Run A"),
        ("b", {"optim": {"lr": 2}}, {"loss": 2}, ["x", "y"], "train", "Run B"),
        ("c", {"optim": {"lr": 3}, "dotted.key": 7}, {"loss": 3}, ["z"], "other", "C"),
    ]
    for name, config, summary, tags, kind, title in rows:
        core.upsert_run(*ME, name, config=config, summary=summary, tags=tags, job_type=kind, display_name=title)
        clock.now += 1
    assert "".join(run.id for run in core.find_runs(*ME, filters)) == found
    assert "".join(run.id for run in core.find_runs(*ME, filters, "-created_at")) == found[::-1]


def ask(server: WandbServer, query: str, **variables: Any) -> tuple[int, Any]:
    """Status and answer of a GraphQL request; (0, None) where the connection ends without one."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    key = base64.b64encode(f"api:{KEY}".encode()).decode()
    headers = {"Authorization": f"Basic {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/graphql", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, None


SWEEP = """mutation UpsertSweep($config: String, $projectName: String) {
  upsertSweep(input: {config: $config, projectName: $projectName}) { sweep { name } }
}"""


def test_faults_strike_as_told() -> None:
    config = json.dumps(jobs(1))
    with WandbServer() as server:

        def create() -> tuple[int, int]:
            """Status, and how many sweeps there are."""
            return ask(server, SWEEP, config=config, projectName="room")[0], len(server.core.sweeps)

        server.fail("UpsertSweep", "lost", after=1)
        assert [create(), create(), create()] == [(200, 1), (0, 2), (200, 3)]
        server.fail("UpsertSweep", "refuse")
        server.fail("*", "429")
        server.fail("UpsertSweep", "html")
        server.fail("Heartbeat", "500", times=None)
        assert [create(), create(), create(), create()] == [(0, 3), (429, 3), (502, 3), (200, 4)]
        server.fail("UpsertSweep", "slow", seconds=0.3)
        start = time.monotonic()
        assert create() == (200, 5)
        assert time.monotonic() - start >= 0.3
        often = server.fail("UpsertSweep", "500", times=None, probability=0.5)
        failed = sum(create()[0] == 500 for _ in range(30))
        assert 4 < failed < 26
        assert often.hits == failed
        assert server.counts == {"UpsertSweep": 38}
        assert server.drift == []


def test_what_the_server_does_not_know_is_an_error_and_is_noted() -> None:
    with WandbServer() as server:
        viewer = "query Viewer { viewer { id entity %s } }"
        assert ask(server, viewer % "") == (200, {"data": {"viewer": {"id": "user:tester", "entity": "tester"}}})
        for query, wrong in [
            (viewer % "shoeSize", "Cannot query field 'shoeSize' on type 'User'"),
            ("query Viewer { viewer(size: 3) { id } }", "Unknown argument 'size'"),
            ("mutation Party { party { id } }", "Cannot query field 'party'"),
            ("query {", "Syntax Error"),
        ]:
            status, answer = ask(server, query)
            assert status == 400
            assert wrong in json.loads(answer)["errors"][0]["message"]
            assert wrong in server.drift[-1]
        fields = 'project(name: "room") { runs(filters: $filters) { edges { cursor } } }'
        runs = f"query Runs($filters: JSONString) {{ {fields} }}"
        server.core.project(*ME)
        assert ask(server, runs, filters="{}")[0] == 200
        assert ask(server, runs, filters='{"colour": 1}')[0] == 400
        assert ask(server, runs, filters="{")[0] == 400
        assert len(server.drift) == 6


def test_real_agents_do_a_grid_and_resume_and_stop(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    config = {
        "method": "grid",
        "parameters": {"job": {"values": ["0|preempted", "1|well", "2|stopped"]}},
        "program": "job.py",
        "command": ["${interpreter}", "${program}", "${args_no_hyphens}"],
    }
    with WandbServer() as server:
        core = server.core
        sweep = core.create_sweep(config, *ME)

        def agent(*options: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "wandb", "agent", "--forward-signals", *options, f"tester/room/{sweep}"]
            return subprocess.Popen(
                command,
                cwd=tmp_path,
                env=client_env(server, tmp_path),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )

        def run(job: str) -> Any:
            return next((run for run in core.runs.values() if run.config.get("job") == job), None)

        first = agent("--count", "1")
        output, _ = first.communicate(timeout=120)
        assert first.returncode == 0, output
        assert [run.state for run in core.runs.values()] == ["preempted"]
        assert (run("0|preempted").exit_code, list(core.sweeps[sweep].resumes)) == (143, [run("0|preempted").id])

        second = agent()
        try:
            until(lambda: run("2|stopped") is not None and run("2|stopped").history)
            core.stop_run(*ME, run("2|stopped").id)
            output, _ = second.communicate(timeout=120)
        finally:
            second.kill()
        assert second.returncode == 0, output
        assert [(run.config["job"], run.state) for run in core.runs.values()] == [
            ("0|preempted", "finished"),
            ("1|well", "finished"),
            ("2|stopped", "killed"),
        ]
        assert run("2|stopped").exit_code == 1  # its agent was told to stop it, and sent SIGTERM
        assert [row["step"] for row in run("0|preempted").history] == [
            0,
            1,
        ]  # the second agent went on where it stopped
        assert len({run.agent for run in core.runs.values()}) == 1
        assert core.sweeps[sweep].state == "FINISHED"
        assert [len(agent.runs) for agent in core.agents.values()] == [1, 3]
        assert server.drift == []

"""A W&B server on the loopback interface, for tests of sweeps.

`WandbCore` is what W&B remembers and decides: no network, and a clock that a test may turn. `WandbServer` speaks W&B's
protocol over it with the unmodified client 0.31. It is our reading of W&B from its client: what passes here proves the
client's side only.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import math
import random
import re
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import graphql
import yaml

ALIVE = ("pending", "running", "preempting")
KEY = "stand-in-" + "0123456789abcdef" * 3  # the client wants 40 characters
# What the server says it can do: W&B's newer ways, but for registries, automations and its local scheduler.
FEATURES = (
    "LARGE_FILENAMES",
    "ARTIFACT_TAGS",
    "CLIENT_IDS",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
    "ARTIFACT_COLLECTIONS_FILTERING_SORTING",
    "MARK_RUN_FILES_UPLOADED",
    "SWEEPS_QUERY_FILTERING",
    "FILESTREAM_GZIP",
    "ARTIFACT_DIGEST_ALGORITHM",
)


class Refused(Exception):
    """The server says no, with an HTTP status: 400 it doesn't understand, 404 it's not there, 409 it was deleted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Run:
    """A run.

    Attributes:
        config: plain values; W&B's own notes (`_wandb`) are `internal`.
        sweep: id of the sweep that it belongs to.
        agent: id of the agent that it was last given to.
        history: a row for each step that was logged.
        events: rows of the machine's figures, as JSON.
        logs: lines of the console, as the client sends them.
        files: uploaded files by name.
        preempting: said that it is about to be interrupted.
        stopped: somebody asked it to stop.
        used: ids of the artifacts that it took as input.
    """

    id: str
    entity: str
    project: str
    created_at: float
    heartbeat_at: float
    state: str = "pending"
    sweep: str | None = None
    agent: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    internal: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    job_type: str | None = None
    group: str | None = None
    display_name: str | None = None
    notes: str | None = None
    host: str | None = None
    commit: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False
    stopped: bool = False
    used: list[str] = field(default_factory=list)


@dataclass
class Sweep:
    """A sweep.

    Attributes:
        text: its config as it was sent (YAML).
        state: PENDING (no agent yet), RUNNING, PAUSED, FINISHED or CANCELED.
        points: those of a grid that were not issued yet; None where points are drawn.
        repeats: points that will be issued a second time.
        resumes: ids of preempted runs that wait for an agent.
        runs: ids of its runs, in order.
        issued: how many runs were issued, for `run_cap`.
        dropped: points that were never issued, by `issue_never`.
    """

    id: str
    entity: str
    project: str
    config: dict[str, Any]
    text: str
    created_at: float
    state: str = "PENDING"
    display_name: str | None = None
    points: deque[dict[str, Any]] | None = None
    repeats: deque[dict[str, Any]] = field(default_factory=deque)
    resumes: deque[str] = field(default_factory=deque)
    runs: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    issued: int = 0
    dropped: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Agent:
    """An agent of a sweep; `runs` are the ids of those that it was given."""

    id: str
    sweep: str
    host: str
    created_at: float
    heartbeat_at: float
    runs: list[str] = field(default_factory=list)


@dataclass
class Artifact:
    """A version of an artifact; `manifest` and `files` are as uploaded."""

    id: str
    entity: str
    project: str
    run: str | None
    type: str
    name: str
    version: int
    digest: str
    created_at: float
    state: str = "PENDING"
    metadata: str | None = None
    description: str | None = None
    aliases: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    manifest: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Project:
    """A project: runs by id, and the ids of runs that were deleted."""

    entity: str
    name: str
    number: int
    created_at: float
    runs: dict[str, Run] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)


class WandbCore:
    """What W&B remembers and decides. All methods may be called from several threads.

    Args:
        clock: gives the time in seconds.
        seed: of the points that are drawn, of ids and of misbehaviour.
        issue_twice: probability that a point is issued a second time, at once.
        issue_never: probability that a point is not issued at all.
        silence: seconds without a heartbeat after which a run has crashed.
        pending_silence: the same for a run that was issued and never began. W&B has been seen to wait for hours.
        deleted_status: HTTP status for who goes on with a deleted run. W&B is said to give 409, which keeps the
            client's `finish` trying for minutes; 404 lets it go.
        entity: the user's.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        seed: int = 0,
        issue_twice: float = 0.0,
        issue_never: float = 0.0,
        silence: float = 300.0,
        pending_silence: float = 300.0,
        deleted_status: int = 409,
        entity: str = "tester",
    ) -> None:
        self.clock = clock
        self.rng = random.Random(seed)
        self.issue_twice, self.issue_never = issue_twice, issue_never
        self.silence, self.pending_silence = silence, pending_silence
        self.deleted_status = deleted_status
        self.entity = entity
        self.lock = threading.RLock()
        self.projects: dict[tuple[str, str], Project] = {}
        self.agents: dict[str, Agent] = {}
        self.artifacts: dict[str, Artifact] = {}
        self._sweeps: dict[str, Sweep] = {}

    # --- reading

    @property
    def runs(self) -> dict[str, Run]:
        """All runs by id, as of now."""
        with self.lock:
            return {run.id: self._settled(run) for project in self.projects.values() for run in project.runs.values()}

    @property
    def sweeps(self) -> dict[str, Sweep]:
        """All sweeps by id, as of now."""
        with self.lock:
            return {sweep.id: self._settled_sweep(sweep) for sweep in self._sweeps.values()}

    def run(self, entity: str, project: str, run_id: str) -> Run:
        """A run as of now, or `Refused` (404)."""
        with self.lock:
            place = self.projects.get((entity, project))
            if place is None or run_id not in place.runs:
                raise Refused(404, f"run {entity}/{project}/{run_id} not found")
            return self._settled(place.runs[run_id])

    def sweep(self, sweep_id: str) -> Sweep:
        """A sweep as of now, or `Refused` (404)."""
        with self.lock:
            if sweep_id not in self._sweeps:
                raise Refused(404, f"sweep {sweep_id} not found")
            return self._settled_sweep(self._sweeps[sweep_id])

    def find_runs(
        self, entity: str, project: str, filters: Mapping[str, Any] | None = None, order: str | None = None
    ) -> list[Run]:
        """Runs of a project that match filters in Mongo's language, by creation or by `order` ("-heartbeat_at")."""
        with self.lock:
            place = self.projects.get((entity, project))
            found = [self._settled(run) for run in place.runs.values()] if place else []
            wanted = matcher(filters or {}, run_field)
            key = run_field((order or "+created_at").lstrip("+-"))
            found = [run for run in found if wanted(run)]
            known = [run for run in found if key(run) not in (_MISSING, None)]
            known.sort(key=key, reverse=(order or "").startswith("-"))
            return known + [run for run in found if key(run) in (_MISSING, None)]

    # --- sweeps and agents

    def create_sweep(
        self,
        config: Mapping[str, Any] | str,
        entity: str,
        project: str,
        *,
        display_name: str | None = None,
    ) -> str:
        """A new sweep from its config (or YAML); gives its id. The same config twice makes two."""
        text = config if isinstance(config, str) else yaml.safe_dump(dict(config))
        plain = yaml.safe_load(text)
        if not isinstance(plain, dict):
            raise Refused(400, "a sweep's config must be a mapping")
        parameters = plain.get("parameters")
        if not isinstance(parameters, dict) or not parameters:
            raise Refused(400, "a sweep's config must have parameters")
        points: deque[dict[str, Any]] | None = None
        if plain.get("method") == "grid":
            points = deque(grid(parameters))
        elif plain.get("method") in ("random", "bayes"):
            draw(parameters, random.Random(0))  # or says what it can't draw from
        else:
            raise Refused(400, f"a sweep's method must be grid, random or bayes, not {plain.get('method')!r}")
        with self.lock:
            self.project(entity, project)
            sweep = Sweep(
                self._new_id(), entity, project, plain, text, self.clock(), display_name=display_name, points=points
            )
            self._sweeps[sweep.id] = sweep
            return sweep.id

    def set_sweep_state(self, sweep_id: str, state: str) -> None:
        """RUNNING, PAUSED, FINISHED (issue no more) or CANCELED (agents end their runs)."""
        with self.lock:
            if state not in ("RUNNING", "PAUSED", "FINISHED", "CANCELED"):
                raise Refused(400, f"unknown sweep state {state!r}")
            self.sweep(sweep_id).state = state

    def delete_sweep(self, sweep_id: str) -> None:
        """Its runs stay; its agents are told 404."""
        with self.lock:
            self.sweep(sweep_id)
            del self._sweeps[sweep_id]

    def create_agent(self, sweep_id: str, host: str = "") -> str:
        with self.lock:
            sweep, now = self.sweep(sweep_id), self.clock()
            agent = Agent(self._new_id(), sweep_id, host, now, now)
            self.agents[agent.id] = agent
            sweep.agents.append(agent.id)
            if sweep.state == "PENDING":
                sweep.state = "RUNNING"
            return agent.id

    def heartbeat(self, agent_id: str, run_states: Mapping[str, bool]) -> list[dict[str, Any]]:
        """An agent says which runs it has; it is told to run, resume, stop or exit."""
        with self.lock:
            agent = self.agents.get(agent_id)
            if agent is None:
                raise Refused(404, f"agent {agent_id} not found")
            sweep, now = self.sweep(agent.sweep), self.clock()
            agent.heartbeat_at = now
            place = self.project(sweep.entity, sweep.project)
            alive = [place.runs[name] for name, lives in run_states.items() if lives and name in place.runs]
            for run in alive:
                if run.state == "pending":
                    run.heartbeat_at = now
            busy = any(run_states.values())
            if sweep.state == "CANCELED" or (sweep.state == "FINISHED" and not busy):
                return [{"type": "exit"}]
            if busy or sweep.state != "RUNNING":
                return [{"type": "stop", "run_id": run.id} for run in alive if run.stopped]
            command = self._resume(sweep) or self._issue(sweep)
            if command is None:
                return []
            run = place.runs[command["run_id"]]
            run.agent = agent.id
            agent.runs.append(run.id)
            return [command]

    def _resume(self, sweep: Sweep) -> dict[str, Any] | None:
        place = self.project(sweep.entity, sweep.project)
        while sweep.resumes:
            run = place.runs.get(sweep.resumes.popleft())
            if run is not None and run.state == "preempted":
                run.state, run.heartbeat_at, run.preempting, run.exit_code = "pending", self.clock(), False, None
                return self._command("resume", sweep, run)
        return None

    def _issue(self, sweep: Sweep) -> dict[str, Any] | None:
        while not self._exhausted(sweep):
            if sweep.repeats:
                point = sweep.repeats.popleft()
            else:
                point = sweep.points.popleft() if sweep.points else draw(sweep.config["parameters"], self.rng)
                if self.rng.random() < self.issue_never:
                    sweep.dropped.append(point)
                    continue
                if self.rng.random() < self.issue_twice:
                    sweep.repeats.append(point)
            now, place = self.clock(), self.project(sweep.entity, sweep.project)
            run = Run(self._new_id(), sweep.entity, sweep.project, now, now, sweep=sweep.id, config=dict(point))
            run.display_name = f"sweep-run-{len(place.runs) + 1}"
            place.runs[run.id] = run
            sweep.runs.append(run.id)
            sweep.issued += 1
            return self._command("run", sweep, run)
        return None

    def _command(self, kind: str, sweep: Sweep, run: Run) -> dict[str, Any]:
        parameters = sweep.config["parameters"]
        args = {name: {"value": value} for name, value in run.config.items() if name in parameters}
        return {"type": kind, "run_id": run.id, "program": sweep.config.get("program"), "args": args}

    def _exhausted(self, sweep: Sweep) -> bool:
        cap = sweep.config.get("run_cap")
        if cap is not None and sweep.issued >= cap:
            return True
        return sweep.points is not None and not sweep.points and not sweep.repeats

    # --- runs

    def upsert_run(
        self,
        entity: str,
        project: str,
        run_id: str,
        *,
        sweep: str | None = None,
        state: str | None = "running",
        config: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> tuple[Run, bool]:
        """Begin a run, go on with it or change it; gives it, and whether it is new.

        `fields` are further attributes of `Run`; None leaves one as it is, as does `state=None`.
        """
        with self.lock:
            place, now = self.project(entity, project), self.clock()
            if run_id in place.deleted:
                raise Refused(
                    self.deleted_status, f"run {run_id} was previously created and deleted; try a new run name"
                )
            inserted = run_id not in place.runs
            if inserted:
                run = Run(run_id, entity, project, now, now, display_name=f"run-{len(place.runs) + 1}")
                if sweep is not None:
                    self.sweep(sweep)
                place.runs[run_id] = run
            run = self._settled(place.runs[run_id])
            if sweep is not None and run.sweep is None:
                run.sweep = sweep
                self.sweep(sweep).runs.append(run.id)
            if state is not None:
                if run.state not in ALIVE:  # it begins anew
                    run.preempting = run.stopped = False
                run.state, run.heartbeat_at, run.exit_code = state, now, None
                if run.preempting and state == "running":
                    run.state = "preempting"
            if config is not None:
                run.config = {name: value for name, value in config.items() if name != "_wandb"}
                run.internal = config.get("_wandb", run.internal)
            for name, value in fields.items():
                if value is not None:
                    getattr(run, name)  # or an error
                    setattr(run, name, value)
            return run, inserted

    def stream(
        self,
        entity: str,
        project: str,
        run_id: str,
        *,
        history: Sequence[Mapping[str, Any]] = (),
        offset: int | None = None,
        summary: Mapping[str, Any] | None = None,
        exit_code: int | None = None,
        preempting: bool = False,
        complete: bool = False,
    ) -> bool:
        """What a run sends while it lives, and its end; gives whether it has been asked to stop.

        Args:
            entity: of the run.
            project: of the run.
            run_id: of the run.
            history: rows.
            offset: index of the first row, so that what is sent twice is stored once; None appends.
            summary: the whole of it.
            exit_code: of the process, with `complete`.
            preempting: it is about to be interrupted: ends that are not 0 then put it in the queue for `resume`.
            complete: it has ended.
        """
        with self.lock:
            run = self.run(entity, project, run_id)
            run.heartbeat_at = self.clock()
            first = len(run.history) if offset is None else offset
            if first > len(run.history):
                raise Refused(400, f"history of {run_id} goes from row {len(run.history)} to {first}")
            run.history[first : first + len(history)] = [dict(row) for row in history]
            if summary is not None:
                run.summary = dict(summary)
            run.preempting |= preempting
            if complete:
                run.exit_code = exit_code or 0
                if run.exit_code == 0:
                    run.state = "finished"
                elif run.preempting:
                    self._preempted(run)
                else:
                    run.state = "killed" if run.stopped else "failed"
            else:
                run.state = "preempting" if run.preempting else "running"
            return run.stopped

    def touch(self, entity: str, project: str, run_id: str) -> bool:
        """A heartbeat of a run; gives whether it has been asked to stop."""
        return self.stream(entity, project, run_id)

    def stop_run(self, entity: str, project: str, run_id: str) -> None:
        """Ask a run to stop: its process hears of it, and the agent that has it."""
        with self.lock:
            run = self.run(entity, project, run_id)
            run.stopped = run.state in ALIVE

    def delete_run(self, entity: str, project: str, run_id: str) -> None:
        with self.lock:
            run = self.run(entity, project, run_id)
            place = self.project(entity, project)
            del place.runs[run.id]
            place.deleted.add(run.id)
            if run.sweep in self._sweeps:
                self._sweeps[run.sweep].runs.remove(run.id)

    # --- the rest

    def project(self, entity: str, project: str) -> Project:
        """A project, made where it is not there yet."""
        with self.lock:
            if (entity, project) not in self.projects:
                place = Project(entity, project, len(self.projects) + 1, self.clock())
                self.projects[entity, project] = place
            return self.projects[entity, project]

    def _settled(self, run: Run) -> Run:
        """What time has done to a run: silence is a crash, or the end of one that said that it is being preempted."""
        if run.state in ALIVE:
            silence = self.clock() - run.heartbeat_at
            if silence > (self.pending_silence if run.state == "pending" else self.silence):
                if run.state == "preempting":
                    self._preempted(run)
                else:
                    run.state = "crashed"
        return run

    def _preempted(self, run: Run) -> None:
        if run.state != "preempted" and run.sweep in self._sweeps:
            self._sweeps[run.sweep].resumes.append(run.id)
        run.state = "preempted"

    def _settled_sweep(self, sweep: Sweep) -> Sweep:
        if sweep.state == "RUNNING" and self._exhausted(sweep):
            runs = self.project(sweep.entity, sweep.project).runs
            alive = any(self._settled(runs[name]).state in ALIVE for name in sweep.runs)
            if not alive and not any(runs[name].state == "preempted" for name in sweep.resumes if name in runs):
                sweep.state = "FINISHED"
        return sweep

    def _new_id(self) -> str:
        return "".join(self.rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=8))


# --- points of a sweep


def grid(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All combinations."""
    for name, spec in parameters.items():
        if not isinstance(spec, dict) or not ("value" in spec or spec.get("values")):
            raise Refused(400, f"parameter {name} of a grid must have a value or values")
    choices = [spec["values"] if "values" in spec else [spec["value"]] for spec in parameters.values()]
    return [dict(zip(parameters, point)) for point in itertools.product(*choices)]


def draw(parameters: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """A random combination. W&B's bayes learns from the runs; here it draws like random."""
    return {name: _draw(name, spec, rng) for name, spec in parameters.items()}


def _draw(name: str, spec: Mapping[str, Any], rng: random.Random) -> Any:
    if "value" in spec:
        return spec["value"]
    if spec.get("values"):
        return rng.choices(spec["values"], weights=spec.get("probabilities"))[0]
    kind = spec.get("distribution", "")
    low, high = spec.get("min"), spec.get("max")
    mean, spread = spec.get("mu", 0.0), spec.get("sigma", 1.0)
    plain = kind.removeprefix("q_")
    if plain in ("normal", "log_normal"):
        value = rng.gauss(mean, spread)
    elif low is None or high is None or low > high or (plain == "log_uniform_values" and low <= 0):
        raise Refused(400, f"parameter {name} has no values and no range")
    elif kind == "int_uniform":
        return rng.randint(low, high)
    elif plain == "log_uniform_values":
        value = rng.uniform(math.log(low), math.log(high))
    elif plain in ("uniform", "log_uniform"):
        value = rng.uniform(low, high)
    else:
        raise Refused(400, f"parameter {name} has an unknown distribution {kind!r}")
    if plain.startswith("log_"):
        value = math.exp(value)
        if plain == "log_uniform_values":
            value = min(max(value, low), high)  # rounding
    if kind.startswith("q_"):
        value = round(value / spec.get("q", 1)) * spec.get("q", 1)
    return value


# --- filters, in a part of Mongo's language

_MISSING = object()
_RUN_FIELDS: dict[str, Callable[[Run], Any]] = {
    "name": lambda run: run.id,
    "display_name": lambda run: run.display_name,
    "state": lambda run: run.state,
    "sweep": lambda run: run.sweep,
    "tags": lambda run: run.tags,
    "job_type": lambda run: run.job_type,
    "group": lambda run: run.group,
    "host": lambda run: run.host,
    "created_at": lambda run: iso(run.created_at),
    "heartbeat_at": lambda run: iso(run.heartbeat_at),
}
_SWEEP_FIELDS: dict[str, Callable[[Sweep], Any]] = {
    "name": lambda sweep: sweep.id,
    "display_name": lambda sweep: sweep.display_name,
    "state": lambda sweep: sweep.state,
    "created_at": lambda sweep: iso(sweep.created_at),
}


def run_field(path: str) -> Callable[[Run], Any]:
    """What reads a run's field by the name that filters and orders have for it, or `Refused` (400)."""
    section, _, rest = path.partition(".")
    if section == "config" and rest:
        return lambda run: _dig(run.config, rest.removesuffix(".value"))
    if _snake(section) == "summary_metrics" and rest:
        return lambda run: _dig(run.summary, rest)
    if _snake(path) not in _RUN_FIELDS:
        raise Refused(400, f"unknown field {path!r} of a run")
    return _RUN_FIELDS[_snake(path)]


def sweep_field(path: str) -> Callable[[Sweep], Any]:
    if _snake(path) not in _SWEEP_FIELDS:
        raise Refused(400, f"unknown field {path!r} of a sweep")
    return _SWEEP_FIELDS[_snake(path)]


def matcher(filters: Mapping[str, Any], reader: Callable[[str], Callable[[Any], Any]]) -> Callable[[Any], bool]:
    """A filter as a function; unknown fields and operators are `Refused` (400)."""
    tests: list[Callable[[Any], bool]] = []
    for key, wanted in filters.items():
        if key in ("$and", "$or", "$nor"):
            parts = [matcher(part, reader) for part in wanted]
            tests.append(_group(key, parts))
        elif key.startswith("$"):
            raise Refused(400, f"unknown operator {key!r}")
        else:
            operators = isinstance(wanted, dict) and any(name.startswith("$") for name in wanted)
            for name, value in wanted.items() if operators else [("$eq", wanted)]:
                tests.append(_comparison(reader(key), name, value))
    return lambda item: all(test(item) for test in tests)


def _group(name: str, parts: list[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    if name == "$and":
        return lambda item: all(part(item) for part in parts)
    if name == "$or":
        return lambda item: any(part(item) for part in parts)
    return lambda item: not any(part(item) for part in parts)


def _comparison(read: Callable[[Any], Any], operator: str, wanted: Any) -> Callable[[Any], bool]:
    def equal(value: Any, other: Any) -> bool:
        if value is _MISSING or value is None:
            return other is None
        return value == other or (isinstance(value, list) and other in value)  # an array matches by an element

    def ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any], bool]:
        def test(item: Any) -> bool:
            try:
                return compare(read(item), wanted)
            except TypeError:  # values of different kinds are not ordered
                return False

        return test

    match operator:
        case "$eq":
            return lambda item: equal(read(item), wanted)
        case "$ne":
            return lambda item: not equal(read(item), wanted)
        case "$in":
            return lambda item: any(equal(read(item), other) for other in wanted)
        case "$nin":
            return lambda item: not any(equal(read(item), other) for other in wanted)
        case "$exists":
            return lambda item: (read(item) is not _MISSING) == bool(wanted)
        case "$gt":
            return ordered(lambda a, b: a > b)
        case "$gte":
            return ordered(lambda a, b: a >= b)
        case "$lt":
            return ordered(lambda a, b: a < b)
        case "$lte":
            return ordered(lambda a, b: a <= b)
        case "$regex":
            pattern = re.compile(wanted)
            return lambda item: isinstance(value := read(item), str) and pattern.search(value) is not None
    raise Refused(400, f"unknown operator {operator!r}")


def _dig(values: Any, path: str) -> Any:
    """A value by its name, which may have dots itself, or by names of nested mappings."""
    if isinstance(values, Mapping):
        if path in values:
            return values[path]
        head, _, rest = path.partition(".")
        if rest and head in values:
            return _dig(values[head], rest)
    return _MISSING


@lru_cache(maxsize=1024)
def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", r"_\1", name).lower()


def iso(seconds: float) -> str:
    """W&B's times have whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- what GraphQL reads of the objects above


class _View:
    """Gives a field by its GraphQL name: what the class says, or the item's attribute.

    `displayName` is `display_name`, and times are text. A name that neither has is an error, not null.
    """

    def __init__(self, server: WandbServer, item: Any) -> None:
        self.server, self.core, self.item = server, server.core, item

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.item, _snake(name))
        return iso(value) if name.endswith("At") else value


def _page(nodes: Sequence[Any], view: Callable[[Any], Any], after: str | None = None, first: int | None = None) -> Any:
    start = int(after or 0)
    stop = len(nodes) if first is None else min(start + first, len(nodes))
    return {
        "edges": [{"node": view(nodes[i]), "cursor": str(i + 1)} for i in range(start, stop)],
        "pageInfo": {"endCursor": str(stop), "hasNextPage": stop < len(nodes)},
        "totalCount": len(nodes),
    }


def _thinned(rows: list[Any], samples: int | None) -> list[Any]:
    if samples is None or len(rows) <= samples:
        return rows
    return [rows[i * len(rows) // samples] for i in range(samples)]


class _Project(_View):
    item: Project

    @property
    def id(self) -> str:
        return f"project:{self.item.number}"

    @property
    def internalId(self) -> int:
        return self.item.number

    @property
    def entityName(self) -> str:
        return self.item.entity

    @property
    def entity(self) -> Any:
        return self.server.entity_view(self.item.entity)

    @property
    def user(self) -> Any:
        return self.server.user_view()

    description = ""
    access = "USER_READ"
    views = "{}"
    isBenchmark = readOnly = False

    def run(self, info: Any, name: str) -> Any:
        run = self.item.runs.get(name)
        return None if run is None else self.server.run_view(self.core._settled(run))

    def bucket(self, info: Any, name: str, missingOk: bool = False) -> Any:
        if name not in self.item.runs and not missingOk:
            raise Refused(404, f"run {name} not found")
        return self.run(info, name)

    def _found(self, filters: str | None, order: str | None = None) -> list[Run]:
        return self.core.find_runs(self.item.entity, self.item.name, json.loads(filters or "{}"), order)

    def runs(self, info: Any, filters: Any = None, after: Any = None, first: Any = None, order: Any = None) -> Any:
        return _page(self._found(filters, order), self.server.run_view, after, first)

    def runCount(self, info: Any, filters: str | None = None) -> int:
        return len(self._found(filters))

    def sweep(self, info: Any, sweepName: str) -> Any:
        sweep = self.core.sweeps.get(sweepName)
        mine = sweep is not None and (sweep.entity, sweep.project) == (self.item.entity, self.item.name)
        return self.server.sweep_view(sweep) if mine else None

    def _sweeps(self) -> list[Sweep]:
        place = (self.item.entity, self.item.name)
        return [sweep for sweep in reversed(self.core.sweeps.values()) if (sweep.entity, sweep.project) == place]

    def sweeps(self, info: Any, filters: Any = None, after: Any = None, first: Any = None) -> Any:
        wanted = matcher(json.loads(filters or "{}"), sweep_field)
        found = [sweep for sweep in self._sweeps() if wanted(sweep)]
        return _page(found, self.server.sweep_view, after, first)

    @property
    def totalSweeps(self) -> int:
        return len(self._sweeps())

    def _artifacts(self) -> list[Artifact]:
        place = (self.item.entity, self.item.name)
        return [a for a in self.core.artifacts.values() if (a.entity, a.project) == place and a.state != "DELETED"]

    def _named(self, name: str) -> Artifact | None:
        collection, _, alias = name.partition(":")
        versions = [a for a in self._artifacts() if a.name == collection and a.state == "COMMITTED"]
        alias = alias or "latest"
        return next((a for a in versions if alias in (*a.aliases, f"v{a.version}", a.digest)), None)

    def artifact(self, info: Any, name: str) -> Any:
        found = self._named(name)
        return None if found is None else self.server.artifact_view(found)

    def artifactCollectionMembership(self, info: Any, name: str) -> Any:
        found = self._named(name)
        return None if found is None else self.server.membership_view(found)

    def artifactCollection(self, info: Any, name: str, type: str | None = None) -> Any:
        versions = [a for a in self._artifacts() if a.name == name and type in (None, a.type)]
        return _Collection(self.server, versions) if versions else None

    def artifactType(self, info: Any, name: str) -> Any:
        if all(artifact.type != name for artifact in self._artifacts()):
            return None
        return self.server.type_view(self.item, name) | {
            "artifactCollection": lambda info, **args: self.artifactCollection(info, args["name"], name)
        }

    def artifactTypes(self, info: Any, after: Any = None, first: Any = None) -> Any:
        names = sorted({artifact.type for artifact in self._artifacts()})
        return _page(names, lambda name: self.artifactType(info, name), after, first)


class _Run(_View):
    item: Run
    description = ""
    readOnly = False
    systemMetrics = "{}"

    @property
    def id(self) -> str:
        return f"run:{self.item.id}:{self.item.project}:{self.item.entity}"

    @property
    def name(self) -> str:
        return self.item.id

    @property
    def config(self) -> str:
        values = self.item.config | ({"_wandb": self.item.internal} if self.item.internal else {})
        return json.dumps({name: {"value": value, "desc": None} for name, value in values.items()})

    def wandbConfig(self, info: Any, keys: list[str]) -> str:
        return json.dumps({key: self.item.internal[key] for key in keys if key in self.item.internal})

    @property
    def summaryMetrics(self) -> str:
        return json.dumps(self.item.summary)

    @property
    def user(self) -> Any:
        return self.server.user_view()

    @property
    def project(self) -> Any:
        return self.server.project_view(self.core.project(self.item.entity, self.item.project))

    @property
    def projectId(self) -> int:
        return self.core.project(self.item.entity, self.item.project).number

    @property
    def sweepName(self) -> str | None:
        return self.item.sweep

    @property
    def exitcode(self) -> int | None:
        return self.item.exit_code

    @property
    def failed(self) -> bool:
        return self.item.state in ("failed", "crashed")

    @property
    def running(self) -> bool:
        return self.item.state in ("running", "preempting")

    @property
    def shouldStop(self) -> bool:
        return self.item.stopped

    def history(self, info: Any, minStep: Any = None, maxStep: Any = None, samples: int | None = None) -> list[str]:
        rows = self.item.history
        if minStep is not None:
            rows = [row for row in rows if minStep <= row["_step"] < maxStep][:samples]
        return [json.dumps(row) for row in _thinned(rows, samples)]

    def events(self, info: Any, samples: int | None = None) -> list[str]:
        return _thinned(self.item.events, samples)

    def sampledHistory(self, info: Any, specs: list[str]) -> list[list[dict[str, Any]]]:
        found = []
        for text in specs:
            spec = json.loads(text)
            keys = spec.get("keys", [])
            rows = [{key: row[key] for key in keys} for row in self.item.history if all(key in row for key in keys)]
            if "minStep" in spec:
                rows = [row for row in rows if spec["minStep"] <= row["_step"] <= spec["maxStep"]]  # with the last
            found.append(_thinned(rows, spec.get("samples")) if keys else [])
        return found

    @property
    def historyKeys(self) -> Any:
        if not self.item.history:
            return None
        keys: dict[str, Any] = {}
        for row in self.item.history:
            for key, value in row.items():
                if not isinstance(value, bool) and isinstance(value, (int, float)):
                    count = keys[key]["typeCounts"][0]["count"] + 1 if key in keys else 1
                    keys[key] = {"typeCounts": [{"type": "number", "count": count}], "previousValue": value}
        return {"sets": [], "keys": keys, "lastStep": max(row.get("_step", 0) for row in self.item.history)}

    def parquetHistory(self, info: Any, liveKeys: list[str]) -> Any:
        return {"parquetUrls": [], "liveData": [{"_step": row["_step"]} for row in self.item.history]}

    @property
    def historyLineCount(self) -> int:
        return len(self.item.history)

    @property
    def historyTail(self) -> str:
        return json.dumps([json.dumps(row) for row in self.item.history[-1:]])

    @property
    def eventsLineCount(self) -> int:
        return len(self.item.events)

    @property
    def eventsTail(self) -> str:
        return json.dumps(self.item.events[-1:])

    @property
    def logLineCount(self) -> int:
        return len(self.item.logs)

    def logLines(
        self, info: Any, first: Any = None, after: Any = None, last: Any = None, useImprovedPagination: Any = None
    ) -> Any:
        lines = list(enumerate(self.item.logs))
        return _page(lines[-last:] if last else lines, _log_line, after, first)

    def files(self, info: Any, names: Any = None, after: Any = None, first: Any = None, pattern: Any = None) -> Any:
        # A file that is asked for by name is there even if it is not, with the checksum "0".
        wanted = list(names or sorted(self.item.files))
        if pattern:
            like = re.compile(re.escape(pattern).replace("%", ".*").replace("_", "."))
            wanted = [name for name in wanted if like.fullmatch(name)]
        return _page(wanted, lambda name: self.server.run_file_view(self.item, name), after, first)

    @property
    def fileCount(self) -> int:
        return len(self.item.files)

    def outputArtifacts(self, info: Any, after: Any = None, first: Any = None) -> Any:
        mine = (self.item.entity, self.item.project, self.item.id)
        made = [a for a in self.core.artifacts.values() if (a.entity, a.project, a.run) == mine]
        return _page([a for a in made if a.state == "COMMITTED"], self.server.artifact_view, after, first)

    def inputArtifacts(self, info: Any, after: Any = None, first: Any = None) -> Any:
        return _page([self.core.artifacts[key] for key in self.item.used], self.server.artifact_view, after, first)


def _log_line(numbered: tuple[int, str]) -> Any:
    """A line of the console, which the client sends as "2026-01-31T12:00:00.0 text", after "ERROR " if of stderr."""
    number, text = numbered
    level, stamp, line = re.fullmatch(r"(ERROR )?(?:(\d{4}-\d\d-\d\dT\S+) )?(.*)", text, re.DOTALL).groups()
    return {"number": number, "timestamp": stamp, "level": "error" if level else "info", "label": "", "line": line}


class _Sweep(_View):
    item: Sweep
    bestLoss = controller = controllerRunName = scheduler = None
    earlyStopJobRunning = False

    @property
    def id(self) -> str:
        return f"sweep:{self.item.id}"

    @property
    def name(self) -> str:
        return self.item.id

    @property
    def displayName(self) -> str | None:
        return self.item.display_name  # the one that a person gave it; the config's name is in the config

    @property
    def description(self) -> str | None:
        return self.item.config.get("description")

    @property
    def method(self) -> str:
        return self.item.config["method"]

    @property
    def config(self) -> str:
        return self.item.text

    @property
    def heartbeatAt(self) -> str:
        beats = [self.core.agents[agent].heartbeat_at for agent in self.item.agents]
        return iso(max(beats, default=self.item.created_at))

    updatedAt = heartbeatAt

    @property
    def runCount(self) -> int:
        return len(self.item.runs)

    @property
    def runCountExpected(self) -> int | None:
        cap = self.item.config.get("run_cap")
        if self.item.points is None:
            return cap
        size = len(grid(self.item.config["parameters"]))
        return size if cap is None else min(size, cap)

    @property
    def project(self) -> Any:
        return self.server.project_view(self.core.project(self.item.entity, self.item.project))

    def runs(self, info: Any, first: Any = None, after: Any = None) -> Any:
        runs = self.core.project(self.item.entity, self.item.project).runs
        mine = [self.core._settled(runs[name]) for name in self.item.runs]
        return _page(mine, self.server.run_view, after, first)

    def agent(self, info: Any, agentName: str) -> Any:
        return self.server.agent_view(self.core.agents[agentName]) if agentName in self.item.agents else None

    @property
    def agents(self) -> Any:
        return _page([self.core.agents[key] for key in self.item.agents], self.server.agent_view)


class _Agent(_View):
    item: Agent

    @property
    def name(self) -> str:
        return self.item.id

    @property
    def state(self) -> str:
        return "RUNNING" if self.core.clock() - self.item.heartbeat_at < self.core.silence else "CRASHED"

    @property
    def totalRuns(self) -> int:
        return len(self.item.runs)

    def runs(self, info: Any, after: Any = None, first: Any = None, **_: Any) -> Any:
        runs = self.core.runs
        return _page([runs[n] for n in self.item.runs if n in runs], self.server.run_view, after, first)


class _Artifact(_View):
    item: Artifact
    ttlDurationSeconds = -1
    ttlIsInherited = True
    historyStep = commitHash = None
    digestAlgorithm = "MANIFEST_MD5"

    @property
    def artifactSequence(self) -> Any:
        alike = (self.item.entity, self.item.project, self.item.name)
        versions = [a for a in self.core.artifacts.values() if (a.entity, a.project, a.name) == alike]
        return _Collection(self.server, versions)

    @property
    def artifactType(self) -> Any:
        return self.server.type_view(self.core.project(self.item.entity, self.item.project), self.item.type)

    @property
    def versionIndex(self) -> int:
        return self.item.version

    @property
    def tags(self) -> list[Any]:
        return [{"id": f"tag:{tag}", "name": tag} for tag in self.item.tags]

    @property
    def size(self) -> int:
        return sum(map(len, self.item.files.values()))

    @property
    def fileCount(self) -> int:
        return len(self.item.files)

    @property
    def updatedAt(self) -> str:
        return self.createdAt

    @property
    def aliases(self) -> list[Any]:
        collection = self.artifactSequence
        return [
            {"id": f"alias:{self.item.name}:{alias}", "alias": alias, "artifactCollection": collection}
            for alias in (*self.item.aliases, f"v{self.item.version}")
        ]

    @property
    def currentManifest(self) -> Any:
        return self.server.manifest_view(self.item) if self.item.manifest else None

    @property
    def artifactMemberships(self) -> Any:
        return _page([self.item], self.server.membership_view)

    def _run(self, name: str | None) -> Any:
        run = self.core.project(self.item.entity, self.item.project).runs.get(name or "")
        return None if run is None else self.server.run_view(self.core._settled(run))

    @property
    def createdBy(self) -> Any:
        return self._run(self.item.run)

    @property
    def usedBy(self) -> Any:
        users = [run for run in self.core.runs.values() if self.item.id in run.used]
        return _page(users, self.server.run_view)


class _Collection(_View):
    """All versions of one artifact, in order."""

    item: list[Artifact]
    description = None
    digestAlgorithm = "MANIFEST_MD5"

    @property
    def id(self) -> str:
        return f"collection:{self.item[0].entity}:{self.item[0].project}:{self.item[0].name}"

    @property
    def name(self) -> str:
        return self.item[0].name

    @property
    def createdAt(self) -> str:
        return iso(self.item[0].created_at)

    updatedAt = createdAt

    @property
    def project(self) -> Any:
        return self.server.project_view(self.core.project(self.item[0].entity, self.item[0].project))

    @property
    def defaultArtifactType(self) -> Any:
        return self.server.type_view(self.project.item, self.item[0].type)

    @property
    def tags(self) -> Any:
        return _page([], lambda tag: tag)

    def aliases(self, info: Any, after: Any = None, first: Any = None) -> Any:
        named = [{"id": f"alias:{self.name}:{alias}", "alias": alias} for a in self.item for alias in a.aliases]
        return _page(named, lambda alias: alias, after, first)

    def artifacts(self, info: Any, after: Any = None, first: Any = None, order: Any = None, filters: Any = None) -> Any:
        wanted = json.loads(filters or "{}")
        if set(wanted) - {"state"}:
            raise Refused(400, f"unknown filters {filters} of artifacts")
        kept = [a for a in reversed(self.item) if a.state == wanted.get("state", "COMMITTED")]  # newest first
        page = _page(kept, self.server.artifact_view, after, first)
        for edge in page["edges"]:
            edge["version"] = f"v{edge['node'].item.version}"
        return page

    def artifactMembership(self, info: Any, aliasName: str) -> Any:
        kept = [a for a in self.item if a.state == "COMMITTED" and aliasName in (*a.aliases, f"v{a.version}")]
        return self.server.membership_view(kept[0]) if kept else None

    @property
    def latestArtifact(self) -> Any:
        kept = [a for a in self.item if a.state == "COMMITTED"]
        return self.server.artifact_view(kept[-1]) if kept else None


class _Root(_View):
    """Queries and mutations."""

    item: None

    # --- people and projects

    @property
    def viewer(self) -> Any:
        return self.server.user_view()

    @property
    def serverInfo(self) -> Any:
        return {"features": [{"name": name, "isEnabled": True} for name in self.server.features]}

    def entity(self, info: Any, name: str) -> Any:
        return self.server.entity_view(name)

    def project(self, info: Any, name: str | None = None, entityName: str | None = None) -> Any:
        found = self.core.projects.get((entityName or self.core.entity, name or "uncategorized"))
        return None if found is None else self.server.project_view(found)

    model = project

    def models(self, info: Any, entityName: str | None = None, after: Any = None, first: Any = None) -> Any:
        wanted = entityName or self.core.entity
        found = [place for place in self.core.projects.values() if place.entity == wanted]
        return _page(found, self.server.project_view, after, first)

    def upsertModel(self, info: Any, input: dict[str, Any]) -> Any:
        entity = input.get("entityName") or self.core.entity
        inserted = (entity, input["name"]) not in self.core.projects
        view = self.server.project_view(self.core.project(entity, input["name"]))
        return {"project": view, "model": view, "inserted": inserted}

    # --- runs

    def upsertBucket(self, info: Any, input: dict[str, Any]) -> Any:
        given = dict(input)
        state: str | None = given.pop("state", None) or "running"
        entity, project = given.pop("entityName", None), given.pop("modelName", None)
        run_id = given.pop("name", None)
        if run_id is None and given.get("id") is not None:  # the Public API changes a run; it does not begin
            entity, project, run_id = self._run_path(given["id"])
            self.core.run(entity, project, run_id)
            state = None
        entity, project = entity or self.core.entity, project or "uncategorized"
        config, summary = given.pop("config", None), given.pop("summaryMetrics", None)
        wrapped = None if config is None else json.loads(config)
        run, inserted = self.core.upsert_run(
            entity,
            project,
            run_id or self.core._new_id(),
            sweep=given.get("sweep") or None,
            state=state,
            config=None if wrapped is None else {name: entry["value"] for name, entry in wrapped.items()},
            summary=None if summary is None else json.loads(summary),
            tags=given.get("tags"),
            job_type=given.get("jobType"),
            group=given.get("groupName"),
            display_name=given.get("displayName"),
            notes=given.get("notes"),
            host=given.get("host"),
            commit=given.get("commit"),
        )
        return {"bucket": self.server.run_view(run), "inserted": inserted}

    def _run_path(self, storage_id: str) -> tuple[str, str, str]:
        parts = storage_id.split(":")
        if len(parts) != 4 or parts[0] != "run":
            raise Refused(400, f"{storage_id!r} is not the id of a run")
        return parts[3], parts[2], parts[1]

    def deleteRun(self, info: Any, input: dict[str, Any]) -> Any:
        self.core.delete_run(*self._run_path(input["id"]))
        return {"clientMutationId": None}

    def stopRun(self, info: Any, input: dict[str, Any]) -> Any:
        self.core.stop_run(*self._run_path(input["id"]))
        return {"success": True}

    def createRunFiles(self, info: Any, input: dict[str, Any]) -> Any:
        run = self.core.run(input["entityName"], input["projectName"], input["runName"])
        files = [self.server.run_file_view(run, name) for name in input["files"]]
        return {"runID": self.server.run_view(run).id, "uploadHeaders": [], "files": files}

    def markRunFilesUploaded(self, info: Any, input: dict[str, Any]) -> Any:
        self.core.run(input["entityName"], input["projectName"], input["runName"])
        return {"success": True}

    def deleteFiles(self, info: Any, input: dict[str, Any]) -> Any:
        for file in input["files"]:
            storage_id, _, name = file.partition("|")
            self.core.run(*self._run_path(storage_id)).files.pop(name, None)
        return {"success": True}

    # --- sweeps

    def upsertSweep(self, info: Any, input: dict[str, Any]) -> Any:
        entity = input.get("entityName") or self.core.entity
        if input.get("id") is not None:
            name = input["id"].removeprefix("sweep:")
            if input.get("config") is not None:
                raise Refused(400, "the stand-in does not change a sweep's config")
            self.core.set_sweep_state(name, input["state"])
        else:
            project = input.get("projectName") or "uncategorized"
            name = self.core.create_sweep(
                input.get("config") or "", entity, project, display_name=input.get("displayName")
            )
        return {"sweep": self.server.sweep_view(self.core.sweep(name)), "configValidationWarnings": []}

    def createAgent(self, info: Any, input: dict[str, Any]) -> Any:
        agent = self.core.create_agent(input["sweep"].removeprefix("sweep:"), input["host"])
        return {"agent": self.server.agent_view(self.core.agents[agent])}

    def agentHeartbeat(self, info: Any, input: dict[str, Any]) -> Any:
        commands = self.core.heartbeat(input["id"], json.loads(input.get("runState") or "{}"))
        return {"agent": self.server.agent_view(self.core.agents[input["id"]]), "commands": json.dumps(commands)}

    # --- artifacts

    def _artifact(self, artifact_id: str) -> Artifact:
        if artifact_id not in self.core.artifacts:
            raise Refused(404, f"artifact {artifact_id} not found")
        return self.core.artifacts[artifact_id]

    def artifact(self, info: Any, id: str) -> Any:
        found = self.core.artifacts.get(id)
        return None if found is None else self.server.artifact_view(found)

    def artifactCollection(self, info: Any, id: str) -> Any:
        _, entity, project, name = id.split(":")
        place = self.core.projects.get((entity, project))
        return None if place is None else self.server.project_view(place).artifactCollection(info, name)

    def createArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        names = input.get("artifactCollectionNames") or [input["artifactCollectionName"]]
        entity, project, name = input["entityName"], input["projectName"], names[0]
        alike = [a for a in self.core.artifacts.values() if (a.entity, a.project, a.name) == (entity, project, name)]
        artifact = next((a for a in alike if a.digest == input["digest"] and a.state == "COMMITTED"), None)
        if artifact is None:
            artifact = Artifact(
                f"artifact:{len(self.core.artifacts) + 1}",
                entity,
                project,
                input.get("runName"),
                input["artifactTypeName"],
                name,
                len(alike),
                input["digest"],
                self.core.clock(),
                metadata=input.get("metadata"),
                description=input.get("description"),
                tags=[tag["tagName"] for tag in input.get("tags") or []],
            )
            self.core.artifacts[artifact.id] = artifact
            artifact.aliases = [entry["alias"] for entry in input.get("aliases") or []]
        else:
            self._add_aliases(artifact, [entry["alias"] for entry in input.get("aliases") or []])
        return {"artifact": self.server.artifact_view(artifact)}

    def _add_aliases(self, artifact: Artifact, aliases: Iterable[str]) -> None:
        """An alias names one version of a collection."""
        place = (artifact.entity, artifact.project, artifact.name)
        for alias in aliases:
            for other in self.core.artifacts.values():
                if (other.entity, other.project, other.name) == place and alias in other.aliases:
                    other.aliases.remove(alias)
            artifact.aliases.append(alias)

    def createArtifactFiles(self, info: Any, input: dict[str, Any]) -> Any:
        files = [
            self.server.artifact_file_view(self._artifact(spec["artifactID"]), spec["name"])
            for spec in input["artifactFiles"]
        ]
        return {"files": _page(files, lambda file: file)}

    def createArtifactManifest(self, info: Any, input: dict[str, Any]) -> Any:
        return {"artifactManifest": self.server.manifest_view(self._artifact(input["artifactID"]))}

    def updateArtifactManifest(self, info: Any, input: dict[str, Any]) -> Any:
        artifact = self._artifact(input["artifactManifestID"].removeprefix("manifest:"))
        return {"artifactManifest": self.server.manifest_view(artifact)}

    def commitArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        artifact = self._artifact(input["artifactID"])
        if artifact.state == "PENDING":
            missing = {file["digest"] for file in artifact_entries(artifact).values()} - {
                base64.b64encode(hashlib.md5(content).digest()).decode() for content in artifact.files.values()
            }
            if missing:
                raise Refused(400, f"artifact {artifact.name} lacks files that its manifest has")
            aliases, artifact.aliases = artifact.aliases, []
            artifact.state = "COMMITTED"
            self._add_aliases(artifact, aliases)
        return {"artifact": self.server.artifact_view(artifact)}

    def updateArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        artifact = self._artifact(input["artifactID"])
        if input.get("description") is not None:
            artifact.description = input["description"]
        if input.get("metadata") is not None:
            artifact.metadata = input["metadata"]
        gone = {tag["tagName"] for tag in input.get("tagsToDelete") or []}
        artifact.tags = [tag for tag in artifact.tags if tag not in gone]
        artifact.tags += [tag["tagName"] for tag in input.get("tagsToAdd") or []]
        self._add_aliases(artifact, [entry["alias"] for entry in input.get("aliases") or []])
        return {"artifact": self.server.artifact_view(artifact)}

    def deleteArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        artifact = self._artifact(input["artifactID"])
        if artifact.aliases and not input.get("deleteAliases"):
            raise Refused(400, f"artifact {artifact.name}:v{artifact.version} has aliases")
        artifact.state, artifact.aliases, artifact.files, artifact.manifest = "DELETED", [], {}, b""
        return {"artifact": self.server.artifact_view(artifact)}

    def useArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        run = self.core.run(input["entityName"], input["projectName"], input["runName"])
        artifact = self._artifact(input["artifactID"])
        if artifact.id not in run.used:
            run.used.append(artifact.id)
        return {"artifact": self.server.artifact_view(artifact)}

    def addAliases(self, info: Any, input: dict[str, Any]) -> Any:
        self._add_aliases(self._artifact(input["artifactID"]), [entry["alias"] for entry in input["aliases"]])
        return {"success": True}

    def deleteAliases(self, info: Any, input: dict[str, Any]) -> Any:
        artifact = self._artifact(input["artifactID"])
        for entry in input["aliases"]:
            if entry["alias"] in artifact.aliases:
                artifact.aliases.remove(entry["alias"])
        return {"success": True}


def artifact_entries(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """The files of an artifact's manifest: digest (base64 of MD5) and size, by name."""
    return json.loads(artifact.manifest)["contents"] if artifact.manifest else {}


# --- the wire


@lru_cache(maxsize=1)
def _schema() -> graphql.GraphQLSchema:
    schema = graphql.build_schema((Path(__file__).parent / "wandb_schema.graphql").read_text())
    names = {_Run: "Run", _Collection: "ArtifactSequence"}
    for name in ("ArtifactCollection", "Creator"):
        schema.type_map[name].resolve_type = lambda value, info, kind: names[type(value)]

    def json_string(value: Any) -> str:
        if not isinstance(value, str):
            raise graphql.GraphQLError(f"JSONString must be a string, not {value!r}")
        json.loads(value)
        return value

    schema.type_map["JSONString"].parse_value = json_string
    return schema


@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[graphql.DocumentNode, str, tuple[str, ...]]:
    """A document, the name of its operation, and what is wrong with it."""
    try:
        document = graphql.parse(text, no_location=True)
    except graphql.GraphQLError as error:
        return graphql.DocumentNode(definitions=()), "?", (str(error),)
    kinds = [node for node in document.definitions if isinstance(node, graphql.OperationDefinitionNode)]
    name = kinds[0].name.value if kinds and kinds[0].name else "?"
    return document, name, tuple(error.message for error in graphql.validate(_schema(), document))


def _field(source: Any, info: graphql.GraphQLResolveInfo, **args: Any) -> Any:
    value = source[info.field_name] if isinstance(source, dict) else getattr(source, info.field_name)
    return value(info, **args) if callable(value) else value


@dataclass
class Fault:
    """What goes wrong with requests; see `WandbServer.fail`. `hits` counts how often it did."""

    operation: str
    kind: str
    times: int | None
    after: int
    probability: float
    seconds: float
    hits: int = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # such as of a client that has gone
            super().handle_error(request, client_address)


class WandbServer:
    """W&B on 127.0.0.1, as long as the `with` block lasts.

    Attributes:
        url: of the server.
        env: what a client's process needs in its environment, beside HOME and folders of its own.
        counts: requests by operation ("UpsertBucket", "file_stream", "upload", "download").
        drift: what the client asked for and the server doesn't know; a test asserts that it is empty.
        features: what the server says that it can do.
        bodies: of all requests if `keep`, so that a test can look for secrets.
    """

    def __init__(self, core: WandbCore | None = None, *, seed: int = 0, keep: bool = False) -> None:
        self.core = core or WandbCore()
        self.rng = random.Random(seed)
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.drift: list[str] = []
        self.features = FEATURES
        self.keep, self.bodies = keep, list[bytes]()
        self._closed = False
        self._lock = threading.Lock()
        _schema()

        class Handler(_Handler):
            server_ = self

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> WandbServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        self._server.shutdown()
        self._server.server_close()

    @property
    def env(self) -> dict[str, str]:
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_SILENT": "true",
        }

    def fail(
        self,
        operation: str = "*",
        kind: str = "500",
        *,
        times: int | None = 1,
        after: int = 0,
        probability: float = 1.0,
        seconds: float = 0.0,
    ) -> Fault:
        """Let requests go wrong.

        Args:
            operation: as in `counts`; "*" is any.
            kind: "lost" (done, but the connection ends without an answer), "refuse" (it ends before anything is done),
                "429", "500", "503", "html" (an error page with status 502) or "slow" (answered after `seconds`).
            times: how often; None is for ever.
            after: requests of this kind that go well first.
            probability: of each request after those.
            seconds: see "slow".
        """
        if kind not in ("lost", "refuse", "429", "500", "503", "html", "slow"):
            raise ValueError(f"unknown fault {kind!r}")
        fault = Fault(operation, kind, times, after, probability, seconds)
        with self._lock:
            self.faults.append(fault)
        return fault

    def _fault(self, operation: str) -> Fault | None:
        with self._lock:
            self.counts[operation] += 1
            for fault in self.faults:
                if fault.operation not in ("*", operation) or (fault.times is not None and fault.hits >= fault.times):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                elif self.rng.random() < fault.probability:
                    fault.hits += 1
                    return fault
        return None

    def _unknown(self, what: str) -> None:
        with self._lock:
            self.drift.append(what)

    # --- requests: each gives a status and what is sent as JSON (or bytes)

    def graphql(self, body: bytes) -> tuple[str, Callable[[], tuple[int, Any]]]:
        """The operation of a request, and what does it."""
        request = json.loads(body)
        document, name, wrong = _parsed(request["query"])

        def execute() -> tuple[int, Any]:
            if wrong:
                self._unknown(f"{name}: {wrong[0]}")
                return 400, {"errors": [{"message": message} for message in wrong], "data": None}
            with self.core.lock:
                result = graphql.execute_sync(
                    _schema(),
                    document,
                    _Root(self, None),
                    variable_values=request.get("variables") or {},
                    field_resolver=_field,
                )
            if not result.errors:
                return 200, {"data": result.data}
            status = 200
            for error in result.errors:
                cause = error.original_error
                status = (
                    cause.status if isinstance(cause, Refused) else 400
                )  # no 500: the client would try again for long
                if status == 400:
                    self._unknown(
                        f"{name}: {error.message[:500]}"
                        + (
                            ""
                            if cause is None or isinstance(cause, (Refused, graphql.GraphQLError))
                            else f" ({cause!r})"
                        )
                    )
            return status, {"errors": [{"message": error.message} for error in result.errors], "data": None}

        return name, execute

    def file_stream(self, path: tuple[str, str, str], body: bytes) -> tuple[int, Any]:
        sent = json.loads(body or b"{}")
        if unknown := set(sent) - {"files", "uploaded", "preempting", "complete", "exitcode", "dropped"}:
            raise Refused(400, f"file_stream has {sorted(unknown)}")
        files = sent.get("files") or {}
        history = files.pop("wandb-history.jsonl", {"offset": None, "content": []})
        summary = files.pop("wandb-summary.json", None)
        with self.core.lock:
            run = self.core.run(*path)
            for name, kept in (("wandb-events.jsonl", run.events), ("output.log", run.logs)):
                chunk = files.pop(name, {"offset": 0, "content": []})
                kept[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]
            if files:
                raise Refused(400, f"file_stream has files {sorted(files)}")
            stopped = self.core.stream(
                *path,
                history=[json.loads(line) for line in history["content"]],
                offset=history["offset"],
                summary=json.loads(summary["content"][-1]) if summary else None,
                exit_code=sent.get("exitcode"),
                preempting=bool(sent.get("preempting")),
                complete=bool(sent.get("complete")),
            )
        return 200, {"exitcode": None, "limits": {}} | ({"stopped": True} if stopped else {})

    def stored(self, parts: Sequence[str], content: bytes | None) -> tuple[int, Any]:
        """Upload `content` to a place under /storage, or download what is there."""
        with self.core.lock:
            match parts:
                case ["run", entity, project, run_id, name]:
                    files = self.core.run(entity, project, run_id).files
                case ["artifact", artifact_id, name]:
                    files = self.core.artifacts[artifact_id].files
                case ["manifest", artifact_id]:
                    artifact, name = self.core.artifacts[artifact_id], "manifest"
                    files = {name: artifact.manifest}
                    if content is not None:
                        artifact.manifest = content
                case _:
                    raise Refused(400, f"unknown place {parts}")
            if content is not None:
                files[name] = content
                return 200, b""
            if name not in files:
                raise Refused(404, f"{name} is not stored")
            return 200, files[name]

    # --- what GraphQL reads

    def run_view(self, run: Run) -> _Run:
        return _Run(self, run)

    def sweep_view(self, sweep: Sweep) -> _Sweep:
        return _Sweep(self, sweep)

    def agent_view(self, agent: Agent) -> _Agent:
        return _Agent(self, agent)

    def project_view(self, project: Project) -> _Project:
        return _Project(self, project)

    def artifact_view(self, artifact: Artifact) -> _Artifact:
        return _Artifact(self, artifact)

    def user_view(self) -> Any:
        name = self.core.entity
        return {
            "id": f"user:{name}",
            "name": name,
            "username": name,
            "email": f"{name}@example.org",
            "admin": False,
            "flags": "{}",
            "entity": name,
            "deletedAt": None,
            "apiKeys": {"edges": []},
            "teams": {"edges": [{"node": {"name": name}}]},
        }

    def entity_view(self, name: str) -> Any:
        return {
            "id": f"entity:{name}",
            "name": name,
            "organization": None,
            "user": None,
            "xxhashDigestsEnabled": False,
        }

    def type_view(self, project: Project, name: str) -> dict[str, Any]:
        return {"id": f"type:{name}", "name": name, "description": None, "createdAt": iso(project.created_at)}

    def membership_view(self, artifact: Artifact) -> Any:
        view = self.artifact_view(artifact)

        def files(info: Any, names: Any = None, after: Any = None, first: Any = None) -> Any:
            wanted = [name for name in artifact.files if not names or name in names]
            return _page(wanted, lambda name: self.artifact_file_view(artifact, name), after, first)

        return {
            "id": f"membership:{artifact.id}",
            "versionIndex": artifact.version,
            "createdAt": iso(artifact.created_at),
            "aliases": view.aliases,
            "artifactCollection": view.artifactSequence,
            "artifact": view,
            "files": files,
        }

    def manifest_view(self, artifact: Artifact) -> Any:
        file = self._file_view(f"manifest/{quote(artifact.id, safe='')}", "wandb_manifest.json", artifact.manifest)
        return {"id": f"manifest:{artifact.id}", "file": file}

    def run_file_view(self, run: Run, name: str) -> dict[str, Any]:
        place = "/".join(quote(part, safe="") for part in ("run", run.entity, run.project, run.id, name))
        file = self._file_view(place, name, run.files.get(name))
        return file | {"id": f"{self.run_view(run).id}|{name}"}

    def artifact_file_view(self, artifact: Artifact, name: str) -> dict[str, Any]:
        place = "/".join(quote(part, safe="") for part in ("artifact", artifact.id, name))
        file = self._file_view(place, name, artifact.files.get(name))
        return file | {"artifact": self.artifact_view(artifact)}

    def _file_view(self, place: str, name: str, content: bytes | None) -> dict[str, Any]:
        url = f"{self.url}/storage/{place}"
        checksum = "0" if content is None else base64.b64encode(hashlib.md5(content).digest()).decode()
        return {
            "id": f"file:{place}",
            "name": name,
            "displayName": name,
            "url": lambda info, upload=False: url,
            "directUrl": url,
            "uploadUrl": url,
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "storagePath": place,
            "sizeBytes": len(content or b""),
            "mimetype": None,
            "updatedAt": None,
            "digest": checksum,
            "md5": checksum,
            "artifact": None,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True
    wbufsize = 2**16  # head and body in one packet
    server_: WandbServer

    def do_POST(self) -> None:
        body = self._body()
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        if parts == ["graphql"]:
            self._do(*self.server_.graphql(body))
        elif len(parts) == 5 and parts[0] == "files" and parts[4] == "file_stream":
            path = (parts[1], parts[2], parts[3])
            self._do("file_stream", lambda: self.server_.file_stream(path, body))
        else:
            self._do("?", self._no_route)

    def do_PUT(self) -> None:
        self._stored("upload", self._body())

    def do_GET(self) -> None:
        self._stored("download", None)

    def _stored(self, operation: str, content: bytes | None) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        if parts[0] == "storage":
            self._do(operation, lambda: self.server_.stored(parts[1:], content))
        else:
            self._do("?", self._no_route)

    def _no_route(self) -> tuple[int, Any]:
        raise Refused(400, f"unknown route {self.command} {self.path}")

    def _body(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            self.server_._unknown(f"{self.command} {self.path}: chunked")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server_.keep:
            self.server_.bodies.append(body)
        return body

    def _do(self, operation: str, act: Callable[[], tuple[int, Any]]) -> None:
        fault = self.server_._fault(operation)
        kind = fault.kind if fault else ""
        if kind == "refuse" or self.server_._closed:
            self._hang_up()
            return
        if kind == "slow" and fault:
            time.sleep(fault.seconds)
        if kind == "html":
            self._send(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html")
            return
        if kind.isdigit():
            self._send(int(kind), {"errors": [{"message": f"error {kind}, by request of the test"}]})
            return
        if self.command == "POST" and self.headers.get("Authorization") != _AUTHORIZATION:
            self._send(401, {"errors": [{"message": "user is not logged in"}]})
            return
        try:
            status, answer = act()
        except Refused as refused:
            if refused.status == 400:
                self.server_._unknown(f"{operation}: {refused}")
            status, answer = refused.status, {"error": str(refused)}
        except Exception as error:
            self.server_._unknown(f"{operation}: {type(error).__name__}: {error}")
            status, answer = 400, {"error": str(error)}
        if kind == "lost":
            self._hang_up()
        else:
            self._send(status, answer)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, answer: Any, kind: str = "application/json") -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


_AUTHORIZATION = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()

"""Sweeps at W&B, which issue a launch's jobs, and runs, by which each job's result is known.

Only W&B's public client is used. `wandb.sweep` is not idempotent (a lost answer makes two), so sweeps are found by
their name before and after one is made; the oldest of a name is the one that counts.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from wavespace.errors import UserError
from wavespace_launcher.ledger import redacted
from wavespace_launcher.runpod_client import NoResponse

DUPLICATE = "duplicate"
"""Tag of a run that found its job done, or being done, by another."""

REFUSED = "refused"
"""Outcome of a run whose pod has another version of wavespace than the launch: its job was not tried."""

DIVERGED = "diverged"
"""Outcome of a run that ended at a loss or a weight that is not finite: it would again."""

HEARTBEAT_TIMEOUT = 300.0
"""Seconds without a heartbeat after which a run is dead; W&B itself says `crashed` after about as long."""


class WandbSweep(NamedTuple):
    """A sweep; it issues runs while `open`."""

    id: str
    name: str
    open: bool


@dataclass(frozen=True)
class WandbRun:
    """A run of a launch.

    Attributes:
        state: W&B's word.
        job: text of the job that it does; None while the run has not begun, or died before.
        created: when, in seconds since 1970, as is `heartbeat`.
        pod: id of the pod that it is on.
        seconds: how long it has run.
    """

    id: str
    url: str
    state: str
    sweep: str
    job: str | None
    created: float
    heartbeat: float
    duplicate: bool = False
    pod: str | None = None
    seconds: float = 0.0
    summary: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored(self) -> bool:
        """Whether it finished and its worker has stored the result: an agent's exit code 0 proves nothing."""
        return self.state == "finished" and self.summary.get("outcome") == "finished"

    @property
    def refused(self) -> bool:
        """Whether it was not begun, as its pod's image would compute something else."""
        return self.summary.get("outcome") == REFUSED

    @property
    def diverged(self) -> bool:
        """Whether its loss or its weights have stopped being finite."""
        return self.summary.get("outcome") == DIVERGED

    def alive(self, now: float) -> bool:
        """Whether it is doing its job, as far as W&B knows."""
        return self.state in ("running", "preempting") and now - self.heartbeat < HEARTBEAT_TIMEOUT


def competing_run(id: str, runs: Iterable[WandbRun], *, resumed: bool, now: float) -> WandbRun | None:
    """Find a run that makes this run of a job needless: it has finished the job, or began it earlier and still does it.

    A run that is resumed gives way to any other that is doing the job: while it waited, the job was issued again.
    """
    found = list(runs)
    mine = next((run for run in found if run.id == id), None)
    for run in found:
        if run.id == id or run.duplicate:
            continue
        earlier = mine is None or resumed or (run.created, run.id) < (mine.created, mine.id)
        if run.stored or (run.alive(now) and earlier):
            return run
    return None


class Wandb:
    """A project at W&B."""

    def __init__(self, entity: str | None, project: str) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        try:
            self._api = wandb.Api()
            self.entity: str = entity or str(self._api.default_entity)
        except Exception as error:  # the client has a dozen of them, and no base class
            raise UserError(
                "W&B can't be used: set WANDB_API_KEY to a key of 40 or more characters, or run `wandb login` "
                f"({_why(error)})"
            ) from None
        self.project = project

    @property
    def path(self) -> str:
        """`entity/project`."""
        return f"{self.entity}/{self.project}"

    def sweeps(self, launch: str) -> list[WandbSweep]:
        """Return the sweeps of a launch, oldest first.

        Raises:
            NoResponse: no answer.
        """
        with _no_response_on_error():
            try:
                found = list(self._api.project(self.project, entity=self.entity).sweeps(per_page=100))
            except ValueError as error:
                if "Could not find project" in str(error):  # the first sweep makes it
                    return []
                raise
            named = [_sweep(sweep) for sweep in sorted(found, key=lambda sweep: (sweep.created_at, sweep.id))]
        return [sweep for sweep in named if sweep.name.rsplit("-", 1)[0] == launch]

    def sweep(self, id: str) -> WandbSweep | None:
        """Return a sweep as it is now; None where it was deleted. `sweeps` requests every sweep of the project.

        Raises:
            NoResponse: no answer.
        """
        with _no_response_on_error():
            try:
                found = self._fresh().sweep(f"{self.path}/{id}")
                found.load(force=True)
            except ValueError as error:
                if "Could not find sweep" in str(error):
                    return None
                raise
            return _sweep(found)

    def create(self, config: Mapping[str, Any]) -> WandbSweep:
        """Return the sweep named `config["name"]`; make it if there is none.

        Raises:
            NoResponse: it may have been made.
        """
        import wandb

        launch, name = config["name"].rsplit("-", 1)[0], config["name"]
        if not self._named(launch, name):
            with _no_response_on_error(), contextlib.redirect_stdout(io.StringIO()):
                wandb.sweep(dict(config), entity=self.entity, project=self.project)
        same = self._named(launch, name)
        if not same:
            raise NoResponse("W&B made a sweep that it does not list yet")
        for extra in same[1:]:
            self.close(extra, cancel=True)
        return same[0]

    def _named(self, launch: str, name: str) -> list[WandbSweep]:
        return [sweep for sweep in self.sweeps(launch) if sweep.name == name]

    def close(self, sweep: WandbSweep, *, cancel: bool = False) -> None:
        """Close a sweep, which then issues nothing; with `cancel`, agents also kill what they run, at once and unsaved.

        Raises:
            NoResponse: it may still be open.
        """
        from wandb.cli.cli import cli  # the only public way

        if sweep.open:
            with (
                _no_response_on_error(),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                arguments = ["sweep", "--cancel" if cancel else "--stop", f"{self.path}/{sweep.id}"]
                cli.main(arguments, standalone_mode=False)

    def runs(self, sweep: str) -> list[WandbRun]:
        """Return the runs of a sweep, oldest first.

        Raises:
            NoResponse: no answer.
        """
        return self._runs({"sweep": sweep})

    def runs_with_job(self, launch: str, job: str) -> list[WandbRun]:
        """Return the runs of a launch that have a job, oldest first.

        Raises:
            NoResponse: no answer.
        """
        found = self._runs({"$and": [{"config.launch": launch}, {"config.job": job}]})
        return [run for run in found if run.job == job]

    def _runs(self, filters: Mapping[str, Any]) -> list[WandbRun]:
        with _no_response_on_error():
            found = self._fresh().runs(self.path, filters=dict(filters), lazy=False, per_page=200)
            return sorted((_run(run) for run in found if run.job_type != "pod"), key=lambda run: (run.created, run.id))

    def _fresh(self) -> Any:
        self._api.flush()  # else the client answers from its cache
        return self._api


@contextlib.contextmanager
def _no_response_on_error() -> Iterator[None]:
    """Turn whatever the client raises into `NoResponse`."""
    try:
        yield
    except Exception as error:  # it has a dozen exceptions, and no base class
        raise NoResponse(f"W&B gave no answer ({_why(error)})") from None


def _why(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return redacted(f"{type(error).__name__}: {text[0] if text else ''}".strip(": "))


def _sweep(found: Any) -> WandbSweep:
    return WandbSweep(
        str(found.id), str(found.config.get("name", "")), str(found.state).upper() in ("RUNNING", "PENDING")
    )


def _run(run: Any) -> WandbRun:
    config, summary = dict(run.config), dict(run.summary_metrics)
    created = _seconds(run.created_at)
    heartbeat = _seconds(run.heartbeat_at) if run.heartbeat_at else created
    return WandbRun(
        id=str(run.id),
        url=str(run.url),
        state=str(run.state),
        sweep=str(run.sweep_name or ""),
        job=config.get("job"),
        created=created,
        heartbeat=heartbeat,
        duplicate=DUPLICATE in (run.tags or []),
        pod=config.get("pod"),
        seconds=float(summary.get("_runtime") or max(heartbeat - created, 0.0)),
        summary={key: value for key, value in summary.items() if not key.startswith("_")},
        config=config,
    )


def _seconds(text: str) -> float:
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()

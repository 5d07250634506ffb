"""The folder of a launch, `runs/launches/<id>/`: plan.json lists its jobs, results.json what became of each.

The launcher writes both, reports read them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from wavespace.errors import BadInput
from wavespace.files import read_regular, write_atomic

MOST_BYTES = 2**28
"""Bytes of a launch's file that are read at most."""


@dataclass(frozen=True)
class Job:
    """One override-set of a multirun.

    Attributes:
        index: its place in the multirun; makes equal override-sets distinct.
        signature: of the run that it composes to (`wavespace.config.signature`).
        overrides: as Hydra's sweeper gave them.
    """

    index: int
    signature: str
    overrides: tuple[str, ...]

    @property
    def text(self) -> str:
        """The value that W&B's grid passes to an agent: readable in W&B's pages, and all that a worker needs."""
        return f"{self.index}|{self.signature[:8]}|{shlex.join(self.overrides)}"

    @classmethod
    def parse(cls, text: str) -> Job:
        """Parse a job's text, which has the first eight digits of its signature.

        Raises:
            BadInput: it is not a job's text.
        """
        index, signature, overrides = [*text.split("|", 2), "", ""][:3]
        try:
            return cls(int(index), signature, tuple(shlex.split(overrides)))
        except ValueError as error:
            raise BadInput(f"'{text}' is not a job as `<index>|<signature>|<overrides>`: {error}") from None


@dataclass(frozen=True, kw_only=True)
class JobList:
    """What every plan.json holds.

    Attributes:
        id: names the launch at W&B, at Runpod and on disk.
        study: `name` of the configuration.
        jobs: in order; a sweeper that decides as it goes adds to them.
        search: a W&B search in place of the jobs' grid: `method`, `parameters`, `metric`, `run_cap`.
    """

    id: str
    study: str
    jobs: tuple[Job, ...]
    search: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read plan.json of a launch's folder.

        Raises:
            BadInput: it can't be read, or holds something else.
        """
        path = folder / "plan.json"
        try:
            return cls.from_json(read_regular(path, MOST_BYTES).decode())
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: is not a launch's plan ({error})") from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse what `to_json` wrote.

        Raises:
            BadInput: it is another text.
        """
        try:
            found = json.loads(text)
            if isinstance(found, dict) and "stay" in found:  # as plans before 0.1 say it
                found["keep_pods"] = found.pop("stay")
            return TypeAdapter(cls).validate_json(json.dumps(found))
        except ValidationError as error:
            fault = error.errors()[0]
            raise BadInput(f"{'.'.join(map(str, fault['loc'])) or 'plan'}: {fault['msg'][:200]}") from None
        except (ValueError, RecursionError) as error:
            raise BadInput(f"plan: {str(error)[:200]}") from None


@dataclass(frozen=True)
class JobResult:
    """A job of a launch and where it stands.

    Attributes:
        state: `queued`, `starting` (an agent has it), `running`, `preempted` (another agent goes on with it), `retry`,
            `finished`, `failed`, `diverged` (it would again, so it is not tried again).
        run: id of the run that counts: the first that finished, else the newest.
        pod: where that run is or was.
        attempts: runs that ended without a result, but for those that another version has refused.
        dollars: of all its runs.
        monitor: the metric that `value` is of.
        mode: which way `value` is better, min or max; None where it is not known.
        metrics: of the run, by name.
    """

    index: int
    overrides: tuple[str, ...]
    state: str = "queued"
    run: str | None = None
    url: str | None = None
    pod: str | None = None
    attempts: int = 0
    minutes: float = 0.0
    dollars: float = 0.0
    monitor: str | None = None
    value: float | None = None
    mode: str | None = None
    reason: str | None = None
    metrics: Mapping[str, float] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("finished", "failed", "diverged")


def write_results(folder: Path, jobs: Sequence[JobResult], **facts: object) -> None:
    """Write results.json of a launch's folder: its jobs, and facts of the launch."""
    text = json.dumps(facts | {"jobs": [asdict(job) for job in jobs]}, indent=1)
    write_atomic(folder / "results.json", text + "\n")


def read_results(folder: Path) -> list[JobResult]:
    """Read results.json of a launch's folder; empty where there is none yet.

    Raises:
        BadInput: it can't be read, or holds something else.
    """
    path = folder / "results.json"
    try:
        jobs = json.loads(read_regular(path, MOST_BYTES))["jobs"]
        for job in jobs:
            if "figures" in job:  # as results before 0.1 say it
                job["metrics"] = job.pop("figures")
        return TypeAdapter(list[JobResult]).validate_python(jobs)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BadInput(f"{path}: is damaged ({why[:200]}); `wavespace pods attach` writes it anew") from None

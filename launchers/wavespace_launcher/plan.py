"""A launch as plain data: its jobs, settings and name. Nothing here makes a request."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, Field, StrictBool, StrictInt, TypeAdapter, ValidationError

from wavespace.errors import ConfigError
from wavespace.launchfile import Job, JobList

PREFIX = "ws"
"""Prefix of our pods' names; no other pod is ever touched."""

PREPARE = "prepare"
"""In place of a run's signature: the job is `wavespace prepare`."""

POD_FOLDER = "WAVESPACE_POD_FOLDER"
"""Variable that names the pod's folder to its workers."""

OTHER_VERSION = "other-version"
"""File in the pod's folder in which a worker says that the image is of another version than the launch."""

MOST_JOBS = 500
"""Jobs of a sweep at most: beyond them W&B's grid begins again (wandb #5247)."""


def pod_name(launch: str, slot: int, attempt: int) -> str:
    """Return the name of a launch's pod at Runpod."""
    return f"{PREFIX}-{launch}-{slot}-{attempt}"


def launch_of(pod: str) -> str | None:
    """Return the launch of the pod with this name; None for any other pod of the account (M10)."""
    found = re.fullmatch(rf"{PREFIX}-(.+)-[0-9]+-[0-9]+", pod)
    return found[1] if found else None


@dataclass(frozen=True, kw_only=True)
class RunpodSettings:
    """`hydra/launcher=runpod`; `conf/hydra/launcher/runpod.yaml` says what each is for."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    max_cost: Annotated[float, Field(gt=0)]
    image: Annotated[str, Field(min_length=1, pattern=r"^\S+$")]
    project: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")] = "wavespace"
    entity: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    gpus: Annotated[tuple[Annotated[str, Field(pattern=r'^[^"\\]+$')], ...], Field(min_length=1)]
    clouds: Annotated[tuple[Literal["community", "secure"], ...], Field(min_length=1)] = ("community", "secure")
    data_centers: tuple[str, ...] = ()
    cuda: tuple[Annotated[str, Field(pattern=r"^\d+\.\d+$")], ...] = ()
    spot: bool = False
    max_pods: Annotated[int, Field(ge=1)] = 4
    max_hours: Annotated[float, Field(gt=0)] = 6.0
    boot_timeout: Annotated[float, Field(gt=0)] = 15.0
    idle_timeout: Annotated[float, Field(gt=0)] = 5.0
    retries: Annotated[int, Field(ge=0)] = 1
    secrets: Mapping[str, str] = field(default_factory=lambda: {"WANDB_API_KEY": "WANDB_API_KEY"})
    env: Mapping[str, str] = field(default_factory=dict)
    volume: str | None = None
    disk: Annotated[int, Field(ge=10)] = 40
    metric: str | None = None
    raise_on_failure: bool = True
    dry_run: bool = False
    detach: bool = False
    poll_seconds: Annotated[float, Field(gt=0)] = 15.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunpodSettings:
        """Read the plain data of `hydra.launcher`.

        Raises:
            ConfigError: names every wrong or missing value with its key.
        """
        unset = {*REQUIRED, "secrets", "env"}
        values = {key: value for key, value in given.items() if value is not None or key not in unset}
        if isinstance(values.get("secrets"), list):
            values["secrets"] = {name: name for name in values["secrets"]}
        if isinstance(values.get("env"), list):
            if absent := [name for name in values["env"] if name not in os.environ]:
                raise ConfigError(f"hydra.launcher.env: this machine has no variable {', '.join(absent)}")
            values["env"] = {name: os.environ[name] for name in values["env"]}
        return read_settings(cls, values)

    @property
    def candidates(self) -> list[Candidate]:
        """Kinds of machines to request, in the order of the settings."""
        return [
            Candidate(gpu, cloud, center)
            for gpu in self.gpus
            for cloud in self.clouds
            for center in self.data_centers or (None,)
        ]


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """`hydra/launcher=local`; `conf/hydra/launcher/local.yaml` says what each is for."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    processes: Annotated[StrictInt, Field(ge=1)] | None = None
    raise_on_failure: StrictBool = True


REQUIRED = {
    "max_cost": "is missing: the most, in dollars, that the whole launch may cost, as in hydra.launcher.max_cost=5",
    "image": "is missing: the image that pods run, as in hydra.launcher.image=you/wavespace:1 (docker/README.md)",
}

Settings = TypeVar("Settings")


def read_settings(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Read the plain data of `hydra.launcher`.

    Raises:
        ConfigError: names every wrong or missing value with its key.
    """
    try:
        return TypeAdapter(cls).validate_python({key: value for key, value in values.items() if key != "_target_"})
    except ValidationError as error:
        faults = {problem["loc"]: problem for problem in error.errors()}
        for inner in list(faults):
            faults.pop(inner[:-1], None)  # of a list without its wrong items: that it is too short
        found = [_fault(cls, place, fault["msg"], fault["input"]) for place, fault in faults.items()]
        raise ConfigError("\n  ".join(["the launcher's settings have faults:", *found])) from None


def _fault(cls: type, place: Sequence[Any], message: str, value: Any) -> str:
    key = ".".join(["hydra.launcher", *map(str, place)])
    if message == "Field required" or message.startswith("Missing required"):
        return f"{key} {REQUIRED.get(str(place[-1]), 'is missing')}"
    if message.startswith("Unexpected keyword"):
        return f"{key}: there is no such key; keys: {', '.join(field.name for field in fields(cls))}"
    return f"{key} = {value!r}: {(message[0].lower() + message[1:]).replace('tuple', 'list')}"


class Candidate(NamedTuple):
    """A kind of machine to request."""

    gpu: str
    cloud: str
    center: str | None

    def __str__(self) -> str:
        return f"{self.gpu} ({', '.join(filter(None, (self.cloud, self.center)))})"


@dataclass(frozen=True, kw_only=True)
class Plan(JobList):
    """All that a controller needs to begin a launch, or to continue it.

    Attributes:
        settings: as chosen for this launch.
        keep_pods: more jobs may come when these are done, so pods are kept for `idle_timeout`.
    """

    settings: RunpodSettings
    keep_pods: bool = False


def digest(settings: RunpodSettings, study: str, jobs: Iterable[Job], search: Mapping[str, Any] | None) -> str:
    """Return eight hex digits of a launch's jobs and where they are logged, not of what it may cost."""
    what = [settings.project, settings.entity, study, [job.text for job in jobs], search]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def new_launch_id(digest: str) -> str:
    """Return the id of a new launch: the time, and the digest."""
    return f"{time.strftime('%y%m%d-%H%M%S')}-{digest}"


def sweep_config(plan: Plan, name: str, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the W&B sweep that issues each of `jobs` once, or draws from the plan's search space."""
    parameters: dict[str, Any] = {"launch": {"value": plan.id}}
    if plan.search is None:
        chosen: dict[str, Any] = {"method": "grid"}
        parameters["job"] = {"values": [job.text for job in jobs]}
    else:
        chosen = {key: value for key, value in plan.search.items() if key != "parameters"}
        parameters |= {"job": {"value": plan.jobs[0].text}} | dict(plan.search["parameters"])
    return {
        "name": name,
        "description": f"wavespace launch {plan.id}",
        **chosen,
        "parameters": parameters,
        "program": "wavespace",
        "command": ["${interpreter}", "-m", "wavespace.cli", "worker", "${args_no_hyphens}"],
    }


def drawn_override(key: str, value: object) -> str:
    """Write a parameter that W&B drew as a Hydra override; W&B's agent writes null as Python does."""
    return f"{key}={'null' if str(value) == 'None' else value}"

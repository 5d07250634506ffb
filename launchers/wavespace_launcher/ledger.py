"""A launch on disk: its plan, and an append-only ledger of requests to services and their answers.

An intent is written before each request, and the answer after it. The ledger holds all that a launch knows, so a
controller may be killed between any two lines.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wavespace.errors import BadInput, ConfigError, UserError
from wavespace.files import is_locked, lock, read_regular, write_atomic
from wavespace.launchfile import MOST_BYTES
from wavespace_launcher.plan import Plan

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def redacted(text: str) -> str:
    """Replace the values of this process's secrets: of variables whose names say so, and the Runpod key."""
    for value in sorted(secret_values(), key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def without_secrets(value: Any) -> Any:
    """Redact each text of plain data; numbers and JSON's own signs stay as they are."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value


def secret_values() -> set[str]:
    """Return the values of this process's secrets."""
    values = {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8}
    if key := getattr(sys.modules.get("runpod"), "api_key", None):
        values.add(str(key))
    return values


NUMBERS, LISTS = ("t", "price", "until", "slot", "attempt"), ("jobs", "candidate")
"""Keys of events that hold numbers, and those that hold lists."""


def _is_event(event: Any) -> bool:
    """Return whether a line of a ledger has a kind, a time, and values of the types that `State` needs."""
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str) or "t" not in event:
        return False
    if not isinstance(event.get("name", ""), str):
        return False
    if not all(isinstance(event[key], list) for key in LISTS if key in event):
        return False
    numbers = [event[key] for key in NUMBERS if key in event]
    return all(isinstance(number, int | float) and abs(number) < 1e15 for number in numbers)


class Launch:
    """The folder `<runs>/launches/<id>/`: `plan.json ledger.jsonl results.json lock`, each line and file whole."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self.folder, self.now = folder, now

    @classmethod
    def create(cls, runs: Path, plan: Plan, now: Callable[[], float] = time.time) -> Launch:
        """Make the folder of a new launch and write its plan."""
        launch = cls(runs / "launches" / plan.id, now)
        launch.save(plan)
        return launch

    @classmethod
    def all(cls, runs: Path) -> list[Launch]:
        """Every launch of a folder of runs, oldest first."""
        return [cls(path.parent) for path in sorted((runs / "launches").glob("*/plan.json"))]

    @classmethod
    def named(cls, runs: Path, name: str) -> Launch:
        """Find the launch with this id, or the only one whose id contains `name`.

        Raises:
            BadInput: there is none, or more than one.
        """
        found = [launch for launch in cls.all(runs) if name in launch.folder.name]
        exact = [launch for launch in found if launch.folder.name == name] or found
        if len(exact) == 1:
            return exact[0]
        known = ", ".join(launch.folder.name for launch in found or cls.all(runs)) or "none"
        raise BadInput(f"{'more than one' if found else 'no'} launch in {runs / 'launches'} is named '{name}': {known}")

    @property
    def id(self) -> str:
        """The launch's name, everywhere."""
        return self.folder.name

    @property
    def plan(self) -> Plan:
        """The launch's plan, read from plan.json.

        Raises:
            BadInput: plan.json can't be read.
        """
        return Plan.read(self.folder)

    def save(self, plan: Plan) -> None:
        """Write plan.json.

        Raises:
            ConfigError: the plan holds a secret's value, which W&B, Runpod and the disk would then show.
        """
        text = plan.to_json()
        if without_secrets(json.loads(text)) != json.loads(text):
            raise ConfigError(
                "an override or a setting holds the value of a variable that is named as a secret (KEY, TOKEN, SECRET, "
                "PASSWORD, CREDENTIAL), and would be shown at W&B; give it to pods by hydra.launcher.secrets"
            )
        write_atomic(self.folder / "plan.json", text)

    def write(self, kind: str, **facts: Any) -> dict[str, Any]:
        """Append an event without secrets' values; it is on the disk when this returns."""
        line = json.dumps({"t": round(self.now(), 3), "kind": kind} | without_secrets(facts)) + "\n"
        with (self.folder / "ledger.jsonl").open("ab") as file:
            if file.tell() and not self._ends_whole():  # a kill cut the last line off
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        return json.loads(line)

    def _ends_whole(self) -> bool:
        with (self.folder / "ledger.jsonl").open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def events(self) -> Iterator[dict[str, Any]]:
        """Read every event in order; a line that a kill cut off does not count.

        Raises:
            BadInput: a whole line is no event, so what the launch has cost is not known.
        """
        path = self.folder / "ledger.jsonl"
        try:
            lines = read_regular(path, MOST_BYTES).splitlines()
        except FileNotFoundError:
            return
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not _is_event(event):
                raise BadInput(f"{path}: line {number} is no event of a launch; mend it, or delete the launch's folder")
            yield event

    def request_end(self, end: bool = True) -> None:
        """Ask the launch's controller, which may be another process, to end it; or take that back."""
        path = self.folder / "end"
        path.touch() if end else path.unlink(missing_ok=True)

    def end_requested(self) -> bool:
        """Return whether the end was requested."""
        return (self.folder / "end").exists()

    def read_only(self) -> Launch:
        """Return the same launch, which writes nothing: to look at it while another process controls it."""
        looked_at = Launch(self.folder, self.now)
        looked_at.write = lambda kind, **facts: {"t": self.now(), "kind": kind} | facts  # type: ignore[method-assign]
        return looked_at

    @property
    def has_controller(self) -> bool:
        """Whether a process controls the launch."""
        return is_locked(self.folder / "lock", of_process=False)

    @contextmanager
    def as_controller(self) -> Iterator[None]:
        """Hold the lock of the launch's only controller.

        Raises:
            UserError: there is one; or the file system has no locks, and a second one would spend as much again.
        """
        with (self.folder / "lock").open("a") as file:
            if not lock(file, of_process=False):
                raise UserError(
                    f"launch {self.id} is controlled by another process; `wavespace pods status {self.id}` shows it"
                )
            yield

"""The run folder `runs/<name>/<signature>/`: its files, its state, and one writer at a time."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavespace.config import signature
from wavespace.digests import Unread, digest
from wavespace.errors import Diverged, UserError
from wavespace.files import DISK_ERRORS, explained, lock, read_regular, refusal, write_atomic
from wavespace.inputs import input_digests, input_paths

MOST_STATUS = 2**24
"""Bytes of a status.json that is read."""


class RunFolder:
    """Where one configuration's run lives. Everything else only reads or fills it.

    Files: `config.yaml inputs.json status.json metrics.csv checkpoints/{last,best}.ckpt samples/ report.html`.

    Attributes:
        path: the folder.
        missing: why what the run reads can't be read.
    """

    def __init__(self, path: Path, read: Mapping[str, Any] | None = None, missing: UserError | None = None) -> None:
        self.path, self._read, self.missing = path, read, missing
        self.held: int | None = None
        """Descriptor of the folder that this process writes into."""

    @classmethod
    def of(cls, cfg: DictConfig, most: float = math.inf) -> RunFolder:
        """Return the folder of a configuration and of the content of the files that it reads.

        Where a file is missing, it is the folder of a finished run that has read its files in the same places.

        Args:
            cfg: the configuration.
            most: bytes to read at most for the digests of the files.

        Raises:
            Unread: more would have to be read.
        """
        study, name, where = Path(cfg.runs) / cfg.name, signature(cfg), input_paths(cfg)
        try:
            digests = input_digests(cfg, most)
        except Unread:
            raise
        except UserError as missing:
            for other in sorted(study.glob(f"{name}-*")):
                folder = cls(other, missing=missing)
                if folder.read().get("places") == where and folder.status().get("state") == "finished":
                    return folder
            return cls(study / f"{name}-{digest(where)[:8]}", missing=missing)
        name += f"-{digest(digests)[:8]}" if digests else ""
        return cls(study / name, {"digests": digests, "places": where})

    def read(self) -> dict[str, Any]:
        """What inputs.json says: `digests` of what the run reads, and the `input_paths` where it is, by setting."""
        if self._read is not None:
            return dict(self._read)
        try:
            found = json.loads((self.path / "inputs.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def other_inputs(self) -> str | None:
        """Which run of this configuration read something else, and what; None if there is none."""
        name, digests = self.path.name.partition("-")[0], self.read().get("digests") or {}
        others = [path for path in self.path.parent.glob(f"{name}*") if path.name != self.path.name]
        for path in sorted((p for p in others if (p / "status.json").is_file()), key=lambda p: -p.stat().st_mtime):
            theirs = RunFolder(path).read().get("digests") or {}
            differ = [key for key in {**theirs, **digests} if theirs.get(key) != digests.get(key)]
            return f"{path} has read something else ({', '.join(differ[:3])}{', …' if len(differ) > 3 else ''})"
        return None

    @property
    def last(self) -> Path:
        """Checkpoint to resume from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best validation."""
        return self.path / "checkpoints" / "best.ckpt"

    def status(self) -> dict[str, Any]:
        """What status.json says; `state` is one of running, finished, failed, diverged, preempted. Empty if there is
        none.
        """
        try:
            found = json.loads(read_regular(self.path / "status.json", MOST_STATUS))
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def update(self, **facts: Any) -> None:
        """Set facts in status.json."""
        self.check_is_here()
        whole = {"signature": self.path.name} | self.status() | facts
        write_atomic(self.path / "status.json", json.dumps(whole, indent=2) + "\n")

    def clear(self) -> None:
        """Start over: what an earlier run left is removed."""
        for name in ("status.json", "metrics.csv", "report.html"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "samples"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Remove the unfinished files of processes that were killed; this one holds the folder alone."""
        for left in (*self.path.glob(".*.[0-9]*"), *self.last.parent.glob(".*"), *self.path.glob(".samples.*")):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def check_is_here(self) -> None:
        """Raise `UserError` if the folder that this process writes into has been moved, deleted or replaced."""
        if self.held is None:
            return
        try:
            if os.path.samestat(os.fstat(self.held), self.path.stat()):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise UserError(
            f"{self.path} was moved or deleted meanwhile, so the run stops; put it back, or say runs=… where it is, "
            "and repeat the command: it resumes from its last checkpoint"
        )

    @contextmanager
    def writing(self, cfg: DictConfig) -> Iterator[None]:
        """Hold the folder for one run: says `running`, then `finished`, `diverged`, or `failed` with the reason.

        Raises:
            UserError: another process is running the same configuration, or the folder was moved meanwhile.
        """
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        with file:
            # A lock of the process, which its loader workers don't inherit: they may outlive a kill by a moment.
            if not lock(file, unguarded="nothing keeps a second process from this run: start no other"):
                raise UserError(
                    f"another process is running this configuration in {self.path}; wait for it, or change the seed"
                )
            self._remove_leftovers()
            if cfg.fresh:
                self.clear()
            before = self.status()
            start, busy = time.monotonic(), sum(os.times()[:4])

            def spent() -> dict[str, float]:
                minutes = {"minutes": time.monotonic() - start, "cpu_minutes": sum(os.times()[:4]) - busy}
                return {name: round(before.get(name, 0.0) + value / 60, 3) for name, value in minutes.items()}

            self.held = os.open(self.path, os.O_RDONLY)
            try:
                with explained(self.path):
                    write_atomic(self.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
                    if self.read().get("digests"):
                        write_atomic(self.path / "inputs.json", json.dumps(self.read(), indent=2) + "\n")
                    self.update(state="running", reason=None)
                    (self.path / "report.html").unlink(missing_ok=True)
                try:
                    yield
                    self.update(state="finished", **spent())
                except FileNotFoundError:  # the folder was moved between a look at it and an act
                    self.check_is_here()
                    raise
            except BaseException as error:
                if isinstance(error, UserError) and self._is_new():
                    self._take_back(before)  # what was refused is no run
                else:
                    self._update_at_last(state=_state_after(error), reason=_reason_of(error), **spent())
                raise
            finally:
                os.close(self.held)
                self.held = None

    def _is_new(self) -> bool:
        """Whether the folder is where it was, and nothing has been trained in it."""
        try:
            self.check_is_here()
        except UserError:
            return False
        metrics = self.path / "metrics.csv"
        has_rows = metrics.is_file() and metrics.read_bytes().count(b"\n") > 1
        return not has_rows and not (self.path / "checkpoints").exists()

    def _take_back(self, before: dict[str, Any]) -> None:
        """Leave the folder as it was found, and none where none was found."""
        with suppress(OSError):
            if before:
                write_atomic(self.path / "status.json", json.dumps(before, indent=2) + "\n")
                return
            for name in ("status.json", "config.yaml", "inputs.json", "metrics.csv", "report.html", ".lock"):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()
            self.path.parent.rmdir()

    def _update_at_last(self, **facts: Any) -> None:
        """`update`, also on a disk without room for a second file, or where the folder is now."""
        try:
            self.update(**facts)
        except (OSError, UserError):
            with suppress(OSError), open(os.open("status.json", os.O_RDWR, dir_fd=self.held), "r+b") as file:
                text = json.dumps(json.load(file) | facts, indent=2) + "\n"
                file.seek(0)
                file.write(text.encode())
                file.truncate()


def _state_after(error: BaseException) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    return "preempted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"


def _reason_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        error = refusal(error)
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".strip(": ")

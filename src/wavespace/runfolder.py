"""The run folder `runs/<name>/<signature>/`: its files, its state, and one writer at a time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavespace.config import signature
from wavespace.errors import UserError


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or none of it: to a temporary name beside it, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(temporary, path)


class RunFolder:
    """Where one configuration's run lives. Everything else only reads or fills it.

    Files: `config.yaml status.json metrics.csv checkpoints/{last,best}.ckpt samples/ report.html`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, cfg: DictConfig) -> RunFolder:
        """The folder of a configuration."""
        return cls(Path(cfg.runs) / cfg.name / signature(cfg))

    @property
    def last(self) -> Path:
        """Checkpoint to go on from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best validation."""
        return self.path / "checkpoints" / "best.ckpt"

    def status(self) -> dict[str, Any]:
        """What status.json says; `state` is one of running, finished, failed, preempted. Empty if there is none."""
        try:
            return json.loads((self.path / "status.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def update(self, **facts: Any) -> None:
        """Set facts in status.json."""
        whole = {"signature": self.path.name} | self.status() | facts
        write_atomic(self.path / "status.json", json.dumps(whole, indent=2) + "\n")

    def clear(self) -> None:
        """Start over: what an earlier run left is removed."""
        for name in ("status.json", "metrics.csv", "report.html"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "samples"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    @contextmanager
    def writing(self, cfg: DictConfig) -> Iterator[None]:
        """Hold the folder for one run: says `running`, then `finished`, or `failed` with the reason.

        Raises:
            UserError: another process is running the same configuration.
        """
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                # A lock of the process, which its loader workers don't inherit: they outlive a kill by seconds.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another process is running this configuration in {self.path}; wait for it, or change the seed"
                ) from None
            if cfg.fresh:
                self.clear()
            write_atomic(self.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            before = self.status()
            start, busy = time.monotonic(), sum(os.times()[:4])

            def spent() -> dict[str, float]:
                minutes = {"minutes": time.monotonic() - start, "cpu_minutes": sum(os.times()[:4]) - busy}
                return {name: round(before.get(name, 0.0) + value / 60, 3) for name, value in minutes.items()}

            self.update(state="running", reason=None)
            (self.path / "report.html").unlink(missing_ok=True)
            try:
                yield
            except BaseException as error:
                preempted = (
                    isinstance(error, KeyboardInterrupt | SystemExit) or type(error).__name__ == "SIGTERMException"
                )
                reason = f"{type(error).__name__}: {error}".strip(": ")
                self.update(state="preempted" if preempted else "failed", reason=reason, **spent())
                raise
            self.update(state="finished", **spent())

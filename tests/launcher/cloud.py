"""Both stand-ins side by side, and what a client's process needs to find them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from standins.runpod_server import ProcessRuntime, RunpodCore, RunpodServer
from standins.wandb_server import KEY, WandbServer

PLANTED = {
    "WANDB_API_KEY": KEY,
    "RUNPOD_API_KEY": "planted0runpod0key0" + "b" * 20,
}
"""Keys that must appear nowhere but in requests' headers."""


@dataclass
class Cloud:
    """W&B and Runpod on this machine; pods are process trees.

    Attributes:
        env: of a client's process.
        folder: for the client's files.
    """

    wandb: WandbServer
    runpod: RunpodServer
    runtime: ProcessRuntime
    env: dict[str, str]
    folder: Path

    @property
    def core(self) -> RunpodCore:
        """The Runpod account."""
        return self.runpod.core


@contextmanager
def cloud(folder: Path) -> Iterator[Cloud]:
    """Start both."""
    threads = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    folder.mkdir(parents=True, exist_ok=True)
    runtime = ProcessRuntime(folder / "pods", {"PATH": search, **quiet, **threads})
    core = RunpodCore(runtime, keys=[PLANTED["RUNPOD_API_KEY"]])
    runtime.core = core
    core.secrets["WANDB_API_KEY"] = PLANTED["WANDB_API_KEY"]
    with WandbServer(keep=True) as wandb, RunpodServer(core) as runpod:
        hosts = {"WANDB_BASE_URL": wandb.url, "RUNPOD_API_BASE_URL": runpod.url}
        own = {name: str(folder / name.lower()) for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR")}
        for path in own.values():
            Path(path).mkdir(exist_ok=True)
        yield Cloud(wandb, runpod, runtime, {"PATH": search} | quiet | threads | own | hosts | PLANTED, folder)

"""Hydra's launchers `runpod` and `local`, found by Hydra wherever Wavespace is installed.

Hydra imports this file at every start, so it imports nothing: the work is in `wavespace_launcher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig


class RunpodLauncher(Launcher):
    """A multirun as W&B runs on rented GPUs: `hydra/launcher=runpod`."""

    session_class = "wavespace_launcher.launch.RunpodSession"

    def __init__(self, **settings: Any) -> None:
        # They are read in `setup`, where an error keeps its sentence: Hydra wraps those of a constructor.
        self.session: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the sweeper decides what to run."""
        self.session = get_class(self.session_class)(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run override-sets; returns when each has ended."""
        return self.session.launch(job_overrides, initial_job_idx)


class LocalLauncher(RunpodLauncher):
    """A multirun as processes on this machine: `hydra/launcher=local`."""

    session_class = "wavespace_launcher.local.LocalSession"

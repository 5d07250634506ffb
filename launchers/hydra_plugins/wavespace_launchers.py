"""Hydra's launchers `runpod` and `local`, which Hydra finds wherever Wavespace is installed.

Hydra imports this file at every start, so classes of `wavespace_launcher` are imported only when they are used.
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
    """A multirun as W&B runs on rented GPUs: `hydra/launcher=runpod`.

    Attributes:
        session_class: runs the jobs.
        settings_class: its fields are the keys of `hydra.launcher`.
        takes_searches: whether W&B can draw the values of a `search`.
    """

    session_class = "wavespace_launcher.launch.RunpodSession"
    settings_class = "wavespace_launcher.plan.RunpodSettings"
    takes_searches = True

    def __init__(self, **settings: Any) -> None:
        # `setup` reads the settings: its errors keep their sentence, while Hydra wraps those of a constructor.
        self.session: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings; Hydra calls this before the sweeper decides what to run."""
        self.session = get_class(self.session_class)(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run override-sets; return when each has ended."""
        return self.session.launch(job_overrides, initial_job_idx)


class LocalLauncher(RunpodLauncher):
    """A multirun as processes on this machine: `hydra/launcher=local`."""

    session_class = "wavespace_launcher.local.LocalSession"
    settings_class = "wavespace_launcher.plan.LocalSettings"
    takes_searches = False

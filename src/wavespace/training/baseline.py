"""What is fitted to training audio without gradients: front-end statistics, some models, and the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from omegaconf import DictConfig
from torch import Tensor

from wavespace.build import Parts, build_task, with_baseline
from wavespace.data.base import DataModule, collate
from wavespace.tasks.base import Task
from wavespace.training.scoring import score

WINDOWS = 256
"""Windows of training audio that are used."""


@runtime_checkable
class Fittable(Protocol):
    """A model that is fitted to features `(B, C, F, T)`, batch after batch."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the model's parameters."""


def training_audio(data: DataModule) -> Iterator[Tensor]:
    """Yield audio `(8, 1, N)` of the first `WINDOWS` training windows: the same, whatever workers and batches."""
    items: Any = data.train_set
    for start in range(0, WINDOWS, 8):
        yield collate([items[position] for position in range(start, start + 8)]).audio


def fit_model(task: Task, data: DataModule) -> None:
    """Fit a task's model, if it is `Fittable`; its front-end has been measured."""
    model: Any = task.model
    if isinstance(model, Fittable):
        model.fit(task.frontend(audio.to(task.device)) for audio in training_audio(data))


def baseline(cfg: DictConfig, parts: Parts) -> Task:
    """Return the task with the baseline for a model, whose threshold, too, is chosen on validation."""
    task = build_task(with_baseline(cfg), parts.data.spec)
    measured = {key: value for key, value in parts.task.frontend.state_dict().items() if key in ("mean", "std")}
    task.frontend.load_state_dict(measured, strict=False)  # without kernels that were trained
    fit_model(task, parts.data)
    score(task, parts.data, "val", tune=True)
    return task

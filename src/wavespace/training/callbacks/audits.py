"""Pictures of a trained model itself: what its codes separate, which channels it uses, the kernels it learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wavespace.analysis.note_errors import errors
from wavespace.analysis.probes import Labels, averages, encode, response
from wavespace.data.base import Batch, DataModule, collate
from wavespace.errors import Incompatible
from wavespace.models.blocks import autoencoder
from wavespace.reports.figures import (
    UNLABELLED,
    Audit,
    draw_channels,
    draw_codes,
    draw_errors,
    draw_kernels,
    draw_response,
)
from wavespace.tasks.base import Task

ITEMS, SECONDS = 128, 10.0
"""Most validation items that are measured, evenly spaced in the split, and how much of each, from its start."""


@runtime_checkable
class HasChannels(Protocol):
    """A task whose map has a channel a timbre."""

    def channels(self, output: Tensor) -> Tensor:
        """The maps `(B, timbres, F, T)`, at least 0, of the model's output."""


@runtime_checkable
class HasKernels(Protocol):
    """A task that plays each timbre with a kernel of its own."""

    def kernels(self) -> Tensor:
        """Amplitudes `(timbres, harmonics)`."""


@runtime_checkable
class NamesInstruments(Protocol):
    """Data that has a name for each class of the label `instrument`."""

    instruments: tuple[str, ...]


def audits(task: Task, data: DataModule) -> Iterator[Audit]:
    """What a task and its model have to show, the same items every time; of values that are not finite, nothing.

    A model with codes gives their principal components; a task with several timbres gives the use of its channels, and
    one with kernels, those; then the answer to a chromatic scale, and which notes of the test split are missed.

    Args:
        task: is left in evaluation mode.
        data: after `setup`.
    """
    if autoencoder(task.model) is not None:
        codes, labels = averages(task, _items(data), partial(encode, task))
        if len(codes) > 1 and np.isfinite(codes).all():
            yield draw_codes(codes, *_classes(data, labels, len(codes)))
    if isinstance(task, HasChannels):
        energies, labels = averages(
            task, _items(data), lambda features: task.channels(task.apply_model(features)).square().sum(2)
        )
        if energies.shape[1] > 1 and np.isfinite(energies).all():
            yield draw_channels(energies, *_classes(data, labels, len(energies)))
    if isinstance(task, HasKernels):
        kernels = task.kernels().detach().float().cpu().numpy()  # (timbres, harmonics)
        if np.isfinite(kernels).all():
            yield draw_kernels(kernels)
    with suppress(Incompatible):  # neither a map nor a code
        found = response(task)
        if np.isfinite(found.values).all():
            yield draw_response(found)
    with suppress(Incompatible):  # no notes to find
        yield draw_errors(errors(task, data))


def _items(data: DataModule) -> Iterator[Batch]:
    """The beginnings of validation items, each alone."""
    items: Any = data.val_set
    for index in np.unique(np.linspace(0, len(items) - 1, min(ITEMS, len(items))).astype(int)):
        item = items[int(index)]
        yield collate([item._replace(audio=item.audio[: round(SECONDS * data.spec.sample_rate)], features=None)])


def _classes(data: DataModule, labels: Labels, count: int) -> tuple[NDArray[np.int64], dict[int, str]]:
    """The classes `(count,)` of the items' instruments, and a name for each that occurs."""
    classes = labels.get("instrument", np.full(count, UNLABELLED))
    known = dict(enumerate(data.instruments)) if isinstance(data, NamesInstruments) else {}
    return classes, {c: known.get(c, f"instrument {c}") for c in np.unique(classes).tolist() if c != UNLABELLED}

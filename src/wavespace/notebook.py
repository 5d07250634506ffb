"""What notebooks share: open a run with its data, take an item through it, listen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from wavespace import checkpoint, config
from wavespace.config.construction import make
from wavespace.config.trust import configuration
from wavespace.data.base import DataModule, Item
from wavespace.errors import UserError
from wavespace.frontends.base import FrontEnd, scaled
from wavespace.tasks.base import Sample, Task, feature_picture
from wavespace.text import counted

if TYPE_CHECKING:
    from IPython.display import Audio

SECONDS = 10.0
"""How much of an item is taken, from its start."""


class Opened(NamedTuple):
    """A task and the data that it was trained on, or other data."""

    task: Task
    data: DataModule


def open_run(path: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> Opened:
    """The best checkpoint of a run folder, or a checkpoint, with its data ready to be asked for items.

    Args:
        path: a run folder `runs/<name>/<signature>` or a file.
        overrides: what changes in its data, as `data.root=/elsewhere`, or other data, as `data=rendered`.
        trust: packages whose code it may call, as of `wavespace.load`.

    Raises:
        UserError: the checkpoint or the data can't be used.
    """
    task = checkpoint.load(path, trust)
    cfg = config.amend(configuration(task.config_text, trust, ("data",)), overrides, task.frontend.in_spec.sample_rate)
    return Opened(task, open_data(cfg))


def open_data(cfg: Any) -> DataModule:
    """The data of a configuration, ready to be asked for items."""
    data: DataModule = make(cfg.data, "data")
    data.prepare_data()
    data.setup("test")
    return data


def sample(task: Task, data: DataModule, index: int = 0) -> Sample:
    """A validation item through a task: pictures, sounds, notes.

    Raises:
        UserError: there is no such item.
    """
    items: Any = data.val_set
    if not -len(items) <= index < len(items):
        raise UserError(f"there is no item {index}; the validation split has {counted(len(items), 'items')}")
    return task.item_sample(items[index], SECONDS)


@torch.inference_mode()
def features(frontend: FrontEnd, item: Item) -> Sample:
    """Features of an item's audio, and its notes, as a sample to look at."""
    values = frontend(item.audio.reshape(1, 1, -1))[0, frontend.shown]  # (F, T)
    picture = feature_picture("input", values, frontend.out_spec)
    return Sample(item.name, [picture], {}, item.notes, item.notes)


def listen(sound: np.ndarray, sample_rate: int) -> Audio:
    """A player of a sound `(N,)`, at the level that it has."""
    from IPython.display import Audio

    return Audio(scaled(sound).clamp(-1, 1).numpy(), rate=sample_rate, normalize=False)


def facts(task: Task) -> dict[str, Any]:
    """What a checkpoint is, in a few lines: parts, sizes, parameters."""
    spec = task.frontend.out_spec
    return {
        "front-end": type(task.frontend).__name__,
        "model": type(task.model).__name__,
        "task": type(task).__name__,
        "sample rate": task.frontend.in_spec.sample_rate,
        "features": f"{spec.channels} × {spec.bins} bins, {spec.unit}",
        "frames a second": round(spec.frame_rate, 3),
        "parameters": task.parameter_count,
    }

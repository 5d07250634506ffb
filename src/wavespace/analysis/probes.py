"""Measurements of a trained task: what a linear map reads off its codes, and its response to single tones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavespace.data.base import Batch, DataModule, collate
from wavespace.errors import Incompatible
from wavespace.metrics.probes import balanced_accuracy, concentration, pitch_probe, tones
from wavespace.models.blocks import autoencoder
from wavespace.tasks.base import Task
from wavespace.tasks.piano_roll import PianoRoll
from wavespace.tasks.salience import PitchMap
from wavespace.units import hz_to_midi

Float = NDArray[np.float64]
Labels = dict[str, NDArray[np.int64]]

WINDOWS = 256
"""Training windows to which the linear map to instruments is fitted."""

AT_ONCE = 24
"""Tones in a batch."""


def encode(task: Task, features: Tensor) -> Tensor:
    """Codes `(B, dims, t)` of features `(B, C, F, T)`.

    Raises:
        Incompatible: the model has none, as a net with skips.
    """
    if (model := autoencoder(task.model)) is None:
        raise Incompatible(f"{type(task.model).__name__} has no code")
    return model.encode(features)[:, :, 0].float()


@torch.inference_mode()
def averages(
    task: Task, batches: Iterable[Batch], measure: Callable[[Tensor], Tensor], margin: float = 0.0
) -> tuple[Float, Labels]:
    """Means over time of what is measured on each item, `(K, dims)`, and the items' labels `(K,)` by name.

    Args:
        task: is left in evaluation mode.
        batches: their padding is left out.
        measure: features `(B, C, F, T)` to numbers `(B, dims, t)`, t being T or the number of a code's frames.
        margin: share of an item that is left out at either end.
    """
    task.eval()
    model = autoencoder(task.model)
    means: list[Float] = []
    labels: dict[str, list[Tensor]] = {}
    for batch in batches:
        features = task.batch_features(task.transfer_batch_to_device(batch, task.device, 0))
        values = measure(features)
        frames, given = features.shape[3], values.shape[2]
        step = 1 if model is None or given == frames else model.step
        for own, samples in zip(values, batch.lengths.tolist()):
            count = -(-task.frontend.out_spec.frames(samples, task.frontend.in_spec.sample_rate) // step)
            first = int(margin * count)
            own = own[:, first : max(first + 1, int((1 - margin) * count))]
            means.append(own.mean(-1).double().cpu().numpy())
        for name, classes in batch.labels.items():
            labels.setdefault(name, []).append(classes.cpu())
    return np.stack(means), {name: torch.cat(classes).numpy() for name, classes in labels.items()}


def instrument_probe(task: Task, data: DataModule) -> dict[str, float]:
    """`instrument_probe`: balanced accuracy on the test split of a linear map from time-averaged codes.

    Nothing where the data has no instruments, the model no codes, or the test split a single class. Chance is one in
    the number of classes of the training split.

    Args:
        task: is left in evaluation mode.
        data: after `setup`.
    """
    if "instrument" not in data.spec.labels or autoencoder(task.model) is None:
        return {}
    test, labels = averages(task, data.test_dataloader(), partial(encode, task))
    if len(np.unique(labels["instrument"])) < 2:
        return {}
    windows = (collate([data.train_set[position]]) for position in range(WINDOWS))
    codes, fitted = averages(task, windows, partial(encode, task))
    return {"instrument_probe": balanced_accuracy(codes, fitted["instrument"], test, labels["instrument"])}


def _tones(task: Task, every: int = 1) -> Iterator[Batch]:
    chosen = tones(task.frontend.in_spec.sample_rate)[::every]
    return (collate(chosen[start : start + AT_ONCE]) for start in range(0, len(chosen), AT_ONCE))


def control(task: Task) -> dict[str, float]:
    """`pitch_probe` and `latent_entropy` of a model with codes; `map_entropy` of a salience map; nothing of others.

    - `pitch_probe`: share of tones whose pitch a linear map of the code gives within half a semitone; it is fitted to
      tones of other timbres, by ridge regression. Chance is about 0.04.
    - `latent_entropy`: entropy of the shares of a code's dims in its variance, divided by the most there can be: 1
      where all of them carry as much, 0 where one carries all.
    - `map_entropy`: entropy of a frame of the map as a distribution along frequency, over the most there can be, a mean
      over tones: 0 where a tone is one bin.
    """
    metrics: dict[str, float] = {}
    if autoencoder(task.model) is not None:
        codes, labels = averages(task, _tones(task), partial(encode, task))
        metrics["pitch_probe"] = pitch_probe(codes, labels["pitch"], labels["timbre"])
        metrics["latent_entropy"] = concentration(codes)
    if isinstance(task, PitchMap):

        def entropy(features: Tensor) -> Tensor:
            values = task.salience(task.apply_model(features)).double()  # (B, F', T)
            share = values / values.sum(1, keepdim=True).clamp_min(1e-12)
            return -(share * share.clamp_min(1e-12).log()).sum(1, keepdim=True) / np.log(values.shape[1])

        metrics["map_entropy"] = float(averages(task, _tones(task, 3), entropy, 0.25)[0].mean())
    return metrics


class Response(NamedTuple):
    """What a model gives for single tones.

    Attributes:
        values: `(rows, pitches)`, each a mean over the middle of a tone, and over timbres.
        pitches: MIDI, `(pitches,)`.
        rows: MIDI pitch of each row, or None where rows are dims of a code.
        what: that the values are.
    """

    values: Float
    pitches: NDArray[np.int64]
    rows: Float | None
    what: str

    @property
    def accuracy(self) -> float | None:
        """Share of pitches whose highest row is within half a semitone; None of a code."""
        if self.rows is None:
            return None
        return float(np.mean(np.abs(self.rows[self.values.argmax(axis=0)] - self.pitches) <= 0.5))

    @property
    def octaves(self) -> float | None:
        """Share of pitches whose highest row is octaves, or a twelfth, away; None of a code."""
        if self.rows is None:
            return None
        off = self.rows[self.values.argmax(axis=0)] - self.pitches
        return float(np.mean(np.min(np.abs(np.abs(off)[:, None] - [12, 19, 24, 28, 31, 36]), axis=1) <= 0.5))


def response(task: Task) -> Response:
    """The response of a task to `tones`: of its map of pitches, of its keys, or of its model's code.

    Raises:
        Incompatible: the task has no map and its model no code.
    """
    measure: Callable[[Tensor], Tensor] = partial(encode, task)
    rows, what = None, "code"
    if isinstance(task, PitchMap):
        measure, what = lambda features: task.salience(task.apply_model(features)), "salience"  # (B, F', T)
    elif isinstance(task, PianoRoll):
        measure, what = lambda features: task.apply_model(features)[:, 1].sigmoid(), "frame probability"
    values, labels = averages(task, _tones(task), measure, 0.25)
    if what != "code":
        rows = hz_to_midi(np.maximum(task.out_spec.frequencies, 1e-3))
    pitches = np.unique(labels["pitch"])
    return Response(
        np.stack([values[labels["pitch"] == pitch].mean(axis=0) for pitch in pitches], axis=1), pitches, rows, what
    )

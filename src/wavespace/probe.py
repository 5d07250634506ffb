"""What a code says of the instrument: a linear map, taught on codes of training clips, scored on held-out songs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavespace.data.base import Batch, DataModule, collate
from wavespace.errors import Incompatible
from wavespace.tasks.base import Task

TAUGHT = 256
"""Training windows that the probe is taught on."""
RIDGE = 1e-2
"""Penalty of the map's weights, a share of the number of windows; numbers of codes have deviation 1."""


def instrument_probe(task: Task, data: DataModule) -> dict[str, float]:
    """`instrument_probe`: balanced accuracy on the test split of a linear map from time-averaged codes.

    Nothing where the data has no instruments, the model no codes, or the test split a single class. Chance is one in
    the number of classes of the training split.

    Args:
        task: its model is an `Autoencoder`, or it is not probed. Is left in evaluation mode.
        data: after `setup`.
    """
    model: Any = task.model
    if "instrument" not in data.spec.labels or not hasattr(model, "encode"):
        return {}
    task.eval()
    try:
        test = _codes(task, iter(data.test_dataloader()))
    except Incompatible:  # a net with skips
        return {}
    if len(np.unique(test[1])) < 2:
        return {}
    windows = (collate([data.train_set[position]]) for position in range(TAUGHT))
    return {"instrument_probe": balanced_accuracy(*_codes(task, windows), *test)}


@torch.inference_mode()
def _codes(task: Task, batches: Iterator[Batch]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Codes `(K, numbers)`, each the mean over its item's own frames, and classes `(K,)`."""
    codes: list[Tensor] = []
    classes: list[Tensor] = []
    model: Any = task.model
    spec, rate = task.frontend.out_spec, task.frontend.in_spec.sample_rate
    for batch in batches:
        moved = task.transfer_batch_to_device(batch, task.device, 0)
        code = model.encode(task.features_of(moved)).float()  # (B, numbers, 1, t)
        for own, samples in zip(code, batch.lengths.tolist()):
            codes.append(own[:, 0, : -(-spec.frames(samples, rate) // model.step)].mean(-1).cpu())
        classes.append(batch.labels["instrument"].cpu())
    return torch.stack(codes).double().numpy(), torch.cat(classes).numpy()


def balanced_accuracy(
    codes: NDArray[np.float64],
    classes: NDArray[np.int64],
    test_codes: NDArray[np.float64],
    test_classes: NDArray[np.int64],
) -> float:
    """Mean recall, over the classes that occur in test, of ridge regression to one-hot classes.

    Every class weighs as much in training, however many codes `(K, numbers)` it has. Closed form, in float64.
    """
    known, of = np.unique(classes, return_inverse=True)
    mean, deviation = codes.mean(0), codes.std(0) + 1e-9
    inputs, tested = (
        (np.pad((x - mean) / deviation, ((0, 0), (0, 1)), constant_values=1)) for x in (codes, test_codes)
    )
    weights = 1 / np.bincount(of)[of] / len(known)  # (K,), sums to 1
    penalty = RIDGE * np.eye(inputs.shape[1])
    penalty[-1, -1] = 0.0  # the constant is free
    weighted = inputs.T * weights
    solution = np.linalg.lstsq(weighted @ inputs + penalty, weighted @ np.eye(len(known))[of], rcond=None)[0]
    found = known[np.argmax(tested @ solution, axis=1)]
    return float(np.mean([np.mean(found[test_classes == c] == c) for c in np.unique(test_classes)]))

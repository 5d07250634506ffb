"""Pictures of a trained model itself: what its codes tell apart, which channels it uses, the kernels it learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from wavespace.data.base import DataModule, collate
from wavespace.errors import Incompatible
from wavespace.reports.figures import DARKEST, EXTRA, FAINT, FOUND, MISSED, PANEL, STYLE
from wavespace.tasks.base import Task

ITEMS, SECONDS = 128, 10.0
"""Most validation items that are heard, evenly spaced in the split, and how much of each, from its start."""

UNLABELLED = -1


class Audit(NamedTuple):
    """A picture, its heading, and a sentence that says what is there."""

    name: str
    description: str
    figure: Figure


@runtime_checkable
class Encodes(Protocol):
    """A model with codes, as `wavespace.models.blocks.Autoencoder`."""

    def encode(self, x: Tensor) -> Tensor:
        """Features `(B, C, F, T)` to codes `(B, numbers, 1, t)`."""


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
    task.eval()
    model: Any = task.model
    if isinstance(model, Encodes):
        try:
            codes, classes = _measured(task, data, lambda features: model.encode(features).mean((2, 3)))
        except Incompatible:  # a net with skips has no code
            pass
        else:
            if len(codes) > 1 and np.isfinite(codes).all():
                yield draw_codes(codes, classes, _names(data, classes))
    if isinstance(task, HasChannels):
        energies, classes = _measured(
            task, data, lambda features: task.channels(task.apply_model(features)).square().sum((2, 3))
        )
        if energies.shape[1] > 1 and np.isfinite(energies).all():
            yield draw_channels(energies, classes, _names(data, classes))
    if isinstance(task, HasKernels):
        kernels = task.kernels().detach().float().cpu().numpy()  # (timbres, harmonics)
        if np.isfinite(kernels).all():
            yield draw_kernels(kernels)
    from wavespace.analysis.listening import draw_errors, draw_response, errors, response

    with suppress(Incompatible):  # neither a map nor a code
        heard = response(task)
        if np.isfinite(heard.values).all():
            yield draw_response(heard)
    with suppress(Incompatible):  # no notes to find
        yield draw_errors(errors(task, data))


@torch.no_grad()
def _measured(
    task: Task, data: DataModule, measure: Callable[[Tensor], Tensor]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Numbers `(I, K)` of each item's features, each item alone, and the classes `(I,)` of their instruments."""
    items: Any = data.val_set
    rows, classes = [], []
    for index in np.unique(np.linspace(0, len(items) - 1, min(ITEMS, len(items))).astype(int)):
        item = items[int(index)]
        audio = item.audio[: round(SECONDS * data.spec.sample_rate)]
        batch = task.transfer_batch_to_device(collate([item._replace(audio=audio, features=None)]), task.device, 0)
        rows.append(measure(task.features(batch.audio))[0].double().cpu().numpy())
        classes.append(item.labels.get("instrument", UNLABELLED))
    return np.stack(rows), np.array(classes)


def _names(data: DataModule, classes: NDArray[np.int64]) -> dict[int, str]:
    """A name for each class that occurs."""
    known = dict(enumerate(data.instruments)) if isinstance(data, NamesInstruments) else {}
    return {c: known.get(c, f"instrument {c}") for c in np.unique(classes).tolist() if c != UNLABELLED}


# --- The pictures ----------------------------------------------------------------------------------------

COLOURS = (FOUND, EXTRA, MISSED, "#7db4f5", "#c3a4f2", "#ede68a", "#f4f2f8", "#b98b6a")
MARKERS = "os^DvPX*"
"""A colour and a shape a class: who can't tell two colours apart tells the shapes."""


@rc_context(STYLE)
def draw_codes(codes: NDArray[np.float64], classes: NDArray[np.int64], names: dict[int, str]) -> Audit:
    """Items by the first two principal components of their codes, each averaged over time.

    Args:
        codes: `(I, numbers)`.
        classes: `(I,)`.
        names: of classes; without any, all items are drawn alike.
    """
    around = codes - codes.mean(axis=0)
    left, sizes, right = np.linalg.svd(around, full_matrices=False)  # (I, K), (K,), (K, numbers)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # else they are the library's whim
    places = np.pad(left * sizes * signs, ((0, 0), (0, 2)))[:, :2]  # (I, 2): one number has no second component
    shares = np.pad(sizes**2 / max(float((sizes**2).sum()), np.finfo(float).tiny), (0, 2))[:2]

    figure, axes = _panel(3.4 + 0.16 * -(-len(names) // 2), left=0.2, below=0.45 + 0.16 * -(-len(names) // 2))
    for place, label in enumerate(names or {UNLABELLED: ""}):
        marker, colour = MARKERS[place % len(MARKERS)], COLOURS[place % len(COLOURS)]
        x, y = places[classes == label].T
        name = f"{names.get(label)} ({len(x)})"
        axes.scatter(x, y, s=14, marker=marker, color=colour, alpha=0.85, linewidths=0, label=name)
    axes.set_title("codes, averaged over time")
    axes.set_xlabel(f"first principal component, {shares[0]:.0%} of variance", color=FAINT)
    axes.set_ylabel(f"second, {shares[1]:.0%}", color=FAINT)
    if names:
        figure.legend(loc="lower left", bbox_to_anchor=(0.1, 0), ncols=2, frameon=False, handletextpad=0.1)
    by = f", by {len(names)} instruments: {', '.join(names.values())}" if names else ""
    return Audit(
        "Latent space",
        f"{len(codes)} validation items by the first two principal components of codes of {codes.shape[1]}, "
        f"which hold {shares[0]:.0%} and {shares[1]:.0%} of their variance{by}",
        figure,
    )


@rc_context(STYLE)
def draw_channels(energies: NDArray[np.float64], classes: NDArray[np.int64], names: dict[int, str]) -> Audit:
    """The share of each channel in the energy of an item's map, as a mean over items: by instrument, and of all.

    Args:
        energies: `(I, channels)`, the sums of squares of the maps, in which what is faint everywhere counts little; an
            item without any is left out.
        classes: `(I,)`; those without a name count in "all".
        names: of classes.
    """
    total = energies.sum(axis=1, keepdims=True)
    heard = total[:, 0] > 0
    shares, classes = energies[heard] / total[heard], classes[heard]
    groups = {name: shares[classes == label] for label, name in names.items()} | {"all": shares}
    groups = {name: group for name, group in groups.items() if len(group)}
    rows = np.array([group.mean(axis=0) for group in groups.values()]).reshape(-1, energies.shape[1])  # (R, channels)

    figure, axes = _panel(0.75 + 0.24 * max(1, len(groups)), left=0.34 if names else 0.1)
    axes.set_title("share of energy by channel, percent")
    axes.set_xlabel("channel", color=FAINT)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_xticks(range(energies.shape[1]))
    axes.tick_params(length=0)
    most = float(rows.max(initial=0))
    if groups:
        axes.imshow(rows, cmap="magma", vmin=0, vmax=most, aspect="auto")
    for (row, column), share in np.ndenumerate(rows):
        colour = DARKEST if share > 0.6 * most else "#ffffff"
        size = min(7.5, 110 / energies.shape[1])
        axes.text(column, row, f"{100 * share:.0f}", color=colour, size=size, ha="center", va="center")
    said = [f"{name} " + " ".join(f"{share:.0%}" for share in row) for name, row in zip(groups, rows)]
    return Audit(
        "Use of channels",
        f"the mean share of {energies.shape[1]} channels in the energy of the map of {int(heard.sum())} items"
        + "".join(f"; {words}" for words in said),
        figure,
    )


@rc_context(STYLE)
def draw_kernels(kernels: NDArray[np.float32]) -> Audit:
    """Amplitudes of the harmonics of each timbre, a panel each, on one scale.

    Args:
        kernels: `(timbres, harmonics)`.
    """
    timbres, harmonics = kernels.shape
    columns = 1 if timbres <= 3 else 2
    rows = -(-timbres // columns)
    figure = Figure(figsize=(4, 0.95 * rows + 0.3), dpi=250, facecolor=PANEL, layout="constrained")
    grid: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[timbres:]:
        axes.set_visible(False)
    for timbre, (axes, kernel) in enumerate(zip(grid.flat, kernels)):
        axes.bar(np.arange(1, harmonics + 1), kernel, color=FOUND, width=0.7)
        axes.set(title=f"timbre {timbre}", xlim=(0.4, harmonics + 0.6))
        axes.set_facecolor(DARKEST)
        axes.tick_params(axis="x", labelbottom=timbre + columns >= timbres)
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.supxlabel("harmonic", color=FAINT, size=7.5)
    figure.supylabel("amplitude", color=FAINT, size=7.5)
    strongest = ", ".join(str(1 + kernel.argmax()) for kernel in kernels)
    return Audit(
        "Kernels",
        f"amplitudes of {harmonics} harmonics, of {timbres} timbres; the strongest are {strongest}",
        figure,
    )


def _panel(height: float, *, left: float = 0.15, below: float = 0.45) -> tuple[Figure, Axes]:
    """A figure of one panel, `height` inches high, with `below` inches beneath it."""
    figure = Figure(figsize=(4, height), dpi=250, facecolor=PANEL)
    axes = figure.add_axes((left, below / height, 0.97 - left, 1 - (below + 0.26) / height))
    axes.set_facecolor(DARKEST)
    return figure, axes

"""Pictures of a trained model itself: what its codes tell apart, which channels it uses, the kernels it learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from wavespace.analysis.note_errors import errors, shares
from wavespace.analysis.probes import Labels, Response, averages, encode, response
from wavespace.data.base import Batch, DataModule, collate
from wavespace.errors import Incompatible
from wavespace.reports.figures import DARKEST, EXTRA, FAINT, FOUND, MISSED, PANEL, STYLE
from wavespace.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

ITEMS, SECONDS = 128, 10.0
"""Most validation items that are measured, evenly spaced in the split, and how much of each, from its start."""

UNLABELLED = -1

HARMONICS = 5
"""Harmonics whose place is marked in the response to a scale."""


class Audit(NamedTuple):
    """A picture, its heading, and a sentence that says what is there."""

    name: str
    description: str
    figure: Figure


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
    with suppress(Incompatible):  # no code
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
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # else the library's version decides
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
    sounding = total[:, 0] > 0
    portions, classes = energies[sounding] / total[sounding], classes[sounding]
    groups = {name: portions[classes == label] for label, name in names.items()} | {"all": portions}
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
        f"the mean share of {energies.shape[1]} channels in the energy of the map of {int(sounding.sum())} items"
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


@rc_context(STYLE)
def draw_response(found: Response) -> Audit:
    """A matrix of rows over pitches; where rows have a pitch, thin lines mark where each harmonic would be."""
    figure, axes = _panel(3.0)
    low, high = found.pitches[0] - 0.5, found.pitches[-1] + 0.5
    if found.rows is None:
        order = np.argsort([np.average(found.pitches, weights=np.abs(row) + 1e-12) for row in found.values])
        values = found.values[order]
        values = (values - values.mean(1, keepdims=True)) / (values.std(1, keepdims=True) + 1e-12)
        axes.imshow(values, cmap="magma", aspect="auto", origin="lower", extent=(low, high, -0.5, len(values) - 0.5))
        axes.set_ylabel("number of the code, by where it is strongest", color=FAINT)
        said = f"{len(values)} numbers of a code, each scaled, for {len(found.pitches)} pitches"
    else:
        axes.pcolormesh(found.pitches, found.rows, found.values, cmap="magma", shading="nearest", rasterized=True)
        for harmonic in range(1, HARMONICS + 1):
            place = found.pitches + 12 * np.log2(harmonic)
            axes.plot(found.pitches, place, color=FOUND if harmonic == 1 else FAINT, lw=0.5, ls=(0, (1, 3)))
        axes.set_ylim(max(found.rows.min(), low - 14), min(found.rows.max(), high + 30))
        axes.set_ylabel(f"{found.what} at MIDI pitch", color=FAINT)
        said = (
            f"{found.what} for single tones of {len(found.pitches)} pitches, harmonics 1 to {HARMONICS} dotted; "
            f"{found.accuracy:.0%} are strongest at their own pitch, {found.octaves:.0%} at a harmonic or an octave"
        )
    axes.set_xlim(low, high)
    axes.set_title("response to a chromatic scale")
    axes.set_xlabel("MIDI pitch of the tone", color=FAINT)
    return Audit("Chromatic scale", said, figure)


@rc_context(STYLE)
def draw_errors(found: pd.DataFrame) -> Audit:
    """What was missed by pitch (half octaves), velocity, polyphony and instrument: a panel for each that varies."""
    panels = [("pitch", 6), ("velocity", 16), ("polyphony", 1), ("instrument", 1)]
    panels = [(by, width) for by, width in panels if found[by].nunique() > 1]
    figure = Figure(figsize=(4, 1.25 * max(1, len(panels)) + 0.3), dpi=250, facecolor=PANEL, layout="constrained")
    said = []
    for (by, width), axes in zip(panels, figure.subplots(max(1, len(panels)), 1, squeeze=False).flat):
        table = shares(found, by, width)
        middle = table.index.to_numpy(float) + (width - 1) / 2
        missed, low, high = 1 - table["found"], 1 - table["high"], 1 - table["low"]
        axes.bar(middle, missed, width=0.8 * width, color=EXTRA, alpha=0.85)
        axes.vlines(middle, low, high, color=FAINT, lw=0.8)
        axes.set(title=f"missed, by {by}", ylim=(0, max(0.05, min(1.0, float(high.max())))))
        axes.set_facecolor(DARKEST)
        worst = missed.idxmax()
        said.append(f"by {by} from {missed.min():.0%} to {missed.max():.0%} at {worst}")
    missed_of_all = 1 - found["found"].mean() if len(found) else 0.0
    return Audit("Errors", f"{missed_of_all:.0%} of {len(found)} missed; " + "; ".join(said), figure)


def _panel(height: float, *, left: float = 0.15, below: float = 0.45) -> tuple[Figure, Axes]:
    """A figure of one panel, `height` inches high, with `below` inches beneath it."""
    figure = Figure(figsize=(4, height), dpi=250, facecolor=PANEL)
    axes = figure.add_axes((left, below / height, 0.97 - left, 1 - (below + 0.26) / height))
    axes.set_facecolor(DARKEST)
    return figure, axes

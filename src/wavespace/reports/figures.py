"""Pictures of sounds and of models: spectrograms, maps and notes on one time axis; codes, channels, kernels, errors.

`wavespace.reports.study_figures` draws many runs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from wavespace.analysis.note_errors import shares
from wavespace.analysis.probes import Response
from wavespace.data.base import Notes
from wavespace.errors import BadInput
from wavespace.reports.theme import CLASSES, DARK, DARKEST, EXTRA, FAINT, FOUND, MARKERS, MISSED, REFERENCE, panels
from wavespace.tasks.base import Picture, Sample
from wavespace.units import hz_to_midi, midi_to_hz

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Image
    from matplotlib.axes import Axes

ROWS = 300
"""Rows that a picture is drawn with: about the pixels that its panel is high."""


def draw(sample: Sample) -> tuple[Figure, str]:
    """The pictures of a sample, one under the other on one time axis, and a sentence that says what is there.

    Notes get a panel of their own: the reference as dim bars, and on them the estimate by what became of it
    (mir_eval's rule for onsets: within 50 ms and 50 cents).
    """
    has_notes = bool(len(sample.reference) or len(sample.estimate))
    panels = len(sample.pictures) + has_notes
    height = 1.55 * panels + 0.3  # inches
    seconds = max((picture.values.shape[1] - 1) / picture.frame_rate for picture in sample.pictures)
    with rc_context(DARK):
        figure = Figure(figsize=(4, height))
        grid = figure.add_gridspec(
            panels, 2, width_ratios=(50, 1), wspace=0.04, hspace=0.24,
            left=0.15, right=0.9, top=1 - 0.26 / height, bottom=0.4 / height,
        )  # fmt: skip
        said = []
        for row in range(panels):
            axes = figure.add_subplot(grid[row, 0])
            if row < len(sample.pictures):
                picture = sample.pictures[row]
                _draw_picture(picture, axes, figure.add_subplot(grid[row, 1]))
                said.append(f"{picture.title} ({picture.unit})")
            else:
                said.append(_draw_notes(sample, axes))
            axes.set_xlim(0, seconds)
            axes.tick_params(axis="x", labelbottom=row == panels - 1)
        figure.text(0.525, 0.05 / height, "seconds", color=FAINT, ha="center", va="bottom")
    return figure, f"{seconds:.1f} seconds, one under the other: {'; '.join(said)}"


def look(sample: Sample) -> Image:
    """Draw a sample as a notebook shows it."""
    return show(draw(sample)[0])


def show(figure: Figure) -> Image:
    """A figure as a notebook shows it, whichever backend of matplotlib there is."""
    from IPython.display import Image

    return Image(png(figure, dpi=150), width=560)


def png(figure: Figure, **options: Any) -> bytes:
    """A figure in `DARK` as the bytes of a PNG."""
    picture = io.BytesIO()
    with rc_context(DARK):  # ticks are made as they are drawn
        figure.savefig(picture, format="png", **options)
    return picture.getvalue()


def _draw_picture(picture: Picture, axes: Axes, bar: Axes) -> None:
    """A matrix over time and log frequency, with its colours beside it."""
    centres = np.asarray(picture.frequencies)
    inner = (centres[1:] + centres[:-1]) / 2
    high = 2 * centres[-1] - inner[-1]
    low = max(2 * centres[0] - inner[0], high / 512)  # nine octaves: linear bins begin at 0 Hz
    # Each row of equal pitch shows the loudest bin in it, or the one bin that it lies in.
    starts = np.searchsorted(inner, np.geomspace(low, high, ROWS + 1)[:-1])
    rows = np.maximum.reduceat(picture.values, starts, axis=0)  # (ROWS, T)
    start, end = -0.5 / picture.frame_rate, (picture.values.shape[1] - 0.5) / picture.frame_rate
    image = axes.imshow(
        rows, cmap="magma", vmin=picture.low, vmax=picture.high, aspect="auto", origin="lower",
        extent=(start, end, *hz_to_midi([low, high])),
    )  # fmt: skip
    axes.set_title(picture.title)
    bar.set_title(picture.unit, loc="right", size=7.5, color=FAINT, x=4.5)
    assert axes.figure is not None
    axes.figure.colorbar(image, cax=bar, ticks=np.linspace(picture.low, picture.high, 3), format="%.3g")

    pitches = hz_to_midi(centres[centres > 0])
    if np.allclose(pitches, np.rint(pitches), atol=1e-3):  # keys
        _name_keys(axes)
    else:
        hertz = np.array([digit * 10**power for power in range(1, 5) for digit in (1, 2, 5)])
        hertz = hertz[(hertz > low * 1.05) & (hertz < high * 0.95)]
        axes.set_yticks(hz_to_midi(hertz), [f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz" for hz in hertz])


def _draw_notes(sample: Sample, axes: Axes) -> str:
    """Found, missed and extra notes; returns how many."""
    from mir_eval.transcription import match_notes

    true, found = sample.reference, sample.estimate
    pairs: list[tuple[int, int]] = []
    if len(true) and len(found):
        true_hz, found_hz = ([midi_to_hz(pitch) for pitch in notes[:, 2]] for notes in (true, found))
        pairs = match_notes(true[:, :2], true_hz, found[:, :2], found_hz, offset_ratio=None)
    hit = np.isin(np.arange(len(true)), [pair[0] for pair in pairs])  # (K,)
    right = np.isin(np.arange(len(found)), [pair[1] for pair in pairs])  # (L,)

    true_layers = [(true[hit], REFERENCE, 0.45), (true[~hit], MISSED, 0.45)]
    found_layers = [(found[right], FOUND, 0.25), (found[~right], EXTRA, 0.25)]
    for notes, colour, half in true_layers + found_layers:
        axes.add_collection(PolyCollection(_bars(notes, half), color=colour, linewidth=0.3, antialiased=False))
    pitch = np.concatenate([true[:, 2], found[:, 2]])
    spare = max(2.0, (14 - np.ptp(pitch)) / 2)  # more than an octave, so that there is a C to read
    axes.set_ylim(pitch.min() - spare, pitch.max() + spare)
    axes.set_title("notes")
    _name_keys(axes)
    counts = {f"{len(pairs)} found": FOUND, f"{np.sum(~hit)} missed": MISSED, f"{np.sum(~right)} extra": EXTRA}
    for (text, colour), x in zip(counts.items(), (0.5, 0.77, 1.0)):
        axes.text(x, 1.03, text, color=colour, ha="right", va="bottom", transform=axes.transAxes)
    return f"notes ({', '.join(counts)})"


def _bars(notes: Notes, half: float) -> list[NDArray[np.float64]]:
    """Corners `(4, 2)` of each note's bar, `half` a bar to either side of its pitch."""
    onset, offset, low, high = notes[:, 0], notes[:, 1], notes[:, 2] - half, notes[:, 2] + half  # (K,)
    return list(np.stack([onset, low, onset, high, offset, high, offset, low], axis=1).reshape(-1, 4, 2))


def _name_keys(axes: Axes) -> None:
    """Name the Cs of an axis in MIDI pitch."""
    low, high = axes.get_ylim()
    pitches = [c for c in range(12, 121, 12) if low < c < high]
    axes.set_yticks(pitches, [f"C{c // 12 - 1}" for c in pitches])


@rc_context(DARK)
def draw_notes(notes: Notes, title: str) -> Figure:
    """Notes `(K, 4)` over their whole time, brighter where they are louder."""
    end = float(notes[:, 1].max(initial=1.0))
    figure, [[axes]] = panels(3.2, width=min(40, max(6, end * 0.3)), subplot_kw={"xlabel": "seconds"})
    axes.set(title=title, xlim=(0, end), ylim=(20, 109))
    axes.add_collection(PolyCollection(_bars(notes, 0.5), array=notes[:, 3], cmap="magma", clim=(-40, 127)))
    _name_keys(axes)
    return figure


# --- A picture under a cursor -------------------------------------------------------------------------------

WIDTH, HEIGHT = 1280, 720


class Still(NamedTuple):
    """The picture behind a cursor.

    Attributes:
        pixels: `(HEIGHT, WIDTH, 3)` uint8.
        left: column at which time begins.
        right: column at which it ends.
        top: first row that the cursor crosses.
        bottom: the row after its last.
    """

    pixels: NDArray[np.uint8]
    left: float
    right: float
    top: int
    bottom: int


@rc_context(DARK)
def draw_still(picture: Picture, seconds: float, *, fold: bool = False) -> Still:
    """Draw features, whole or folded onto one octave, over so many seconds.

    Raises:
        BadInput: features to fold have no axis of pitch.
    """
    figure = Figure(figsize=(WIDTH / 200, HEIGHT / 200), dpi=200)
    canvas = FigureCanvasAgg(figure)
    axes, bar = figure.add_axes((0.08, 0.12, 0.84, 0.78)), figure.add_axes((0.93, 0.12, 0.012, 0.78))
    _draw_picture(folded(picture) if fold else picture, axes, bar)
    if fold:
        axes.set_yticks(range(60, 72), ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"])
    axes.set_title(picture.title if len(picture.title) < 60 else f"{picture.title[:58]}…")
    axes.set_xlim(0, seconds)
    axes.set_xlabel("seconds")
    canvas.draw()
    box = axes.get_window_extent()
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
    return Still(pixels, float(box.x0), float(box.x1), HEIGHT - round(box.y1), HEIGHT - round(box.y0))


def frames(still: Still, seconds: float, fps: int) -> Iterator[NDArray[np.uint8]]:
    """Frames `(HEIGHT, WIDTH, 3)`, the cursor where the sound is at the middle of each."""
    for index in range(max(1, round(seconds * fps))):
        frame = still.pixels.copy()
        share = min(1.0, (index + 0.5) / fps / seconds)
        column = round(still.left + share * (still.right - still.left))
        frame[still.top : still.bottom, max(0, column - 1) : column + 1] = 255
        yield frame


def folded(picture: Picture) -> Picture:
    """The loudest of each pitch class, in the octave from middle C; NaN where no bin is near.

    There are as many rows as bins an octave, 12 to 48.

    Raises:
        BadInput: bins have no frequencies above 0.
    """
    hertz = np.asarray(picture.frequencies, dtype=float)
    pitched = hertz > 0
    if pitched.sum() < 2:
        raise BadInput("these features have no axis of pitch to fold; choose --frontend cqt")
    octaves = np.log2(hertz[pitched] / 440) + 9 / 12  # above a C
    rows = int(np.clip(round(1 / max(float(np.median(np.diff(octaves))), 1e-3)), 12, 48))
    row = np.rint(octaves % 1 * rows).astype(int) % rows
    values = np.full((rows, picture.values.shape[1]), -np.inf, dtype=np.float32)
    np.maximum.at(values, row, picture.values[pitched])
    octave = tuple(440 * 2 ** (np.arange(rows) / rows - 9 / 12))
    return picture._replace(values=np.where(np.isfinite(values), values, np.nan), frequencies=octave)


# --- Models -------------------------------------------------------------------------------------------------

UNLABELLED = -1
"""The class of items without one."""

HARMONICS = 5
"""Harmonics whose place is marked in the response to a scale."""


class Audit(NamedTuple):
    """A picture of a model, its heading, and a sentence that says what is there."""

    name: str
    description: str
    figure: Figure


@rc_context(DARK)
def draw_codes(codes: NDArray[np.float64], classes: NDArray[np.int64], names: dict[int, str]) -> Audit:
    """Items by the first two principal components of their codes, each averaged over time.

    Args:
        codes: `(I, dims)`.
        classes: `(I,)`.
        names: of classes; without any, all items are drawn alike.
    """
    around = codes - codes.mean(axis=0)
    left, sizes, right = np.linalg.svd(around, full_matrices=False)  # (I, K), (K,), (K, dims)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # else the library's version decides
    places = np.pad(left * sizes * signs, ((0, 0), (0, 2)))[:, :2]  # (I, 2): one number has no second component
    shares = np.pad(sizes**2 / max(float((sizes**2).sum()), np.finfo(float).tiny), (0, 2))[:2]

    figure, [[axes]] = panels(3.4 + 0.16 * -(-len(names) // 2))
    for place, label in enumerate(names or {UNLABELLED: ""}):
        marker, colour = MARKERS[place % len(MARKERS)], CLASSES[place % len(CLASSES)]
        x, y = places[classes == label].T
        name = f"{names.get(label)} ({len(x)})"
        axes.scatter(x, y, s=14, marker=marker, color=colour, alpha=0.85, linewidths=0, label=name)
    axes.set_title("codes, averaged over time")
    axes.set_xlabel(f"first principal component, {shares[0]:.0%} of variance")
    axes.set_ylabel(f"second, {shares[1]:.0%}")
    if names:
        figure.legend(loc="outside lower left", ncols=2, handletextpad=0.1)
    by = f", by {len(names)} instruments: {', '.join(names.values())}" if names else ""
    return Audit(
        "Latent space",
        f"{len(codes)} validation items by the first two principal components of codes of {codes.shape[1]}, "
        f"which hold {shares[0]:.0%} and {shares[1]:.0%} of their variance{by}",
        figure,
    )


@rc_context(DARK)
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

    figure, [[axes]] = panels(0.75 + 0.24 * max(1, len(groups)))
    axes.set_title("share of energy by channel, percent")
    axes.set_xlabel("channel")
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


@rc_context(DARK)
def draw_kernels(kernels: NDArray[np.float32]) -> Audit:
    """Amplitudes of the harmonics of each timbre, a panel each, on one scale.

    Args:
        kernels: `(timbres, harmonics)`.
    """
    timbres, harmonics = kernels.shape
    columns = 1 if timbres <= 3 else 2
    rows = -(-timbres // columns)
    figure, grid = panels(0.95 * rows + 0.3, rows, columns, sharex=True, sharey=True)
    for axes in grid.flat[timbres:]:
        axes.set_visible(False)
    for timbre, (axes, kernel) in enumerate(zip(grid.flat, kernels)):
        axes.bar(np.arange(1, harmonics + 1), kernel, color=FOUND, width=0.7)
        axes.set(title=f"timbre {timbre}", xlim=(0.4, harmonics + 0.6))
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


@rc_context(DARK)
def draw_response(found: Response) -> Audit:
    """A matrix of rows over pitches; where rows have a pitch, thin lines mark where each harmonic would be."""
    figure, [[axes]] = panels(3.0)
    low, high = found.pitches[0] - 0.5, found.pitches[-1] + 0.5
    if found.rows is None:
        order = np.argsort([np.average(found.pitches, weights=np.abs(row) + 1e-12) for row in found.values])
        values = found.values[order]
        values = (values - values.mean(1, keepdims=True)) / (values.std(1, keepdims=True) + 1e-12)
        axes.imshow(values, cmap="magma", aspect="auto", origin="lower", extent=(low, high, -0.5, len(values) - 0.5))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("dimension of the code, by where it is strongest")
        said = f"{len(values)} dimensions of a code, each scaled, for {len(found.pitches)} pitches"
    else:
        axes.pcolormesh(found.pitches, found.rows, found.values, cmap="magma", shading="nearest", rasterized=True)
        for harmonic in range(1, HARMONICS + 1):
            place = found.pitches + 12 * np.log2(harmonic)
            axes.plot(found.pitches, place, color=FOUND if harmonic == 1 else FAINT, lw=0.5, ls=(0, (1, 3)))
        axes.set_ylim(max(found.rows.min(), low - 14), min(found.rows.max(), high + 30))
        axes.set_ylabel(f"{found.what} at MIDI pitch")
        said = (
            f"{found.what} for single tones of {len(found.pitches)} pitches, harmonics 1 to {HARMONICS} dotted; "
            f"{found.accuracy:.0%} are strongest at their own pitch, {found.octaves:.0%} at a harmonic or an octave"
        )
    axes.set_xlim(low, high)
    axes.set_title("response to a chromatic scale")
    axes.set_xlabel("MIDI pitch of the tone")
    return Audit("Chromatic scale", said, figure)


@rc_context(DARK)
def draw_errors(found: pd.DataFrame) -> Audit:
    """What was missed by pitch (half octaves), velocity, polyphony and instrument: a panel for each that varies."""
    widths = {"pitch": 6, "velocity": 16, "polyphony": 1, "instrument": 1}
    varying = [by for by in widths if found[by].nunique() > 1]
    rows = max(1, len(varying))
    figure, grid = panels(1.25 * rows + 0.3, rows)
    said = []
    for by, axes in zip(varying, grid.flat):
        width = widths[by]
        table = shares(found, by, width)
        middle = table.index.to_numpy(float) + (width - 1) / 2
        missed, low, high = 1 - table["found"], 1 - table["high"], 1 - table["low"]
        axes.bar(middle, missed, width=0.8 * width, color=EXTRA, alpha=0.85)
        axes.vlines(middle, low, high, color=FAINT, lw=0.8)
        axes.set(title=f"missed, by {by}", ylim=(0, max(0.05, min(1.0, float(high.max())))))
        worst = missed.idxmax()
        said.append(f"by {by} from {missed.min():.0%} to {missed.max():.0%} at {worst}")
    missed_of_all = 1 - found["found"].mean() if len(found) else 0.0
    return Audit("Errors", f"{missed_of_all:.0%} of {len(found)} missed; " + "; ".join(said), figure)

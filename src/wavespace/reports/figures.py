"""How samples are drawn: spectrograms, maps and notes, one under the other on one time axis."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wavespace.spec import midi_to_hz
from wavespace.tasks.base import Picture, Sample

if TYPE_CHECKING:
    from IPython.display import Image
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A dark panel of its own, as magma begins dark: the same on a light page, on a dark one and in a file viewer.
PANEL, TEXT, FAINT, REFERENCE = "#18161e", "#d9d5e3", "#9c96ab", "#4b4659"
DARKEST = "#000004"  # where magma begins
FOUND, EXTRA, MISSED = "#6fd3ae", "#ffb454", "#ff6f91"

STYLE: Any = {
    "text.color": TEXT, "axes.edgecolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT,
    "font.size": 7.5, "axes.titlesize": 9, "axes.titlepad": 4, "axes.titlelocation": "left", "axes.linewidth": 0.5,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "xtick.major.width": 0.5, "ytick.major.width": 0.5,
    "xtick.major.pad": 2, "ytick.major.pad": 2,
}  # fmt: skip

ROWS = 300
"""Rows that a picture is drawn with: about the pixels that its panel is high."""


def draw(sample: Sample) -> tuple[Figure, str]:
    """The pictures of a sample, one under the other on one time axis, and a sentence that says what is there.

    Notes get a panel of their own: the reference as dim bars, and on them the estimate by what became of it
    (mir_eval's rule for onsets: within 50 ms and 50 cents).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    has_notes = bool(len(sample.reference) or len(sample.estimate))
    panels = len(sample.pictures) + has_notes
    height = 1.55 * panels + 0.3  # inches
    seconds = max((picture.values.shape[1] - 1) / picture.frame_rate for picture in sample.pictures)
    with rc_context(STYLE):
        figure = Figure(figsize=(4, height), dpi=250, facecolor=PANEL)
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
    """A figure in `STYLE` as the bytes of a PNG."""
    from matplotlib import rc_context

    picture = io.BytesIO()
    with rc_context(STYLE):  # ticks are made as they are drawn
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
        extent=(start, end, *_pitch([low, high])),
    )  # fmt: skip
    axes.set_title(picture.title)
    bar.set_title(picture.unit, loc="right", size=7.5, color=FAINT, x=4.5)
    assert axes.figure is not None
    axes.figure.colorbar(image, cax=bar, ticks=np.linspace(picture.low, picture.high, 3), format="%.3g")

    pitches = _pitch(centres[centres > 0])
    if np.allclose(pitches, np.rint(pitches), atol=1e-3):  # keys
        _name_keys(axes)
    else:
        hertz = np.array([digit * 10**power for power in range(1, 5) for digit in (1, 2, 5)])
        hertz = hertz[(hertz > low * 1.05) & (hertz < high * 0.95)]
        axes.set_yticks(_pitch(hertz), [f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz" for hz in hertz])


def _draw_notes(sample: Sample, axes: Axes) -> str:
    """Found, missed and extra notes; returns how many."""
    from matplotlib.collections import PolyCollection
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
        onset, offset, low, high = notes[:, 0], notes[:, 1], notes[:, 2] - half, notes[:, 2] + half  # (K,)
        bars = np.stack([onset, low, onset, high, offset, high, offset, low], axis=1).reshape(-1, 4, 2)  # (K, 4, 2)
        axes.add_collection(PolyCollection(list(bars), color=colour, linewidth=0.3, antialiased=False))
    pitch = np.concatenate([true[:, 2], found[:, 2]])
    spare = max(2.0, (14 - np.ptp(pitch)) / 2)  # more than an octave, so that there is a C to read
    axes.set_ylim(pitch.min() - spare, pitch.max() + spare)
    axes.set_facecolor(DARKEST)
    axes.set_title("notes")
    _name_keys(axes)
    counts = {f"{len(pairs)} found": FOUND, f"{np.sum(~hit)} missed": MISSED, f"{np.sum(~right)} extra": EXTRA}
    for (text, colour), x in zip(counts.items(), (0.5, 0.77, 1.0)):
        axes.text(x, 1.03, text, color=colour, ha="right", va="bottom", transform=axes.transAxes)
    return f"notes ({', '.join(counts)})"


def _name_keys(axes: Axes) -> None:
    """Name the Cs of an axis in MIDI pitch."""
    low, high = axes.get_ylim()
    pitches = [c for c in range(12, 121, 12) if low < c < high]
    axes.set_yticks(pitches, [f"C{c // 12 - 1}" for c in pitches])


def _pitch(hertz: ArrayLike) -> NDArray[np.float64]:
    """MIDI pitch of frequencies, the unit of every vertical axis."""
    return 69 + 12 * np.log2(np.asarray(hertz) / 440)

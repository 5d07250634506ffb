"""What a run looks and sounds like: the first validation items as pictures, sounds and MIDI, in `samples/`."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from wavespace.data.base import DataModule, Notes, collate
from wavespace.data.notes import clean, window, write_midi
from wavespace.data.soundfont import Sampler, Voice
from wavespace.errors import UserError
from wavespace.runfolder import write_atomic
from wavespace.tasks.base import Picture, Sample, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SECONDS = 10.0
"""How much of each item is kept, from its start: enough to judge by, and readable on a phone."""


def save_samples(task: Task, data: DataModule, folder: Path, count: int = 2) -> None:
    """Run a task on the first `count` validation items, and fill `folder` with what comes out.

    Every item gives a picture (`.png`), its sounds (`.flac`, 16 bit) and, if it has notes, `estimate.mid`,
    `reference.mid` and the estimate rendered as a piano. `samples.json` lists them: a list of
    `{name, description, picture, sounds: [{title, file}], midi: [{title, file}], missing}`, where `missing`
    says why something could not be made, or is null. The folder appears whole or not at all.

    Args:
        task: is left in evaluation mode. One that defines no sample writes nothing.
        data: after `setup`.
        folder: replaced if it exists.
        count: how many items, always the same ones.
    """
    if type(task).sample is Task.sample:
        return
    unfinished, old = (folder.with_name(f".{folder.name}.{kind}.{os.getpid()}") for kind in ("new", "old"))
    unfinished.mkdir(parents=True)
    try:
        rate = task.frontend.in_spec.sample_rate
        entries = [_write(s, rate, unfinished, i) for i, s in enumerate(_samples(task, data, count))]
        write_atomic(unfinished / "samples.json", json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@torch.no_grad()
def _samples(task: Task, data: DataModule, count: int) -> Iterator[Sample]:
    task.eval()
    items: Any = data.val_set
    for index in range(min(count, len(items))):
        item = items[index]
        audio = item.audio[: round(SECONDS * data.spec.sample_rate)]
        batch = collate([item._replace(audio=audio, notes=window(item.notes, 0.0, SECONDS))])
        batch = task.transfer_batch_to_device(batch, task.device, 0)
        features = task.features(batch.audio)  # (1, C, F, T)
        yield task.sample(task.apply_model(features), features, batch, 0)


def _write(sample: Sample, rate: int, folder: Path, index: int) -> dict[str, Any]:
    """Files of one sample; returns its entry in the manifest."""
    from soundfile import write

    has_notes = bool(len(sample.reference) or len(sample.estimate))
    sounds, missing = dict(sample.sounds), None
    if has_notes:
        try:
            longest = max([len(sound) for sound in sounds.values()], default=round(SECONDS * rate))
            voice = Voice(clean(sample.estimate))
            sounds["transcription"] = Sampler(None, rate).render([voice], longest)
        except UserError as error:  # tinysoundfont is optional
            missing = f"The transcription is not rendered: {error}."

    files = {title: f"{index}-{_safe(title)}.flac" for title in sounds}
    for title, sound in sounds.items():
        # Scaled as a 16-bit input was, so that it comes back bit by bit.
        pcm = np.clip(np.rint(np.nan_to_num(sound) * 32768.0), -32768, 32767).astype(np.int16)  # (N,)
        write(folder / files[title], pcm, rate, subtype="PCM_16")
    midi = {"estimate": sample.estimate, "reference": sample.reference} if has_notes else {}
    for title, notes in midi.items():
        write_midi(folder / f"{index}-{title}.mid", notes)

    picture = io.BytesIO()
    figure, description = draw(sample)
    figure.savefig(picture, format="png")
    name = f"{index}-{_safe(sample.name)}.png"
    write_atomic(folder / name, picture.getvalue())
    return {
        "name": sample.name,
        "description": description,
        "picture": name,
        "sounds": [{"title": title, "file": file} for title, file in files.items()],
        "midi": [{"title": title, "file": f"{index}-{title}.mid"} for title in midi],
        "missing": missing,
    }


def _safe(name: str) -> str:
    """A name as a part of a file's name: letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")[:50] or "item"


# --- The picture -----------------------------------------------------------------------------------------

# A dark panel of its own, as magma begins dark: the same on a light page, on a dark one and in a file viewer.
PANEL, TEXT, FAINT, REFERENCE = "#15131b", "#d9d5e3", "#9c96ab", "#4b4659"
FOUND, EXTRA, MISSED = "#6fd3ae", "#ffb454", "#ff6f91"

ROWS = 320
"""Rows that a picture is drawn with: about the pixels that its panel is high."""


def draw(sample: Sample) -> tuple[Figure, str]:
    """The pictures of a sample, one under the other on one time axis, and a sentence that says what is there.

    Notes get a panel of their own: the reference as dim bars, and the estimate on them by what became of it
    (mir_eval's rule for onsets: within 50 ms, within 50 cents).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    has_notes = bool(len(sample.reference) or len(sample.estimate))
    panels = len(sample.pictures) + has_notes
    height = 1.72 * panels + 0.4  # inches
    colours = {key: FAINT for key in ("xtick.color", "ytick.color", "axes.edgecolor", "axes.labelcolor")}
    with rc_context({"font.size": 8, "text.color": TEXT, "axes.linewidth": 0.5, **colours}):
        figure = Figure(figsize=(4.5, height), dpi=220, facecolor=PANEL)
        grid = figure.add_gridspec(
            panels, 2, width_ratios=(50, 1), wspace=0.04, hspace=0.28,
            left=0.135, right=0.915, top=1 - 0.26 / height, bottom=0.42 / height,
        )  # fmt: skip
        seconds = max((p.values.shape[1] - 1) / p.frame_rate for p in sample.pictures)
        said = []
        for row, picture in enumerate(sample.pictures):
            axes = figure.add_subplot(grid[row, 0])
            _draw_picture(picture, axes, figure.add_subplot(grid[row, 1]))
            said.append(f"{picture.title} ({picture.unit})")
        if has_notes:
            axes = figure.add_subplot(grid[-1, 0])
            said.append(_draw_notes(sample, axes))
        for axes in figure.axes:
            axes.tick_params(length=2.5, width=0.5, pad=2)
            if axes.get_subplotspec().colspan.start == 0:  # type: ignore[union-attr]
                axes.set_xlim(0, seconds)
                axes.tick_params(labelbottom=axes.get_subplotspec().is_last_row())  # type: ignore[union-attr]
        figure.text(0.525, 0.06 / height, "seconds", color=FAINT, ha="center", va="bottom")
    return figure, f"{seconds:.1f} seconds, one under the other: {'; '.join(said)}"


def _draw_picture(picture: Picture, axes: Axes, bar: Axes) -> None:
    """A matrix over time and log frequency, with its colours beside it."""
    centres = np.asarray(picture.frequencies)
    inner = (centres[1:] + centres[:-1]) / 2
    high = 2 * centres[-1] - inner[-1]
    low = max(2 * centres[0] - inner[0], high / 512)  # nine octaves: linear bins begin at 0 Hz
    # Each row of equal pitch shows the loudest bin in it, or the one bin that it lies in.
    starts = np.searchsorted(inner, np.geomspace(low, high, ROWS + 1)[:-1])
    rows = np.maximum.reduceat(picture.values, starts, axis=0)  # (ROWS, T)
    edges = (np.arange(2) * picture.values.shape[1] - 0.5) / picture.frame_rate
    image = axes.imshow(
        rows, cmap="magma", vmin=picture.low, vmax=picture.high, aspect="auto", origin="lower",
        extent=(*edges, *_pitch([low, high])),
    )  # fmt: skip
    axes.set_title(picture.title, loc="left", size=8.5, pad=4)
    bar.set_title(picture.unit, loc="right", size=7, color=FAINT, pad=4, x=4)
    assert axes.figure is not None
    axes.figure.colorbar(image, cax=bar, ticks=np.linspace(picture.low, picture.high, 3), format="%.3g")
    bar.tick_params(labelsize=7)

    pitches = _pitch(centres[centres > 0])
    if np.allclose(pitches, np.rint(pitches), atol=1e-3):  # keys
        _name_keys(axes)
    else:
        hertz = np.array([digit * 10**power for power in range(1, 5) for digit in (1, 2, 5)])
        hertz = hertz[(hertz > low * 1.05) & (hertz < high * 0.95)]
        axes.set_yticks(_pitch(hertz), [f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz" for hz in hertz])
    axes.tick_params(axis="y", labelsize=7)


def _draw_notes(sample: Sample, axes: Axes) -> str:
    from matplotlib.collections import PolyCollection
    from mir_eval.transcription import match_notes

    true, found = sample.reference, sample.estimate
    pairs = []
    if len(true) and len(found):
        sides = ((notes[:, :2], 440 * 2 ** ((notes[:, 2] - 69) / 12)) for notes in (true, found))
        pairs = match_notes(*next(sides), *next(sides), offset_ratio=None)
    hit, right = (np.isin(np.arange(len(notes)), [p[side] for p in pairs]) for side, notes in enumerate((true, found)))

    for notes, colour, height in (
        (true[hit], REFERENCE, 0.9), (true[~hit], MISSED, 0.9), (found[right], FOUND, 0.45), (found[~right], EXTRA, 0.45),
    ):  # fmt: skip
        onset, offset, pitch = notes[:, :3].T
        low, high = pitch - height / 2, pitch + height / 2
        corners = np.stack([onset, low, onset, high, offset, high, offset, low], axis=1)  # (K, 8)
        axes.add_collection(PolyCollection(list(corners.reshape(-1, 4, 2)), facecolors=colour, antialiased=False))
    pitch = np.concatenate([true[:, 2], found[:, 2]])
    spare = max(2.0, (14 - np.ptp(pitch)) / 2)  # an octave and a bit at least, so that there is a C to read
    axes.set_ylim(pitch.min() - spare, pitch.max() + spare)
    axes.set_facecolor("#000004")  # where magma begins
    axes.set_title("notes", loc="left", size=8.5, pad=4)
    counts = [(f"{len(pairs)} found", FOUND), (f"{int((~hit).sum())} missed", MISSED), (f"{int((~right).sum())} extra", EXTRA)]
    for (text, colour), x in zip(counts, (0.45, 0.75, 1.0)):
        axes.text(x, 1.03, text, color=colour, ha="right", va="bottom", size=8, transform=axes.transAxes)
    _name_keys(axes)
    return f"notes ({', '.join(text for text, _ in counts)})"


def _name_keys(axes: Axes) -> None:
    low, high = axes.get_ylim()
    octaves = [c for c in range(12, 120, 12) if low < c < high]
    axes.set_yticks(octaves, [f"C{c // 12 - 1}" for c in octaves])
    axes.tick_params(axis="y", labelsize=7)


def _pitch(hertz: ArrayLike) -> NDArray[np.float64]:
    """MIDI pitch of frequencies, the unit of every vertical axis."""
    return 69 + 12 * np.log2(np.asarray(hertz) / 440)

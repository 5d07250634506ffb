"""Audits of what a model hears: its response to a chromatic scale, and its errors by pitch, velocity and company.

The scale is self-made, so any model can be asked; errors need data with notes. Each gives numbers and a
picture of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from numpy.typing import NDArray

from wavespace.analysis.fidelity import tones
from wavespace.data.base import DataModule, Notes
from wavespace.errors import Incompatible
from wavespace.reports.figures import DARKEST, EXTRA, FAINT, FOUND, STYLE
from wavespace.spec import midi_to_hz
from wavespace.tasks.base import Task
from wavespace.tasks.piano_roll import PianoRoll, notes_of
from wavespace.tasks.salience import PitchMap
from wavespace.training.callbacks.audits import Audit, _panel

if TYPE_CHECKING:
    import pandas as pd

PARTIALS = 5
"""Harmonics whose place is marked in the response to a scale."""


class Response(NamedTuple):
    """What a model gives for single tones.

    Attributes:
        values: `(rows, pitches)`, each a mean over the middle of a tone, and over timbres.
        pitches: MIDI, `(pitches,)`.
        rows: MIDI pitch of each row, or None where rows are numbers of a code.
        what: that the values are.
    """

    values: NDArray[np.float64]
    pitches: NDArray[np.int64]
    rows: NDArray[np.float64] | None
    what: str

    @property
    def accuracy(self) -> float | None:
        """Share of pitches whose highest row is within half a semitone; None of a code."""
        if self.rows is None:
            return None
        told = self.rows[self.values.argmax(axis=0)]
        return float(np.mean(np.abs(told - self.pitches) <= 0.5))

    @property
    def octaves(self) -> float | None:
        """Share of pitches whose highest row is octaves, or a twelfth, away; None of a code."""
        if self.rows is None:
            return None
        off = self.rows[self.values.argmax(axis=0)] - self.pitches
        return float(np.mean(np.min(np.abs(np.abs(off)[:, None] - [12, 19, 24, 28, 31, 36]), axis=1) <= 0.5))


@torch.inference_mode()
def response(task: Task) -> Response:
    """The response of a task to the scale of `fidelity.tones`: of its map, of its keys, or of its model's code.

    Raises:
        Incompatible: the task has no map and its model no code.
    """
    task.eval()
    model: Any = task.model
    by_pitch: dict[int, list[NDArray[np.float64]]] = {}
    rows, what = None, "code"
    for wave, pitch, _ in tones(task.frontend.in_spec.sample_rate, 0):
        features = task.features(torch.from_numpy(wave).view(1, 1, -1).to(task.device))  # (1, C, F, T)
        if isinstance(task, PitchMap):
            column, what = task.salience(task.apply_model(features))[0], "salience"  # (F', T)
        elif isinstance(task, PianoRoll):
            column, what = task.apply_model(features)[0, 1].sigmoid(), "frame probability"
        elif hasattr(model, "encode"):
            column = model.encode(features)[0, :, 0]  # (numbers, t)
        else:
            raise Incompatible(f"{type(task).__name__} has no map of pitches, and {type(model).__name__} no code")
        length = column.shape[1]
        middle = column[:, length // 4 : max(length // 4 + 1, 3 * length // 4)].mean(1)
        by_pitch.setdefault(pitch, []).append(middle.double().cpu().numpy())
    if what != "code":
        rows = 69 + 12 * np.log2(np.maximum(np.asarray(task.out_spec.frequencies), 1e-3) / 440)
    pitches = np.array(sorted(by_pitch))
    return Response(np.stack([np.mean(by_pitch[p], axis=0) for p in pitches.tolist()], axis=1), pitches, rows, what)


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
        for harmonic in range(1, PARTIALS + 1):
            place = found.pitches + 12 * np.log2(harmonic)
            axes.plot(found.pitches, place, color=FOUND if harmonic == 1 else FAINT, lw=0.5, ls=(0, (1, 3)))
        axes.set_ylim(max(found.rows.min(), low - 14), min(found.rows.max(), high + 30))
        axes.set_ylabel(f"{found.what} at MIDI pitch", color=FAINT)
        said = (
            f"{found.what} for single tones of {len(found.pitches)} pitches, harmonics 1 to {PARTIALS} dotted; "
            f"{found.accuracy:.0%} are strongest at their own pitch, {found.octaves:.0%} at a harmonic or an octave"
        )
    axes.set_xlim(low, high)
    axes.set_title("response to a chromatic scale")
    axes.set_xlabel("MIDI pitch of the tone", color=FAINT)
    return Audit("Chromatic scale", said, figure)


# --- Errors -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def errors(task: Task, data: DataModule, split: str = "test", most: int = 200) -> pd.DataFrame:
    """A row for each true note (of a piano roll) or pitch in a frame (of a salience map): was it found?

    Columns: `item, pitch, velocity, polyphony, instrument, found`; `polyphony` counts what sounds when it begins,
    itself too, `velocity` is missing of a map, and `instrument` where the data has none. A note is found by mir_eval's
    rule for onsets, each once; a pitch if one within half a semitone of it is.

    Args:
        task: is left in evaluation mode.
        data: after `setup("test")`.
        split: "val" or "test".
        most: items at most, the first ones.

    Raises:
        Incompatible: the task finds no notes, or the data has none.
    """
    import pandas as pd

    if not isinstance(task, PianoRoll | PitchMap):
        raise Incompatible(f"{type(task).__name__} finds no notes, so it makes no errors in them")
    if "notes" not in data.spec.labels:
        raise Incompatible("errors are told by true notes, and this data has none")
    task.eval()
    loader: Any = data.val_dataloader() if split == "val" else data.test_dataloader()
    rows: list[tuple[Any, ...]] = []
    for batch in loader:
        observed = task.observe_batch(batch)
        for index, (seen, name) in enumerate(zip(observed, batch.names)):
            instrument = int(batch.labels["instrument"][index]) if "instrument" in batch.labels else None
            own = notes_of(batch, index)
            found = _of_notes(task, seen, own) if isinstance(task, PianoRoll) else _of_frames(task, seen)
            rows += [(name, *row[:3], instrument, row[3]) for row in found]
            most -= 1
            if most <= 0:
                break
        if most <= 0:
            break
    names = ["item", "pitch", "velocity", "polyphony", "instrument", "found"]
    return pd.DataFrame(rows, columns=names).astype({"pitch": int, "polyphony": int, "found": bool})


def _of_notes(task: PianoRoll, seen: Any, notes: Notes) -> list[tuple[int, float | None, int, bool]]:
    from mir_eval.transcription import match_notes

    notes = notes[notes[:, 0] >= 0]
    estimate = task.decode(seen.heads)
    hit: set[int] = set()
    if len(notes) and len(estimate):
        hertz = [np.array([midi_to_hz(pitch) for pitch in side[:, 2]]) for side in (notes, estimate)]
        pairs = match_notes(notes[:, :2], hertz[0], estimate[:, :2], hertz[1], offset_ratio=None)
        hit = {pair[0] for pair in pairs}
    company = [int(np.sum((notes[:, 0] <= onset + 0.03) & (notes[:, 1] > onset))) for onset in notes[:, 0]]
    return [
        (round(n[2]), float(n[3]), max(1, together), i in hit) for i, (n, together) in enumerate(zip(notes, company))
    ]


def _of_frames(task: Any, seen: Any) -> list[tuple[int, float | None, int, bool]]:
    seen = seen[0] if not hasattr(seen, "peaks") else seen  # self-supervised tasks observe more beside it
    peaks = seen.peaks[seen.peaks[:, 2] >= float(task.threshold)]
    frames, counts = np.unique(seen.reference[:, 0], return_counts=True)
    company = dict(zip(frames.tolist(), counts.tolist()))
    rows: list[tuple[int, float | None, int, bool]] = []
    for frame, pitch, *_ in seen.reference:
        heard = peaks[peaks[:, 0] == frame, 1]
        rows.append((round(pitch), None, company[frame], bool(np.any(np.abs(heard - pitch) <= 0.5))))
    return rows


def shares(found: pd.DataFrame, by: str, width: int = 1) -> pd.DataFrame:
    """Share that was found, by a column: `count, found, low, high`, the bounds by Wilson (95 %).

    Args:
        found: from `errors`.
        by: a column.
        width: values that are taken together, as 12 for octaves of pitch.
    """
    known = found[found[by].notna()]
    groups = (known[by] // width * width) if width > 1 else known[by]
    counted = known.groupby(groups)["found"].agg(["size", "mean"])
    n, p, z = counted["size"].to_numpy(float), counted["mean"].to_numpy(float), 1.96
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    counted["low"], counted["high"] = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    return counted.rename(columns={"size": "count", "mean": "found"})


@rc_context(STYLE)
def draw_errors(found: pd.DataFrame) -> Audit:
    """What was missed by pitch (half octaves), velocity, polyphony and instrument: a panel for each that varies."""
    from matplotlib.figure import Figure

    from wavespace.reports.figures import PANEL

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

"""The true notes and pitches of a split as a table: which were found."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wavespace.data.base import DataModule, Notes
from wavespace.errors import Incompatible
from wavespace.metrics.notes import found_notes
from wavespace.tasks.base import Task
from wavespace.tasks.piano_roll import PianoRoll
from wavespace.tasks.salience import PitchMap

if TYPE_CHECKING:
    import pandas as pd

Row = tuple[int, float | None, int, bool]


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
        raise Incompatible("errors are counted by true notes, and this data has none")
    task.eval()
    items = islice(_items(task, data.val_dataloader() if split == "val" else data.test_dataloader()), most)
    rows = [(name, *row[:3], instrument, row[3]) for name, instrument, found in items for row in found]
    names = ["item", "pitch", "velocity", "polyphony", "instrument", "found"]
    return pd.DataFrame(rows, columns=names).astype({"pitch": int, "polyphony": int, "found": bool})


def _items(task: PianoRoll | PitchMap, batches: Any) -> Iterator[tuple[str, int | None, list[Row]]]:
    """Name, instrument and rows of each item."""
    for batch in batches:
        for index, (seen, name) in enumerate(zip(task.eval_batch(batch), batch.names)):
            instrument = int(batch.labels["instrument"][index]) if "instrument" in batch.labels else None
            is_roll = isinstance(task, PianoRoll)
            rows = _of_notes(task, seen, batch.notes_of(index)) if is_roll else _of_frames(task, seen)
            yield name, instrument, rows


def _of_notes(task: Any, seen: Any, notes: Notes) -> list[Row]:
    notes = notes[notes[:, 0] >= 0]
    polyphony = [int(np.sum((notes[:, 0] <= onset + 0.03) & (notes[:, 1] > onset))) for onset in notes[:, 0]]
    found = found_notes(notes, task.decode(seen.heads)).tolist()
    return [(round(n[2]), float(n[3]), max(1, count), hit) for n, count, hit in zip(notes, polyphony, found)]


def _of_frames(task: Any, seen: Any) -> list[Row]:
    peaks = seen.peaks[seen.peaks[:, 2] >= float(task.threshold)]
    frames, counts = np.unique(seen.reference[:, 0], return_counts=True)
    polyphony = dict(zip(frames.tolist(), counts.tolist()))
    rows: list[Row] = []
    for frame, pitch, *_ in seen.reference:
        found = peaks[peaks[:, 0] == frame, 1]
        rows.append((round(pitch), None, polyphony[frame], bool(np.any(np.abs(found - pitch) <= 0.5))))
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

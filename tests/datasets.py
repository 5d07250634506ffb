"""Small folders of recordings in the layouts of the datasets, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from wavespace.data.files.midi import write_midi

RATE = 8_000
PIECES = [
    *[("a", "One", "train"), ("b", "Two", "train"), ("c", "Three", "train"), ("d", "Four", "train")],
    *[("e", "Two", "validation"), ("f", "Five", "validation"), ("g", "Six", "validation")],
    *[("h", "Three", "test"), ("i", "Five", "test"), ("j", "Seven", "test")],
]
"""Name, title and split of ten performances: two pieces are in training and held out, one in validation and test."""

HEADER = "canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration"


def record(path: Path, onset: float, seconds: float = 3.0, rate: int = RATE) -> None:
    """A tone of MIDI pitch 69 from `onset` on for a second, and its score."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, np.where((time >= onset) & (time < onset + 1), 0.5 * np.sin(2 * np.pi * 440 * time), 0), rate)
    write_midi(path.with_suffix(".mid"), np.array([[onset, onset + 1.0, 69.0, 80.0]]))


def maestro(root: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A folder in MAESTRO's layout: rows of name, title and split, each with its files; and one row without."""
    lines = [HEADER]
    for number, (name, title, split) in enumerate(rows):
        record(root / "2004" / f"{name}.wav", onset=0.05 * number)
        lines.append(f'Händel,"{title}",{split},2004,2004/{name}.mid,2004/{name}.wav,3.0')
    lines.append("Nobody,Nothing,train,2004,2004/gone.mid,2004/gone.wav,3.0")
    (root / "maestro-v3.0.0.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root

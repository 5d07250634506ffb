"""Small configurations that train in seconds, for tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

RENDERED = [
    "data=rendered", "data.seconds=1.0", "data.batch_size=2", "data.workers=0",
    "data.val_pieces=2", "data.test_pieces=2", "data.piece_seconds=4.0",
    "model=harmonic", "model.width=4", "model.dilations=[[1,1],[12,1]]", "task=piano_roll",
]  # fmt: skip
MEDLEY = [
    "data=medley_solos", "data.sample_rate=22050", "data.seconds=0.5", "data.batch_size=2",
    "frontend=log_frequency", "frontend.bins=32", "frontend.n_fft=1024", "frontend.hop=256",
    "model=unet", "model.width=2", "model.depth=2", "task=reconstruction",
]  # fmt: skip
TRAINER = [
    "trainer.max_steps=8", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1", "save_every=3",
    "trainer.accelerator=cpu", "trainer.precision=32-true",
]  # fmt: skip

FLOAT_WAV = struct.pack(
    *("<4sI4s4sIHHIIHH4sI", b"RIFF", 524_324, b"WAVE", b"fmt ", 16, 3, 1, 44_100, 176_400, 4, 32, b"data", 524_288)
)
"""Header of a clip: mono, 32-bit float, 131,072 frames; 44 bytes."""


def make_medley(root: Path, clips: int = 3) -> list[str]:
    """A folder in Medley-solos-DB's own layout and format, with tones for clips; returns the overrides that name it."""
    rng = np.random.default_rng(0)
    lines = ["subset,instrument,instrument_id,song_id,uuid4"]
    (root / "annotation").mkdir(parents=True)
    (root / "audio").mkdir()
    for number, subset in enumerate(("training", "validation", "test")):
        for i in range(clips):
            instrument, uuid = i % 8, f"{subset}{i:08d}"
            lines.append(f"{subset},x,{instrument},{100 * number + i:03d},{uuid}")
            time = np.arange(131_072) / 44_100
            tone = 0.3 * np.sin(2 * np.pi * 220 * 2 ** (rng.integers(0, 24) / 12) * time)
            tone += 0.01 * rng.normal(size=131_072)
            clip = root / "audio" / f"Medley-solos-DB_{subset}-{instrument}_{uuid}.wav"
            clip.write_bytes(FLOAT_WAV + tone.astype("<f4").tobytes())
    lines.append("training,x,0,999,absent")
    (root / "annotation" / "Medley-solos-DB_metadata.csv").write_text("\n".join(lines) + "\n")
    return [*MEDLEY, f"data.root={root}", f"data.stores={root / 'stores'}"]

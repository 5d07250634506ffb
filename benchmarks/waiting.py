"""The time that a training step waits for its batch: a small autoencoder on clips of a store, read in this process."""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import Row

from wavespace.build import build
from wavespace.config import compose
from wavespace.data.sources.medley_solos import METADATA

OVERRIDES = [
    "data=medley_solos",
    "frontend=log_frequency",
    "model=conv2d",
    "model.width=4",
    "model.max_width=32",
    "task=reconstruction",
]
CLIPS = 64


def rows(steps: int = 10) -> Iterator[Row]:
    """Median seconds of waiting for a batch of 16, and of whole steps, on one thread, after three uncounted steps."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _clips(Path(folder))
        data, task = build(compose([*OVERRIDES, f"data.root={folder}", f"data.stores={folder}/stores"]))
        data.prepare_data()
        data.setup()
        task.train()
        optimizer = task.optim.build(task)
        loader = iter(data.train_dataloader())
        waited, whole = [], []
        for _ in range(steps + 3):
            start = time.perf_counter()
            batch = next(loader)
            waited.append(time.perf_counter() - start)
            example = task.training_example(batch)
            task.loss(task.apply_model(example.features), example)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            whole.append(time.perf_counter() - start)
    yield Row("waiting for a batch", float(np.median(waited[3:])), float(np.median(whole[3:])), "its step", 0.05)


def _clips(root: Path) -> None:
    """Noise in the format of Medley-solos-DB."""
    header = struct.pack(
        *("<4sI4s4sIHHIIHH4sI", b"RIFF", 524_324, b"WAVE", b"fmt ", 16, 3, 1, 44_100, 176_400, 4, 32, b"data", 524_288)
    )
    lines = ["subset,instrument,instrument_id,song_id,uuid4"]
    for number in range(CLIPS):
        subset = ("training", "validation", "test")[number % 3]
        lines.append(f"{subset},x,0,{number:03d},{number}")
        noise = 0.1 * np.random.default_rng(number).normal(size=131_072)
        (root / f"Medley-solos-DB_{subset}-0_{number}.wav").write_bytes(header + noise.astype("<f4").tobytes())
    (root / METADATA).write_text("\n".join(lines) + "\n")

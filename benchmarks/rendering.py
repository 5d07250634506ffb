"""Rendering scores, with augmentation of scores and sound and with labels, against real time, on one core."""

from __future__ import annotations

import time
from collections.abc import Iterator

from harness import Row

from wavespace.data.synthesis.rendered import Rendered


def rows(items: int = 60) -> Iterator[Row]:
    """CPU seconds for each second of a window; its lead-in is rendered, too, and counts as cost."""
    data = Rendered()
    data.prepare_data()
    data.setup()
    data.train_set[0]
    start = time.process_time()
    for position in range(items):
        data.train_set[position]
    seconds = (time.process_time() - start) / (items * data.spec.seconds)
    yield Row("rendered scores", seconds, 1.0, "real time", 1 / 200)

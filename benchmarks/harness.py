"""Rows of a benchmark: ours and a peer, timed in alternation, so that other load slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """One comparison: medians in seconds unless `unit` says otherwise; `goal` is the highest `ratio` = ours / peer."""

    name: str
    ours: float
    peer: float
    peer_name: str
    goal: float
    unit: str = "s"

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    @property
    def met(self) -> bool:
        return self.ratio <= self.goal


def compare(
    name: str, ours: Callable[[], object], peer: Callable[[], object], peer_name: str, goal: float, rounds: int = 5
) -> Row:
    """Time both in alternation, after one round that is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for function, seconds in zip((ours, peer), times):
            start = time.perf_counter()
            function()
            if turn:
                seconds.append(time.perf_counter() - start)
    return Row(name, statistics.median(times[0]), statistics.median(times[1]), peer_name, goal)

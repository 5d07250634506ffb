"""Audio of any length in windows: the cuts do not change the result, which equals one pass away from the ends."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from parts import AUDIO, FRONTENDS, MODELS, small_task
from wavespace.inference import CONTEXT, WINDOW, stream
from wavespace.tasks.base import Task

Audio = NDArray[np.float32]
HOP = 512
TOLERANCE = 5e-3  # decibels or logits: float32 convolutions of other widths sum in another order


def noise(samples: int) -> Audio:
    """Noise in bursts of a sixth of a second, from silent to loud."""
    rng = np.random.default_rng(0)
    level = rng.choice([0.0, 1e-3, 0.03, 0.5], samples // 3700 + 1).repeat(3700)[:samples]
    return (level * rng.normal(size=samples)).astype(np.float32)


def streamed(task: Task, blocks: Iterable[Audio]) -> Tensor:
    return torch.cat(list(stream(task, blocks)), -1)  # (C', F', T)


@torch.inference_mode()
def one_pass(task: Task, audio: Audio) -> Tensor:
    return task(torch.from_numpy(audio)[None, None])[0]  # (C', F', T)


@pytest.mark.parametrize(("frontend", "model"), list(itertools.product(FRONTENDS, MODELS)))
def test_away_from_the_ends_windows_are_one_pass(frontend: str, model: str) -> None:
    task = small_task(frontend, model, "piano_roll" if model in ("harmonic", "peaks") else "reconstruction")
    audio = noise(700 * HOP + 99)
    whole, pieces = one_pass(task, audio), streamed(task, [audio])
    assert pieces.shape == whole.shape
    middle = slice(CONTEXT, -CONTEXT)
    torch.testing.assert_close(pieces[..., middle], whole[..., middle], rtol=0, atol=TOLERANCE)
    assert whole[..., middle].std(-1).max() > 50 * TOLERANCE  # it is no constant that agrees


def test_how_audio_is_cut_into_blocks_changes_no_bit() -> None:
    task = small_task("log_frequency", "conv2d both", "reconstruction")
    audio = noise(620 * HOP + 77)
    uncut = streamed(task, [audio])

    @settings(max_examples=10, deadline=None)
    @given(cuts=st.lists(st.integers(0, len(audio)), max_size=12))
    def check(cuts: list[int]) -> None:
        assert torch.equal(streamed(task, np.split(audio, sorted(cuts))), uncut)

    check()


def test_before_the_start_and_after_the_end_there_is_silence() -> None:
    task = small_task("multi_resolution", "harmonic", "piano_roll")
    audio = noise(500 * HOP)
    between = np.concatenate([np.zeros(WINDOW * HOP, np.float32), audio, np.zeros(100 * HOP, np.float32)])
    alone = streamed(task, [audio])
    torch.testing.assert_close(
        streamed(task, [between])[..., WINDOW : WINDOW + alone.shape[-1]], alone, rtol=0, atol=TOLERANCE
    )


LENGTHS = [1, 2, HOP - 1, HOP, HOP + 1, 64 * HOP, WINDOW * HOP - 1, WINDOW * HOP, (WINDOW + CONTEXT) * HOP,
           (WINDOW + 2 * CONTEXT) * HOP, (WINDOW + 2 * CONTEXT) * HOP - 1, 2 * WINDOW * HOP + 1]  # fmt: skip


@pytest.mark.parametrize("samples", LENGTHS)
def test_frames_are_those_of_the_spec_whatever_the_length(samples: int) -> None:
    task = small_task("mel", "conv2d both", "reconstruction")
    pieces = list(stream(task, np.array_split(noise(samples), 3)))
    assert sum(piece.shape[-1] for piece in pieces) == task.out_spec.frames(samples, AUDIO.sample_rate)
    assert all(piece.shape[:2] == (1, task.out_spec.bins) for piece in pieces)
    assert all(piece.isfinite().all() for piece in pieces)


@pytest.mark.parametrize("samples", [HOP // 2, 20 * HOP + 5])
def test_a_short_recording_is_heard_as_within_silence(samples: int) -> None:
    task = small_task("log_frequency", "conv2d", "reconstruction")
    audio = noise(samples)
    padded = np.pad(audio, (CONTEXT * HOP, 2 * CONTEXT * HOP))
    found = streamed(task, [audio])
    expected = one_pass(task, padded)[..., CONTEXT : CONTEXT + found.shape[-1]]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_no_audio_gives_nothing() -> None:
    task = small_task("log_frequency", "conv2d", "reconstruction")
    assert list(stream(task, [])) == []
    assert list(stream(task, [np.zeros(0, np.float32)])) == []


def test_memory_does_not_grow_with_length() -> None:
    task = small_task("log_frequency", "conv2d", "reconstruction")
    block = noise(10 * 22_050)
    peaks = []
    for tens in (4, 8):
        tracemalloc.start()
        for _ in stream(task, itertools.repeat(block, tens)):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]

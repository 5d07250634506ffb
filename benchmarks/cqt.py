"""The constant-Q front-ends against librosa and nnAudio on one thread, and on two threads against one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import librosa
import numpy as np
import torch
from harness import Row, compare
from nnAudio.features.cqt import CQT1992v2, CQT2010v2
from torch import Tensor, nn

from wavespace.frontends.cqt import CQT, HarmonicCQT
from wavespace.spec import AudioSpec

RATE = 22050
HARMONICS = (0.5, 1, 2, 3, 4, 5)


def rows(rounds: int = 5) -> Iterator[Row]:
    """Four items of ten seconds (HCQT: one item) at 22.05 kHz; ours gives levels in dB, the peers magnitudes."""
    threads = torch.get_num_threads()
    audio = 0.1 * torch.randn(4, 1, 10 * RATE, generator=torch.Generator().manual_seed(0))
    ours, harmonic = CQT(AudioSpec(RATE, 10.0)), HarmonicCQT(AudioSpec(RATE, 10.0), harmonics=HARMONICS)
    try:
        torch.set_num_threads(1)
        with torch.inference_mode():
            name, bins = "CQT, 176 bins", (27.5, 176, 24, 512)
            yield compare(name, partial(ours, audio), partial(by_librosa, audio), "librosa.cqt", 0.2, rounds)
            theirs = by_nnaudio(CQT2010v2, *bins)
            yield compare(name, partial(ours, audio), partial(theirs, audio), "nnAudio CQT2010v2", 0.2, rounds)
            theirs = by_nnaudio(CQT1992v2, *bins)
            yield compare(name, partial(ours, audio), partial(theirs, audio), "nnAudio CQT1992v2", 0.1, rounds)
            six = [by_nnaudio(CQT2010v2, 32.7 * multiple, 360, 60, 256) for multiple in HARMONICS]
            yield compare(
                "HCQT, 6 x 360 bins",
                partial(harmonic, audio[:1]),
                lambda: [theirs(audio[:1]) for theirs in six],
                "six nnAudio CQT2010v2",
                0.25,
                rounds,
            )
            yield compare(
                "building the CQT's tables",
                lambda: CQT(AudioSpec(RATE, 10.0)),
                lambda: [ours(audio) for _ in range(10)],
                "ten forwards of 10 s x 4",
                1.0,
                rounds,
            )
            for name, both in (("CQT", partial(ours, audio)), ("HCQT", partial(harmonic, audio[:1]))):
                yield two_threads(name, both, 4 * rounds)
    finally:
        torch.set_num_threads(threads)


def by_librosa(audio: Tensor) -> list[np.ndarray]:
    """Magnitudes of the items, one after the other, with librosa."""
    return [
        np.abs(librosa.cqt(x, sr=RATE, hop_length=512, fmin=27.5, n_bins=176, bins_per_octave=24))
        for x in audio[:, 0].numpy()
    ]


def by_nnaudio(peer: type[nn.Module], fmin: float, bins: int, octave: int, hop: int) -> nn.Module:
    """A layer of nnAudio with the same bins."""
    return peer(sr=RATE, hop_length=hop, fmin=fmin, n_bins=bins, bins_per_octave=octave, verbose=False)


def two_threads(name: str, function: Callable[[], object], rounds: int) -> Row:
    """Two threads against one: the fastest round of each, because another process on a core slows both threads."""
    fastest = {1: math.inf, 2: math.inf}
    for _ in range(rounds):
        for threads in fastest:
            torch.set_num_threads(threads)
            start = time.perf_counter()
            function()
            fastest[threads] = min(fastest[threads], time.perf_counter() - start)
    return Row(f"{name}, two threads", fastest[2], fastest[1], "one thread", 1.0)

"""Stores of the features of a frozen front-end, computed once for a whole store of audio.

They pay where features take longer to compute than to read: an EnCodec encoder on a CPU, six harmonics of a CQT; not
for spectrograms. Values are float16: latents to 0.05 %, levels of -80 dB to 0.03 dB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavespace.data.files.discovery import Recording
from wavespace.data.store.build import build_store, store_name
from wavespace.data.store.format import Rows, Store
from wavespace.digests import digest
from wavespace.spec import FeatureSpec

BLOCK = 4096
"""Frames to compute at once."""


class FrontEnd(Protocol):
    """The parts of a front-end, a `torch.nn.Module`, that are used here; data does not import front-ends."""

    @property
    def out_spec(self) -> FeatureSpec: ...
    @property
    def unbounded(self) -> bool: ...
    @property
    def context(self) -> int: ...
    def raw_features(self, audio: Tensor) -> Tensor: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...
    def named_parameters(self) -> Iterator[tuple[str, Tensor]]: ...
    def to(self, device: Any) -> Any: ...


class FeatureCache:
    """Finds or builds the store of a front-end's features.

    Args:
        frontend: frozen.
        settings: of the front-end, without those that can't change its output; they name the store.
    """

    def __init__(self, frontend: FrontEnd, settings: dict[str, Any]) -> None:
        self.frontend, self.settings = frontend, settings

    def store_for(self, audio: Store, stores: Path) -> Store:
        """Return the features of all recordings of a store of audio, from `stores` or computed on the GPU, if any."""
        rows = digest([audio.sample_rate, audio.names, audio.digests.tobytes().hex()])
        provenance = {"features of": rows, "frontend": self.settings, "tables": _digest(self.frontend)}
        recordings = [Recording(name, audio.folder, "") for name in audio.names]
        device = next(self.frontend.buffers()).device
        self.frontend.to("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return build_store(
                stores / store_name(provenance),
                recordings,
                Frames(audio, self.frontend),
                provenance,
                licence=audio.manifest["licence"],
                citation=audio.manifest["citation"],
                processes=0,
            )
        finally:
            self.frontend.to(device)


class Frames:
    """The source of a store of features: `(T, C * F)` float16 of each recording of a store of audio."""

    dtype = np.dtype("<f2")

    def __init__(self, audio: Store, frontend: FrontEnd) -> None:
        self.audio, self.frontend = audio, frontend
        self.number = {name: row for row, name in enumerate(audio.names)}
        self.rate = frontend.out_spec.frame_rate
        self.width = frontend.out_spec.channels * frontend.out_spec.bins
        self.hop = round(audio.sample_rate / self.rate)

    @cached_property
    def outside(self) -> NDArray[np.float16]:
        """The features of silence, `(C * F,)`."""
        silence = self.compute(np.zeros(2 * self.audio.sample_rate, np.int16))
        return silence[len(silence) // 2]

    def count(self, recording: Recording) -> int:
        """Return the number of frames."""
        return 1 + int(self.audio.frames[self.number[recording.name]]) // self.hop

    def rows(self, recording: Recording) -> Iterator[tuple[Rows, int]]:
        """Yield blocks of frames `(n, C * F)`; none is clipped."""
        number, count = self.number[recording.name], self.count(recording)
        samples = int(self.audio.frames[number])
        # A front-end whose output depends on all earlier samples gets the whole recording.
        block, context = (count, 0) if self.frontend.unbounded else (BLOCK, self.frontend.context)
        for first in range(0, count, block):
            before = min(first, context)
            begin = (first - before) * self.hop
            end = min(samples, (first + block + context) * self.hop)
            frames = self.compute(self.audio.window(number, begin, end - begin))
            yield frames[before : before + block], 0

    @torch.inference_mode()
    def compute(self, audio: NDArray[np.int16]) -> NDArray[np.float16]:
        """Return frames `(T, C * F)` of samples `(N,)`."""
        device = next(self.frontend.buffers()).device
        features: Tensor = self.frontend.raw_features(torch.from_numpy(audio).to(device)[None, None])
        return features[0].flatten(0, 1).T.half().cpu().numpy()  # (T, C * F)


def _digest(frontend: FrontEnd) -> str:
    """Digest all tables and frozen weights, so that other weights, or a fixed front-end, give another store."""
    hasher = hashlib.sha256()
    for name, table in (*frontend.named_parameters(), *frontend.named_buffers()):
        if name not in ("mean", "std"):  # features are stored before normalisation
            hasher.update(name.encode() + table.detach().cpu().numpy().tobytes())
    return hasher.hexdigest()[:16]

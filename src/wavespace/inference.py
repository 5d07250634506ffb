"""Apply a task to audio of any length in overlapping windows, at constant memory, as in one pass away from the ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavespace.frontends.base import scaled
from wavespace.tasks.base import Task

WINDOW, CONTEXT = 896, 64
"""Frames kept of each window, and least frames of context on each side: multiples of every pooling factor up to 64."""
MODEL_CONTEXT = 32
"""Frames on each side, beside those that its front-end hears, that a model is given which states no `context`."""


def computes_in_bfloat16(device: str) -> bool:
    """Say whether a kind of device multiplies bfloat16 itself, which takes about half the time of float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@torch.inference_mode()
def stream(task: Task, blocks: Iterable[NDArray[Any]]) -> Iterator[Tensor]:
    """Yield outputs `(C', F', t)` of consecutive frames for consecutive blocks of mono audio at the task's rate.

    Before the start and after the end there is silence. Together the pieces have `out_spec.frames(N)` frames.

    Args:
        task: in evaluation mode.
        blocks: `(n,)` each, floating point in -1..1, or int16.

    Raises:
        TypeError: a block has other numbers.
        ValueError: a block has another shape.
    """
    spec, rate = task.frontend.out_spec, task.frontend.in_spec.sample_rate
    hop = round(rate / spec.frame_rate)
    heard = task.frontend.context + int(getattr(task.model, "context", MODEL_CONTEXT)) + task.context
    context = CONTEXT * -(-heard // CONTEXT)
    buffer = np.zeros(context * hop, dtype=np.float32)  # starts `context` frames before the next frame to give
    total = given = 0

    def frames(count: int) -> Tensor:
        wanted = (count + 2 * context) * hop
        audio = np.pad(buffer[:wanted], (0, max(0, wanted - len(buffer))))
        output = task(torch.from_numpy(audio).view(1, 1, -1).to(task.device))  # (1, C', F', count + 2 context + 1)
        return output[0, :, :, context : context + count]

    for block in blocks:
        block = scaled(block).numpy()
        if block.ndim != 1:
            raise ValueError(f"a block of audio has the shape {block.shape}; it must be mono, (samples,)")
        buffer, total = np.concatenate([buffer, block]), total + len(block)
        while len(buffer) >= (WINDOW + 2 * context) * hop:
            yield frames(WINDOW)
            buffer, given = buffer[WINDOW * hop :], given + WINDOW
    left = spec.frames(total, rate) - given if total else 0
    while left > 0:
        count = min(WINDOW, left)
        yield frames(count)
        buffer, left = buffer[count * hop :], left - count

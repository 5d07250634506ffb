"""Piano-roll targets, made from notes on the device, at the frame times of whatever front-end is in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

HALF_WIDTH = 2
"""Frames from the tip of an onset or offset triangle to its foot."""


class Roll(NamedTuple):
    """Piano-roll targets, each `(B, P, T)` float32 in 0..1; frame `t` is centred on `t / frame_rate` seconds.

    Attributes:
        onset: `1 - |t - onset * frame_rate| / HALF_WIDTH` where positive; the larger value where notes meet.
        frame: 1 where the note sounds.
        offset: as `onset`, at the note's end.
        velocity: MIDI velocity / 127 wherever `onset` is positive, of the note that gives `onset` its value.
    """

    onset: Tensor
    frame: Tensor
    offset: Tensor
    velocity: Tensor


def piano_roll(notes: Tensor, *, batch: int, pitches: Sequence[int], frame_rate: float, frames: int) -> Roll:
    """Targets of a batch of notes, without a loop over notes and without waiting for the device.

    Onsets and offsets are triangles about the exact time, so that a network can tell times between frames
    (Kong et al., "High-resolution piano transcription with pedals by regressing onset and offset times",
    IEEE/ACM TASLP 29, 2021). A frame sounds if its centre lies in `[onset, offset)`; a note that covers no
    centre gets the frame nearest to its onset. What reaches beyond the window is cut there.

    Args:
        notes: `(K, 5)` rows of item index, onset, offset (seconds), MIDI pitch, velocity.
        batch: number of items B.
        pitches: MIDI number of each of the P rows; notes of other pitches are dropped.
        frame_rate: frames a second.
        frames: number of frames T.
    """
    rows, device = batch * len(pitches), notes.device
    item, onset, offset, pitch, velocity = notes.unbind(1)  # (K,)
    onset, offset = onset * frame_rate, offset * frame_rate  # (K,) in frames

    # What is not wanted goes to a spare row or column, cut off at the end: unlike filtering, this needs no
    # count from the GPU, so nothing waits for it.
    same = pitch.round().long()[:, None] == torch.tensor(pitches, device=device)  # (K, P)
    row = torch.where(same.any(1), item.long() * len(pitches) + same.byte().argmax(1), rows)  # (K,)
    shape = (rows + 1, frames + 1)

    def crop(flat: Tensor) -> Tensor:
        return flat.view(shape)[:rows, :frames].reshape(batch, len(pitches), frames)  # (B, P, T)

    def triangle(time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = time.floor()[:, None] + torch.arange(1 - HALF_WIDTH, HALF_WIDTH + 1, device=device)  # (K, 4)
        height = (1 - (t - time[:, None]).abs() / HALF_WIDTH).clamp(min=0).float().flatten()  # (4K,)
        column = torch.where((t >= 0) & (t < frames), t, frames).long()  # (K, 4)
        cell = (row[:, None] * shape[1] + column).flatten()  # (4K,)
        empty = torch.zeros(shape, device=device).flatten()
        return cell, height, empty.scatter_reduce(0, cell, height, "amax")

    cell, height, onset_map = triangle(onset)
    _, _, offset_map = triangle(offset)

    # Two notes of equal height in a cell: the louder one, whatever their order.
    wins = (height > 0) & (height == onset_map[cell])  # (4K,)
    loudness = (velocity.float() / 127).repeat_interleave(2 * HALF_WIDTH) * wins  # (4K,)
    velocity_map = torch.zeros_like(onset_map).scatter_reduce(0, cell, loudness, "amax")

    first, end = onset.ceil(), offset.ceil()  # (K,)
    nearest = (onset + 0.5).floor()
    first, end = torch.where(end > first, first, nearest), torch.where(end > first, end, nearest + 1)
    bounds = torch.stack([first, end]).clamp(0, frames).long() + row * shape[1]  # (2, K)
    steps = torch.tensor([[1], [-1]], dtype=torch.int32, device=device).expand_as(bounds)
    changes = torch.zeros(shape, dtype=torch.int32, device=device).flatten()
    changes = changes.scatter_add(0, bounds.flatten(), steps.flatten()).view(shape)
    sounding = (changes.cumsum(1, dtype=torch.int32) > 0).float()

    return Roll(crop(onset_map), crop(sounding), crop(offset_map), crop(velocity_map))

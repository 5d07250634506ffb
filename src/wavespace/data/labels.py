"""Targets made from notes on the device, at the frame times of whatever front-end is in use: rolls and salience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wavespace.units import hz_to_midi

Kind = Literal["activation", "power"]

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

    Onsets and offsets are triangles about the exact time, so that a network can learn times between frames
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


def pitch_salience(
    notes: Tensor,
    *,
    batch: int,
    frequencies: Sequence[float],
    frame_rate: float,
    frames: int,
    kind: Kind,
    spread_cents: float,
) -> Tensor:
    """Salience of each pitch bin and frame, `(B, F, T)` float32 in 0..1; frame `t` is centred on `t / frame_rate`.

    A note of value v in a frame gives `v * exp(-d**2 / (2 * spread_cents**2))` to a bin that is d cents from its exact
    pitch [Bittner et al., "Deep salience representations for F0 estimation in polyphonic music", ISMIR 2017]; the
    largest where notes meet. Its value is

    - "activation": the fraction of the frame, `(t +- 1/2) / frame_rate` seconds, that it covers;
    - "power": that fraction, times the note's level as power relative to that of velocity 127. By General MIDI a
      velocity stands for a level of `40 log10(velocity / 127)` dB, so this is `(velocity / 127)**4`. It is constant
      as long as the note lasts, as batches have no envelopes.

    There is no loop over notes and no wait for the device; memory grows with `B * F * T`, so that whole recordings fit.

    Args:
        notes: `(K, 5)` rows of item index, onset, offset (seconds), MIDI pitch (any number), velocity.
        batch: number of items B.
        frequencies: of the F bins, in Hz.
        frame_rate: frames a second.
        frames: number of frames T.
        kind: what a note's value is.
        spread_cents: standard deviation of the smearing, above 0.
    """
    bins, device = len(frequencies), notes.device
    item, onset, offset, pitch, velocity = notes.unbind(1)  # (K,)
    begin, end = onset * frame_rate + 0.5, offset * frame_rate + 0.5  # (K,) frame t lasts from t to t + 1
    centres = torch.tensor(hz_to_midi(frequencies), dtype=notes.dtype, device=device)  # (F,)
    weight = torch.exp(-((pitch[:, None] - centres) * (100 / spread_cents)).square() / 2)  # (K, F)
    if kind == "power":
        weight = weight * (velocity[:, None] / 127) ** 4

    # Column T is a spare, for what lies outside of the window.
    table = torch.zeros(batch * bins, frames + 1, dtype=notes.dtype, device=device)
    rows = (item.long()[:, None] * bins + torch.arange(bins, device=device)) * (frames + 1)  # (K, F)

    _fill_cells(table, rows, begin, end, weight)
    return table.view(batch, bins, frames + 1)[..., :frames].float()  # (B, F, T)


def _fill_cells(table: Tensor, rows: Tensor, begin: Tensor, end: Tensor, weight: Tensor) -> None:
    """Raise cells of a table, in place, to the weight of each note, times the fraction of the frame that it covers.

    The whole frames of a note are two stretches of a power of two that overlap, as of the sparse table in Bender and
    Farach-Colton, "The LCA problem revisited", LATIN 2000. A cell first stands for as many frames from it on, and
    passes its value to both halves, from the longest stretch down to single frames.

    Args:
        table: `(rows, T + 1)`, whose last column is a spare.
        rows: `(K, F)` where the rows of each note begin in the flat table.
        begin: `(K,)` in frames, of which frame t lasts from t to t + 1.
        end: `(K,)` likewise.
        weight: `(K, F)`.
    """
    frames = table.shape[1] - 1

    def raise_to(column: Tensor, value: Tensor) -> None:
        column = column.where((column >= 0) & (column < frames), frames).long()  # (K,)
        table.view(-1).scatter_reduce_(0, (rows + column[:, None]).flatten(), value.flatten(), "amax")

    first, last = begin.ceil().clamp(0, frames), end.floor().clamp(0, frames)  # (K,)
    for level in reversed(range(frames.bit_length())):
        span = 2**level
        table[:, span:] = torch.maximum(table[:, span:], table[:, :-span])
        right = (last - first >= span) & (last - first < 2 * span)  # (K,)
        raise_to(first.where(right, frames), weight)
        raise_to((last - span).where(right, frames), weight)
    # Then the frames that it covers in part: where it begins and where it ends.
    starts, stops = begin.floor(), end.floor()  # (K,)
    raise_to(starts, weight * (torch.minimum(end, starts + 1) - begin).clamp(min=0)[:, None])
    raise_to(stops, weight * (end - torch.maximum(begin, stops)).clamp(min=0)[:, None])

"""Piano-roll transcription: onset, frame, offset and velocity of 88 keys; decoded to notes; scored by mir_eval.

Onset and offset targets are triangles at the exact time (Kong et al., 2021, "High-resolution piano transcription"),
so that decoding finds times between frames.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wavespace.data.base import Batch, Notes
from wavespace.data.labels import Roll, piano_roll
from wavespace.decode import Decoder
from wavespace.frontends.base import FrontEnd
from wavespace.metrics import average, frame_scores, note_scores
from wavespace.spec import PIANO_PITCHES, FeatureSpec, midi_to_hz
from wavespace.tasks.base import Picture, Sample, Task, scaled

HEADS = ("onset", "frame", "velocity", "offset")
"""Order of the output's channels, which is that of `Decoder.push`."""


class Observed(NamedTuple):
    """One item: head probabilities `(4, 88, T)`, its notes, its length in seconds, and the loss of its batch."""

    heads: NDArray[np.float32]
    notes: Notes
    seconds: float
    loss: float


class PianoRoll(Task):
    """Notes of the 88 piano keys.

    Args:
        frontend: features in dB or of any other kind.
        onset_weight: weight of the onset head's loss.
        onset_positive: weight of cells with an onset against those without.
        frame_weight: weight of the frame head's loss.
        offset_weight: weight of the offset head's loss.
        velocity_weight: weight of the velocity head's squared error, on onset cells.
        frame_threshold: a note ends where its frame probability falls below this,
        offset_threshold: or at a maximum of the offset head of at least this.
        thresholds: onset thresholds that validation tries; the best is kept in the checkpoint.

    Raises:
        ValueError: a threshold is not in (0, 1], or there is none to try.
    """

    needs = ("notes",)
    monitor = "val/note_f1_onset"
    mode = "max"
    table = ("note_f1_onset", "note_f1_onset_offset", "note_f1_onset_offset_velocity", "frame_f1")

    onset_threshold: Tensor

    def __init__(
        self,
        frontend: FrontEnd,
        *,
        onset_weight: float = 10.0,
        onset_positive: float = 4.0,
        frame_weight: float = 3.0,
        offset_weight: float = 2.0,
        velocity_weight: float = 2.0,
        frame_threshold: float = 0.35,
        offset_threshold: float = 0.5,
        thresholds: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    ) -> None:
        features = frontend.out_spec
        pitches = tuple(midi_to_hz(pitch) for pitch in PIANO_PITCHES)
        super().__init__(frontend, FeatureSpec(len(HEADS), pitches, features.frame_rate, "logit", -10.0, 10.0))
        self.onset_weight, self.onset_positive = onset_weight, onset_positive
        self.frame_weight, self.offset_weight, self.velocity_weight = frame_weight, offset_weight, velocity_weight
        self.frame_threshold, self.offset_threshold = frame_threshold, offset_threshold
        self.thresholds = thresholds
        self.register_buffer("onset_threshold", torch.tensor(0.5))
        if not thresholds:
            raise ValueError("thresholds is empty; validation needs at least one to choose from")
        for threshold in thresholds:
            self.decoder(threshold)  # refuses what is no threshold, now and not at the first validation

    def loss(self, output: Tensor, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Weighted binary cross-entropy of the three activity heads and squared error of velocity at onsets."""
        onset, frame, velocity, offset = output.unbind(1)  # (B, 88, T) each
        roll = self._roll(batch, output)
        weight = 1 + (self.onset_positive - 1) * (roll.onset > 0)
        losses = {
            "onset": F.binary_cross_entropy_with_logits(onset, roll.onset, weight),
            "frame": F.binary_cross_entropy_with_logits(frame, roll.frame),
            "offset": F.binary_cross_entropy_with_logits(offset, roll.offset),
            "velocity": (roll.onset * (velocity.sigmoid() - roll.velocity).square()).sum()
            / roll.onset.sum().clamp_min(1),
        }
        total = (
            self.onset_weight * losses["onset"]
            + self.frame_weight * losses["frame"]
            + self.offset_weight * losses["offset"]
            + self.velocity_weight * losses["velocity"]
        )
        return {"loss": total, **losses}

    def observe(self, output: Tensor, features: Tensor, batch: Batch) -> list[Observed]:
        """Head probabilities and notes of each item."""
        heads = output.sigmoid().cpu().numpy()
        seconds = (batch.lengths / self.frontend.in_spec.sample_rate).tolist()
        loss = float(self.loss(output, features, batch)["loss"])
        return [
            Observed(heads[i, :, :, : self._frames(batch, i)], notes_of(batch, i), seconds[i], loss)
            for i in range(len(output))
        ]

    def summarize(self, observed: list[Observed], *, tune: bool) -> dict[str, float]:
        """mir_eval figures, a mean over items (0..1); with `tune` the onset threshold is chosen first."""
        if tune:
            self.onset_threshold.fill_(self._best_threshold(observed))
        per_item = []
        for item in observed:
            estimate = self.decode(item.heads)
            per_item.append(
                note_scores(item.notes, estimate) | frame_scores(item.notes, estimate, duration=item.seconds)
            )
        return {
            "loss": float(np.mean([item.loss for item in observed])),
            **average(per_item),
            "onset_threshold": float(self.onset_threshold),
        }

    def decoder(self, onset_threshold: float | None = None) -> Decoder:
        """A decoder with this task's thresholds; it takes `output.sigmoid()` as chunks come."""
        chosen = float(self.onset_threshold) if onset_threshold is None else onset_threshold
        return Decoder(PIANO_PITCHES, self.out_spec.frame_rate, chosen, self.frame_threshold, self.offset_threshold)

    def decode(self, heads: NDArray[np.float32], onset_threshold: float | None = None) -> Notes:
        """Notes of head probabilities `(4, 88, T)`; times in seconds from the first frame."""
        decoder = self.decoder(onset_threshold)
        notes = np.concatenate([decoder.push(*heads), decoder.flush()])
        return notes[np.lexsort((notes[:, 2], notes[:, 0]))]

    def sample(self, output: Tensor, features: Tensor, batch: Batch, index: int) -> Sample:
        """Spectrogram, target and prediction; the input's sound."""
        frames = self._frames(batch, index)
        heads = output[index].sigmoid().cpu().numpy()[:, :, :frames]
        roll = self._roll(batch, output)
        spec, out = self.frontend.out_spec, self.out_spec
        notes = notes_of(batch, index)
        level = features[index, 0].cpu().numpy()[:, :frames]
        target = torch.maximum(0.5 * roll.frame[index], roll.onset[index]).cpu().numpy()[:, :frames]
        shown = np.maximum(0.5 * heads[1], heads[0])
        sound = scaled(batch.audio[index, 0, : int(batch.lengths[index])]).cpu().numpy()  # (N,)
        pictures = [
            Picture("input", level, spec.frequencies, spec.frame_rate, spec.low, spec.high, spec.unit),
            Picture("target", target, out.frequencies, out.frame_rate, 0, 1, "frame 0.5, onset 1"),
            Picture("prediction", shown, out.frequencies, out.frame_rate, 0, 1, "probability"),
        ]
        return Sample(
            name=batch.names[index],
            pictures=pictures[1:] if spec.bins == 1 else pictures,  # latents have no axis to draw
            sounds={"input": sound},
            reference=notes,
            estimate=self.decode(heads),
        )

    def _best_threshold(self, observed: list[Observed]) -> float:
        def score(threshold: float) -> float:
            return float(
                np.mean([note_scores(o.notes, self.decode(o.heads, threshold))["note_f1_onset"] for o in observed])
            )

        # Of equal scores the one nearest to a half.
        return max(self.thresholds, key=lambda t: (score(t), -abs(t - 0.5)))

    def _roll(self, batch: Batch, output: Tensor) -> Roll:
        return piano_roll(
            batch.notes,
            batch=len(output),
            pitches=PIANO_PITCHES,
            frame_rate=self.out_spec.frame_rate,
            frames=output.shape[-1],
        )

    def _frames(self, batch: Batch, index: int) -> int:
        return self.frontend.out_spec.frames(int(batch.lengths[index]), self.frontend.in_spec.sample_rate)


def notes_of(batch: Batch, index: int) -> Notes:
    """Notes of one item of a batch, as float64."""
    rows = batch.notes[batch.notes[:, 0] == index, 1:]
    return rows.cpu().numpy().astype(np.float64)

"""Piano-roll transcription: onset, frame, offset and velocity of 88 keys; decoded to notes; scored by mir_eval.

Onset and offset targets are triangles at the exact time (Kong et al., 2021, "High-resolution piano transcription"),
so that decoding finds times between frames. Frames and offsets are conditioned on onsets (Hawthorne et al., ISMIR 2018,
"Onsets and frames").
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wavespace.data.base import Batch, Notes
from wavespace.data.files.midi import on_keyboard
from wavespace.data.labels import Roll, piano_roll
from wavespace.frontends.base import FrontEnd
from wavespace.metrics import average, mean
from wavespace.metrics.notes import frame_scores, note_scores
from wavespace.settings import validate_settings
from wavespace.spec import PIANO_PITCHES, FeatureSpec
from wavespace.tasks.base import Example, Sample, Task
from wavespace.tasks.decode import Decoder, Thresholds
from wavespace.units import midi_to_hz

HEADS = ("onset", "frame", "velocity", "offset")
"""Order of the output's channels, which is that of `Decoder.push`."""


class PianoRollOutput(NamedTuple):
    """One item: head probabilities `(4, 88, T)`, its notes, its length in seconds, and the loss of its batch."""

    heads: NDArray[np.float32]
    notes: Notes
    seconds: float
    loss: float


class Conditioning(nn.Module):
    """Correct frame and offset logits by all heads at the same key and near frames, onsets above all.

    A model that sees a third of a second can't know that a note which has faded was struck two seconds ago and not
    released; its onset is in the map. Dilated convolutions along time, the same for all keys but for a bias: low notes
    ring longer. No gradient reaches the onsets.

    Attributes:
        context: frames on each side that can change a frame.
    """

    def __init__(self, width: int = 8, dilations: tuple[int, ...] = (1, 2, 4, 8, 16)) -> None:
        super().__init__()
        self.context = sum(dilations)
        self.stem = nn.Sequential(nn.BatchNorm2d(len(HEADS)), nn.Conv2d(len(HEADS), width, 1))
        self.key = nn.Parameter(torch.zeros(1, width, len(PIANO_PITCHES), 1))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, (1, 3), padding=(0, dilation), dilation=(1, dilation), bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for dilation in dilations
        )
        self.head = nn.Conv2d(width, 2, 1, bias=False)
        nn.init.normal_(self.head.weight, std=1e-3)  # next to nothing at first

    def forward(self, heads: Tensor) -> Tensor:
        """Correct logits `(B, 4, 88, T)`."""
        onset, frame, velocity, offset = heads.split(1, 1)  # (B, 1, 88, T) each
        x = self.stem(torch.cat([onset.detach(), frame, velocity.detach(), offset], 1)) + self.key  # (B, W, 88, T)
        for layer in self.layers:
            x = x + layer(x)
        change = self.head(x)  # (B, 2, 88, T)
        return torch.cat([onset, frame + change[:, :1], velocity, offset + change[:, 1:]], 1)


@validate_settings
class PianoRoll(Task):
    """Notes of the 88 piano keys.

    Args:
        frontend: features in dB or of any other kind.
        onset_weight: weight of the onset head's loss.
        onset_positive: weight of cells with an onset against those without.
        frame_weight: weight of the frame head's loss.
        offset_weight: weight of the offset head's loss.
        velocity_weight: weight of the velocity head's squared error, on onset cells.
        conditioned: let frames and offsets depend on onsets near them; see `Conditioning`.
        onset_thresholds: onset thresholds that validation tries; the best by onset F1 is kept in the checkpoint.
        frame_thresholds: likewise, of the frame probability below which a note ends,
        offset_thresholds: and of the least maximum of the offset head that ends one: the pair that is best by F1 of
            onset and offset.
    """

    needs = ("notes",)
    monitor = "val/note_f1_onset"
    mode = "max"
    table = ("note_f1_onset", "note_f1_onset_offset", "note_f1_onset_offset_velocity", "frame_f1")

    onset_threshold: Tensor
    frame_threshold: Tensor
    offset_threshold: Tensor

    def __init__(
        self,
        frontend: FrontEnd,
        *,
        onset_weight: float = 10.0,
        onset_positive: float = 4.0,
        frame_weight: float = 3.0,
        offset_weight: float = 2.0,
        velocity_weight: float = 2.0,
        conditioned: bool = True,
        onset_thresholds: Thresholds = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        frame_thresholds: Thresholds = (0.2, 0.35, 0.5),
        offset_thresholds: Thresholds = (0.2, 0.35, 0.5, 1.0),
    ) -> None:
        features = frontend.out_spec
        pitches = tuple(midi_to_hz(pitch) for pitch in PIANO_PITCHES)
        super().__init__(frontend, FeatureSpec(len(HEADS), pitches, features.frame_rate, "logit", -10.0, 10.0))
        self.onset_positive = onset_positive
        self.weights = {
            "onset": onset_weight, "frame": frame_weight, "offset": offset_weight, "velocity": velocity_weight,
        }  # fmt: skip
        self.grids = {"onset": onset_thresholds, "frame": frame_thresholds, "offset": offset_thresholds}
        for name in self.grids:
            self.register_buffer(f"{name}_threshold", torch.tensor(0.5))
        self.conditioning = Conditioning() if conditioned else None
        self.context = self.conditioning.context if self.conditioning else 0

    def apply_model(self, features: Tensor) -> Tensor:
        """Return logits `(B, 4, 88, T)` in float32; those of a model that learns nothing stay as they are."""
        output = super().apply_model(features)
        learns = next(self.model.parameters(), None) is not None
        return self.conditioning(output).float() if self.conditioning and learns else output

    def targets(self, batch: Batch, features: Tensor) -> dict[str, Tensor]:
        """Return the fields of `Roll`, each `(B, 88, T)`."""
        return piano_roll(
            batch.notes,
            batch=len(features),
            pitches=PIANO_PITCHES,
            frame_rate=self.out_spec.frame_rate,
            frames=features.shape[-1],
        )._asdict()

    def loss(self, output: Tensor, example: Example) -> dict[str, Tensor]:
        """Compute cross-entropies of onset, frame and offset, squared error of velocity at onsets, and their sum.

        Args:
            output: logits `(B, 4, 88, T)`.
            example: the batch and its roll.
        """
        onset, frame, velocity, offset = output.unbind(1)  # (B, 88, T) each
        roll = Roll(**example.targets)
        weight = 1 + (self.onset_positive - 1) * (roll.onset > 0)
        losses = {
            "onset": F.binary_cross_entropy_with_logits(onset, roll.onset, weight),
            "frame": F.binary_cross_entropy_with_logits(frame, roll.frame),
            "offset": F.binary_cross_entropy_with_logits(offset, roll.offset),
            "velocity": (roll.onset * (velocity.sigmoid() - roll.velocity).square()).sum()
            / roll.onset.sum().clamp_min(1),
        }
        return {
            "loss": sum((self.weights[name] * loss for name, loss in losses.items()), output.new_zeros(()))
        } | losses

    def eval_outputs(self, output: Tensor, example: Example, position: int | None = None) -> list[PianoRollOutput]:
        """Return head probabilities and notes of each item, from logits `(B, 4, 88, T)`."""
        heads, batch = output.sigmoid().cpu().numpy(), example.batch
        seconds = (batch.lengths / self.frontend.in_spec.sample_rate).tolist()
        loss = float(self.loss(output, example)["loss"])
        return [
            PianoRollOutput(heads[i, :, :, : self.item_frames(batch, i)], batch.notes_of(i), seconds[i], loss)
            for i in range(len(output))
        ]

    def compute_metrics(self, outputs: list[PianoRollOutput], *, tune: bool) -> dict[str, float]:
        """Compute mir_eval's scores, a mean over items (0..1); with `tune`, choose the thresholds first.

        Of notes, those that begin in an item are scored; by frames, what sounds. What lies off the 88 keys is neither
        learned nor scored. An item in which nothing is to be found, and nothing is found, does not count.
        """
        if tune:
            self._tune(outputs)
        per_item = []
        for item in outputs:
            estimate = self.decode(item.heads)
            per_item.append(
                note_scores(findable_notes(item.notes), estimate)
                | frame_scores(item.notes, estimate, duration=item.seconds)
            )
        return {
            "loss": float(np.mean([item.loss for item in outputs])),
            **average(per_item),
            **{f"{name}_threshold": value for name, value in self.chosen_thresholds().items()},
        }

    def decoder(self, **thresholds: float) -> Decoder:
        """Make a decoder of probabilities in chunks, with this task's thresholds but for those given by name."""
        return Decoder(PIANO_PITCHES, self.out_spec.frame_rate, *(self.chosen_thresholds() | thresholds).values())

    def chosen_thresholds(self) -> dict[str, float]:
        """Return the thresholds of onset, frame and offset that validation chose."""
        return {name: float(self.get_buffer(f"{name}_threshold")) for name in self.grids}

    def decode(self, heads: NDArray[np.float32], **thresholds: float) -> Notes:
        """Decode head probabilities `(4, 88, T)` to notes; times in seconds from the first frame."""
        decoder = self.decoder(**thresholds)
        notes = np.concatenate([decoder.push(*heads), decoder.flush()])
        return notes[np.lexsort((notes[:, 2], notes[:, 0]))]

    def sample(self, output: Tensor, example: Example, index: int) -> Sample:
        """Show spectrogram, target and prediction, the input's sound, and notes, from logits `(B, 4, 88, T)`."""
        heads, roll = output[index].sigmoid(), Roll(**example.targets)
        target = torch.maximum(0.5 * roll.frame[index], roll.onset[index])
        prediction = torch.maximum(0.5 * heads[1], heads[0])
        units = ("frame 0.5, onset 1", "probability")
        return self.map_sample(example, index, target, prediction, units)._replace(
            reference=example.batch.notes_of(index),
            estimate=self.decode(heads[:, :, : self.item_frames(example.batch, index)].cpu().numpy()),
        )

    def _tune(self, outputs: list[PianoRollOutput]) -> None:
        """Choose the onset threshold by onset F1, then the two others together by F1 of onset and offset."""

        def score(metric: str, **thresholds: float) -> tuple[float, float]:
            found = [
                note_scores(findable_notes(item.notes), self.decode(item.heads, **thresholds))[metric]
                for item in outputs
            ]
            # Of equal scores the one nearest to a half.
            return mean(found), -sum(abs(threshold - 0.5) for threshold in thresholds.values())

        onset = max(self.grids["onset"], key=lambda t: score("note_f1_onset", onset=t))
        self.onset_threshold.fill_(onset)
        pairs = product(self.grids["frame"], self.grids["offset"])
        frame, offset = max(pairs, key=lambda t: score("note_f1_onset_offset", frame=t[0], offset=t[1]))
        self.frame_threshold.fill_(frame)
        self.offset_threshold.fill_(offset)


def findable_notes(notes: Notes) -> Notes:
    """Return the notes of the 88 keys that begin in an item: of others no onset can be found."""
    return on_keyboard(notes[notes[:, 0] >= 0])

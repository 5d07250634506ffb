"""Pitch salience: a map of pitches by frame, scored as multi-pitch and, where a single voice plays, as melody.

`PitchMap` scores and shows any map in 0..1, however it was learned. `Salience` learns one from notes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from wavespace.data.base import Batch, Notes, Pitches
from wavespace.data.labels import Kind, pitch_salience
from wavespace.frontends.base import FrontEnd
from wavespace.metrics import average, mean
from wavespace.metrics.notes import FRAME_HOP, frame_count, pitches_at
from wavespace.metrics.pitch import PITCH_HOP, melody_scores, multipitch_f1, multipitch_scores
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec, check_table
from wavespace.tasks.base import Example, Sample, Task
from wavespace.tasks.decode import Probabilities, Thresholds, peak_pitches, strongest_pitches

SPREAD = 25.0
"""Standard deviation in cents of a pitch in a target."""


class Melody(NamedTuple):
    """A single voice every `FRAME_HOP`: its MIDI pitch `(T,)`, NaN where none; pitch and salience `(T, 2)` of a map."""

    reference: NDArray[np.float64]
    strongest: NDArray[np.float64]


class PitchMapOutput(NamedTuple):
    """One item: its pitches and the peaks of its map every `PITCH_HOP`, the loss of its batch.

    `melody` is there if something sounds in it, and never two notes at a time; `instrument` if the data has it; `extra`
    has metrics of a subclass.
    """

    reference: Pitches
    peaks: Pitches
    loss: float
    melody: Melody | None
    instrument: int | None
    extra: dict[str, float] = {}  # noqa: RUF012 - nobody writes to it


@validate_settings
class PitchMap(Task):
    """A map of pitch salience in 0..1 over bins that are evenly spaced in log frequency.

    A subclass gives `salience` and `loss`; the items that are scored need notes.

    Args:
        frontend: any features.
        out_spec: what the model must give; its frequencies are the bins of the map.
        thresholds: smallest saliences of a pitch that validation tries; the best is kept in the checkpoint.
    """

    monitor = "val/salience_f1"
    mode = "max"
    table = ("salience_f1", "salience_precision", "salience_recall", "salience_accuracy", "salience_chroma_f1")

    labels: Kind = "activation"
    spread_cents: float = SPREAD
    threshold: Tensor

    def __init__(self, frontend: FrontEnd, out_spec: FeatureSpec, thresholds: Thresholds) -> None:
        super().__init__(frontend, out_spec)
        self.thresholds = thresholds
        self.register_buffer("threshold", torch.tensor(0.5))

    # --- A subclass's own ---------------------------------------------------------------------------------

    def salience(self, output: Tensor) -> Tensor:
        """Return the map `(B, F, T)` in 0..1 of the model's output `(B, C', F, T)`."""
        raise TypeError(f"{type(self).__name__} defines no salience")

    # --- Shared -------------------------------------------------------------------------------------------

    def target(self, batch: Batch, frames: int) -> Tensor:
        """Return the map `(B, F, T)` in 0..1 of the true notes of a batch."""
        return pitch_salience(
            batch.notes,
            batch=len(batch.names),
            frequencies=self.out_spec.frequencies,
            frame_rate=self.out_spec.frame_rate,
            frames=frames,
            kind=self.labels,
            spread_cents=self.spread_cents,
        )

    def eval_outputs(self, output: Tensor, example: Example, position: int | None = None) -> list[PitchMapOutput]:
        """Return pitches and peaks of each item of an output `(B, C', F, T)`, nearest to the times that are scored."""
        batch = example.batch
        maps = self.salience(output).cpu().numpy()  # (B, F, T)
        loss = float(self.loss(output, example)["loss"])
        least = min(*self.thresholds, float(self.threshold))
        found = []
        for i, whole in enumerate(maps):
            salience, notes = whole[:, : self.item_frames(batch, i)], batch.notes_of(i)
            seconds = int(batch.lengths[i]) / self.frontend.in_spec.sample_rate
            reference = pitches_at(notes, hop=PITCH_HOP, duration=seconds)
            scored = self._at(salience, PITCH_HOP, seconds)
            peaks = peak_pitches(scored, self.out_spec.frequencies, least)
            instrument = int(batch.labels["instrument"][i]) if "instrument" in batch.labels else None
            found.append(PitchMapOutput(reference, peaks, loss, self._melody(salience, notes, seconds), instrument))
        return found

    def compute_metrics(self, outputs: list[PitchMapOutput], *, tune: bool) -> dict[str, float]:
        """Compute mir_eval's scores, a mean over items (0..1); with `tune`, choose the threshold first.

        `rpa`, `rca`, `vr` and `vfa` are means over the items in which something sounds and never two notes at a time;
        without such items they are left out. `rpa_0` and so on are those of each instrument that the data names.
        """
        if tune:
            self.threshold.fill_(self._best_threshold(outputs))
        threshold = float(self.threshold)
        melodies, by_instrument = [], defaultdict(list)
        for item in outputs:
            if item.melody is not None:
                pitch, salience = item.melody.strongest.T
                melodies.append(melody_scores(item.melody.reference, pitch, salience >= threshold))
                if item.instrument is not None:
                    by_instrument[item.instrument].append(melodies[-1]["rpa"])
        return {
            "loss": float(np.mean([item.loss for item in outputs])),
            **average([multipitch_scores(item.reference, _above(item.peaks, threshold)) for item in outputs]),
            **average(melodies),
            **{f"rpa_{i}": float(np.mean(scores)) for i, scores in sorted(by_instrument.items())},
            "salience_threshold": threshold,
            **average([item.extra for item in outputs]),
        }

    def sample(self, output: Tensor, example: Example, index: int) -> Sample:
        """Show spectrogram, target and map of an output `(B, C', F, T)`; the input's sound."""
        target = self.target(example.batch, output.shape[-1])
        return self.map_sample(example, index, target[index], self.salience(output)[index], ("salience", "salience"))

    def _best_threshold(self, outputs: list[PitchMapOutput]) -> float:
        def score(threshold: float) -> float:
            return mean([multipitch_f1(item.reference, _above(item.peaks, threshold)) for item in outputs])

        # Of equal scores the one nearest to a half.
        return max(self.thresholds, key=lambda t: (score(t), -abs(t - 0.5)))

    def _melody(self, salience: Probabilities, notes: Notes, seconds: float) -> Melody | None:
        pitches = pitches_at(notes, hop=FRAME_HOP, duration=seconds)
        frame = pitches[:, 0].astype(int)
        if not len(frame) or not np.diff(frame).all():
            return None
        strongest = strongest_pitches(self._at(salience, FRAME_HOP, seconds), self.out_spec.frequencies)
        reference = np.full(len(strongest), np.nan)
        reference[frame] = pitches[:, 1]
        return Melody(reference, strongest)

    def _at(self, salience: Probabilities, hop: float, seconds: float) -> Probabilities:
        """Return the columns of a map that are nearest to each multiple of `hop` before `seconds`."""
        nearest = np.rint(np.arange(frame_count(hop, seconds)) * hop * self.out_spec.frame_rate).astype(int)
        return salience[:, np.minimum(nearest, salience.shape[1] - 1)]


@validate_settings
class Salience(PitchMap):
    """A salience map learned from notes.

    Args:
        frontend: any features; the map has bins of its own, so that codec latents do as well as a spectrogram. Where
            they are a CQT's (its fmin and bins to an octave, an fmax at its highest), models need not change axis.
        bins_per_octave: bins of the map to an octave.
        fmin: its lowest bin in Hz.
        fmax: its highest bin at or below, in Hz.
        labels: what a note is worth: the fraction of a frame that it covers, or that times its power; see
            `wavespace.data.labels.pitch_salience`.
        spread_cents: standard deviation of the smearing of a note about its exact pitch.
        loss: cross-entropy in which what sounds and what does not weigh alike, or the focal one; see the functions.
        gamma: exponent of the focal loss; 0 is plain cross-entropy.
        thresholds: smallest saliences of a pitch that validation tries; the best is kept in the checkpoint.
    """

    needs = ("notes",)

    def __init__(
        self,
        frontend: FrontEnd,
        *,
        bins_per_octave: PositiveInt = 36,
        fmin: float = 27.5,
        fmax: float = 5000.0,
        labels: Kind = "activation",
        spread_cents: PositiveFloat = SPREAD,
        loss: Literal["balanced", "focal"] = "balanced",
        gamma: NonNegativeFloat = 2.0,
        thresholds: Thresholds = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
    ) -> None:
        frequencies = log_bins(bins_per_octave, fmin, fmax)
        rate = frontend.out_spec.frame_rate
        super().__init__(frontend, FeatureSpec(1, frequencies, rate, "logit", -10.0, 10.0), thresholds)
        self.labels, self.spread_cents, self.gamma = labels, spread_cents, gamma
        self.balances = loss == "balanced"

    def targets(self, batch: Batch, features: Tensor) -> dict[str, Tensor]:
        """Return `salience`, `(B, F, T)` in 0..1."""
        return {"salience": self.target(batch, features.shape[-1])}

    def loss(self, output: Tensor, example: Example) -> dict[str, Tensor]:
        """Compute the cross-entropy, a scalar, of logits `(B, 1, F, T)` with their target."""
        logit, target = output[:, 0], example.targets["salience"]  # (B, F, T) each
        return {"loss": balanced(logit, target) if self.balances else focal(logit, target, self.gamma)}

    def salience(self, output: Tensor) -> Tensor:
        """Return probabilities `(B, F, T)` of logits `(B, 1, F, T)`."""
        return output[:, 0].sigmoid()


def log_bins(bins_per_octave: int, fmin: float, fmax: float) -> tuple[float, ...]:
    """Return frequencies in Hz from fmin up to fmax; those of `frontend=cqt`, to the last digit.

    Raises:
        ValueError: there are not two.
    """
    # An fmax that is a bin is one, whatever the error of log2.
    bins = 1 + math.floor(bins_per_octave * math.log2(fmax / fmin) + 1e-6) if 0 < fmin < fmax else 0
    if bins < 2:
        raise ValueError(
            f"bins_per_octave is {bins_per_octave}, fmin {fmin:g} and fmax {fmax:g} Hz; there must be two bins or more"
        )
    check_table(0, bins)
    return tuple((fmin * 2 ** (np.arange(bins) / bins_per_octave)).tolist())


def balanced(logit: Tensor, target: Tensor) -> Tensor:
    """Compute binary cross-entropy, a scalar, in which both classes weigh a half, however rare one is in the batch.

    `-(sum(y log p) / sum(y) + sum((1 - y) log(1 - p)) / sum(1 - y)) / 2` for targets y and probabilities p; sums count
    as at least 1. But for a factor it is the class-balanced cross-entropy of Xie and Tu, "Holistically-nested edge
    detection", ICCV 2015.

    Args:
        logit: `(B, F, T)` or of any shape.
        target: in 0..1, of the same shape.
    """
    rest = 1 - target
    positive = (target * F.softplus(-logit)).sum() / target.sum().clamp_min(1)
    return (positive + (rest * F.softplus(logit)).sum() / rest.sum().clamp_min(1)) / 2


def focal(logit: Tensor, target: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """Compute the mean of `|y - p|**gamma` times binary cross-entropy for targets y and probabilities p.

    The focal loss (Lin et al., ICCV 2017) for targets between the classes (Li et al., "Generalized focal loss",
    NeurIPS 2020): what is nearly right weighs little, so that the many silent cells do not drown the few others.

    Args:
        logit: `(B, F, T)` or of any shape.
        target: in 0..1, of the same shape.
        gamma: 0 or more.
        weight: of each cell, of the same shape; 1 where there is none.
    """
    entropy = F.binary_cross_entropy_with_logits(logit, target, weight, reduction="none")
    off = (target - logit.sigmoid()).abs().clamp_min(1e-6)  # a root of 0 has no gradient
    return (entropy * off**gamma).mean()


def _above(peaks: Pitches, threshold: float) -> Pitches:
    return peaks[peaks[:, 2] >= threshold]

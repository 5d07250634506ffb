"""Pitch salience without labels: a map that has to rebuild its own spectrogram through harmonic kernels.

The model gives a share of energy for each pitch and timbre, and a harmonic synthesis makes a spectrogram of it. What
that leaves open (octaves above all: any spectrum is also that of lower notes) is closed by ingredients, each with a
weight: few pitches at a time, as a constraint; consistency of the map under transposition, equalisation and mixing;
calibration on self-made tones. Notes of the data serve to score alone.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from wavespace.data.base import Batch, collate, rng_for
from wavespace.data.synthesis.tones import Tones
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec, check_table
from wavespace.tasks.base import Example, Sample, feature_picture
from wavespace.tasks.decode import Thresholds
from wavespace.tasks.salience import PitchMap, PitchMapOutput, focal

QUIET = -60.0
"""Level in dB of full scale above which the compressed scale grows with the logarithm."""

LOBE = (0.5, 1.0, 0.5)
"""What a steady partial gives to a bin and its neighbours: a Hann window's main lobe, as wide as a bin."""

ENERGY_PARTIALS = 3
"""First partials of a pitch of which the loudest gives its energy, so that it may lack its fundamental."""

SLACK = 0.1
"""By how many nats frames may fall short of the constraint on average: true maps of very dense frames do, too."""

EMPTY = 1e-6
"""Least that a sum counts as where it divides, so that silence has a finite gradient."""

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@validate_settings
class SelfSalience(PitchMap):
    """A salience map learned by rebuilding the input.

    With p the share `(B, timbres, F', T)` that the model gives and e the amplitude of the loudest of a pitch's first
    `ENERGY_PARTIALS` partials, the rebuilt spectrogram is `sum_c sum_h a[c, h] g(f - log2 h) * (p[c] e)`, with learned
    a >= 0 and the lobe g of a partial. Both spectrograms are compared on `level`, a compressed scale that is 0 at the
    floor: a map of nothing, and any map of silence, rebuild silence exactly.

    The loss is a sum of terms, each there if its weight, the argument of its name, is not 0:

    - `reconstruction`: `sum |rebuilt - input| / sum input` on that scale, every frame weighed by its mean level: 0 is
      perfect, 1 is what silence scores.
    - `sparsity`: `mean max(0, H(map) - H(input) + margin) <= SLACK`, in nats, as a constraint of each frame, where H is
      the entropy of a frame as a distribution along frequency, and the mean is over frames by level. Its multiplier, a
      buffer, rises while it is violated and falls while it is met (dual ascent).
    - `consistency`: the map of a changed copy of the input is the map of the input, changed alike. Copies are
      transposed (equivariance), equalised and made louder or softer (invariance), and laid over each other, where the
      larger share counts.
    - `tones`: windows of self-made notes, whose pitches are known because they are drawn; the octave is learned here.
    - `decay`: kernels that rise from a partial to the next cost the rise.
    - `smoothness`: what a map changes from frame to frame, relative to what is in it.

    Args:
        frontend: one channel of levels in dB, evenly spaced in log frequency, not normalised.
        timbres: channels of the map, each with a kernel.
        harmonics: partials of a kernel.
        below: bins of the map below the front-end's lowest, so that energy there can be a partial of something.
        fmax: highest bin of the map at or below, in Hz.
        margin: nats by which the map is to be sparser than its input, frame by frame; null: no constraint.
        ascent: what the multiplier gains a step and nat of violation.
        transpose: most bins of a transposition; 0: none.
        equalise: standard deviation in dB of a random smooth response, and of a gain; 0: none.
        mix: lay copies over each other.
        tone_windows: windows of tones a batch.
        tone_notes: most notes in one of them that is not of melodies.
        tone_melodies: fraction of them that are of melodies.
        tone_octaves: by how much more, as a factor, silent cells of tones count that are one or two octaves from one
            that sounds: what a spectrum alone confuses most.
        audible: dB by which a struck tone may fall before it counts as over.
        thresholds: smallest saliences of a pitch that validation tries; the best is kept in the checkpoint.

    Raises:
        Incompatible: the front-end has no such levels.
        ValueError: the map would have fewer than two bins.
    """

    needs = ("notes",)  # validation and test are scored by them; no loss reads them

    multiplier: Tensor
    partials: Tensor
    energy_rows: Tensor

    def __init__(
        self,
        frontend: FrontEnd,
        *,
        timbres: PositiveInt = 1,
        harmonics: PositiveInt = 10,
        below: NonNegativeInt = 24,
        fmax: float = 4500.0,
        reconstruction: NonNegativeFloat = 0.1,
        margin: float | None = 1.0,
        ascent: NonNegativeFloat = 1e-3,
        consistency: NonNegativeFloat = 1.0,
        transpose: NonNegativeInt = 12,
        equalise: NonNegativeFloat = 4.0,
        mix: bool = True,
        tones: NonNegativeFloat = 1.0,
        tone_windows: PositiveInt = 4,
        tone_notes: PositiveInt = 40,
        tone_melodies: Annotated[float, Field(ge=0, le=1)] = 0.5,
        tone_octaves: NonNegativeFloat = 0.0,
        audible: float = 60.0,
        decay: NonNegativeFloat = 0.01,
        smoothness: NonNegativeFloat = 0.0,
        thresholds: Thresholds = THRESHOLDS,
    ) -> None:
        spec = frontend.out_spec
        step = octaves_per_bin(spec)
        lowest = spec.frequencies[0] * 2 ** (-below * step)
        bins = 1 + int(np.floor(np.log2(fmax / lowest) / step + 1e-6)) if fmax > lowest else 0
        if bins < 2:
            raise ValueError(f"fmax is {fmax:g} Hz, and the lowest bin {lowest:g} Hz; there must be two bins or more")
        check_table(4 * harmonics * bins * spec.bins, bins)
        frequencies = tuple((lowest * 2 ** (np.arange(bins) * step)).tolist())
        super().__init__(frontend, FeatureSpec(timbres, frequencies, spec.frame_rate, "logit", -10.0, 10.0), thresholds)
        self.margin, self.ascent, self.transpose, self.equalise, self.mix = margin, ascent, transpose, equalise, mix
        self.reconstruction, self.consistency = reconstruction, consistency
        self.tones, self.decay, self.smoothness = tones, decay, smoothness
        self.tone_windows, self.tone_octaves = tone_windows, tone_octaves
        self.octave = round(1 / step)
        self.tone_source = Tones(
            frontend.in_spec.sample_rate, frontend.in_spec.seconds, tone_notes, tone_melodies, audible
        )
        self.register_buffer("multiplier", torch.zeros(()))
        partials, rows = harmonic_bins(spec, frequencies, harmonics)
        self.register_buffer("partials", partials, persistent=False)  # (H, F, F')
        self.register_buffer("energy_rows", rows[:ENERGY_PARTIALS], persistent=False)  # (h, F')
        start = 1 / torch.arange(1.0, harmonics + 1)  # (H,)
        # Timbres differ from the start, or they would learn the same.
        tilt = torch.linspace(1.0, 2.0, timbres)[:, None]
        self.envelope = nn.Parameter(torch.log(torch.expm1(0.5 * start**tilt)))  # (timbres, H)

    # --- The map and what it rebuilds ---------------------------------------------------------------------

    def kernels(self) -> Tensor:
        """Return the amplitude of each partial, `(timbres, harmonics)`, not negative."""
        return F.softplus(self.envelope)

    def channels(self, output: Tensor) -> Tensor:
        """Return the share of its energy that each pitch and timbre has, `(B, timbres, F', T)` in 0..1."""
        return output.sigmoid()

    def salience(self, output: Tensor) -> Tensor:
        """Return the probability `(B, F', T)` that any timbre sounds, of logits `(B, timbres, F', T)`."""
        return any_channel(output).sigmoid()

    def synthesis(self, shares: Tensor, features: Tensor) -> Tensor:
        """Rebuild amplitudes `(B, F, T)` from shares `(B, timbres, F', T)` of the energy in features `(B, 1, F, T)`."""
        energy = F.pad(self.amplitude(features), (0, 0, 0, 1))[:, self.energy_rows].amax(1)  # (B, F', T)
        kernels = torch.einsum("ch,hfg->cfg", self.kernels(), self.partials)  # (timbres, F, F')
        return torch.einsum("cfg,bcgt->bft", kernels, shares * energy[:, None])

    def amplitude(self, features: Tensor) -> Tensor:
        """Return amplitudes `(B, F, T)` of features `(B, 1, F, T)` in dB, less that of the floor."""
        floor = 10 ** (self.frontend.out_spec.low / 20)
        return (10 ** (features[:, 0] / 20) - floor).clamp_min(0)

    # --- Training -----------------------------------------------------------------------------------------

    def training_example(self, batch: Batch) -> Example:
        """Add changed copies of a batch's windows, then windows of tones, as far as they have weight.

        All go through the model at once, so that its norms see one distribution. Targets are `steps`, the bins by which
        each copy was transposed, and `tones`, the salience `(K, F', T)` of the tones.
        """
        features = self.batch_features(batch)  # (B, 1, F, T)
        parts, targets, frames = [features], {}, features.shape[-1]
        if self.consistency:
            targets["steps"] = torch.randint(-self.transpose, self.transpose + 1, (len(features),))
            parts.append(self._transformed(features, targets["steps"].tolist()))
        if self.tones:
            seed = int(torch.randint(2**62, ()))  # of the step, which Lightning's hook has seeded
            drawn = collate([self.tone_source.item(rng_for(seed, i)) for i in range(self.tone_windows)])
            parts.append(self.frontend(drawn.audio.to(features.device))[..., :frames])
            targets["tones"] = self.target(drawn._replace(notes=drawn.notes.to(features.device)), frames)
        return Example(batch, torch.cat(parts), targets)

    def loss(self, output: Tensor, example: Example) -> dict[str, Tensor]:
        """Compute the terms and their sum, scalars, of logits `(B', timbres, F', T)`.

        Terms of copies and tones are there where the example has them; `constraint` and `multiplier` are not summed.
        """
        count = len(example.batch.names)
        real, features = output[:count], example.features[:count]
        terms, state = {}, {}
        if self.reconstruction:
            terms["reconstruction"] = self.reconstruction * self.unexplained(real, features)
        if self.margin is not None:
            violation = self.violation(real, features)
            multiplier = self.multiplier.clone()  # `after_step` changes the buffer before the gradient is taken
            terms["sparsity"] = multiplier * violation
            state = {"constraint": violation.detach(), "multiplier": multiplier}
        if self.decay:
            terms["decay"] = self.decay * self.kernels().diff(dim=1).clamp_min(0).sum(1).mean()
        if self.smoothness:
            shares = self.channels(real)
            terms["smoothness"] = self.smoothness * shares.diff(dim=-1).abs().sum() / shares.sum().clamp_min(1)
        if example.targets:
            terms |= self._added_terms(any_channel(output), count, example.targets)
        return {"loss": sum(terms.values(), output.sum() * 0)} | terms | state

    def after_step(self, losses: dict[str, Tensor]) -> None:
        """Raise the multiplier by the violation of the constraint, or lower it: dual ascent."""
        if "constraint" in losses:
            self.multiplier.add_(self.ascent * losses["constraint"]).clamp_(min=0)

    def unexplained(self, output: Tensor, features: Tensor) -> Tensor:
        """Compute `sum w |rebuilt - input| / sum w input`, a scalar, of levels and weights w of frames by mean level.

        Args:
            output: logits `(B, timbres, F', T)`.
            features: `(B, 1, F, T)` in dB.
        """
        wanted = level(self.amplitude(features))  # (B, F, T)
        found = level(self.synthesis(self.channels(output), features))
        weight = wanted.mean(1, keepdim=True)  # (B, 1, T)
        return (weight * (found - wanted).abs()).sum() / (weight * wanted).sum().clamp_min(EMPTY)

    def violation(self, output: Tensor, features: Tensor) -> Tensor:
        """Compute the nats of `margin` that frames lack beyond `SLACK`, a scalar mean by level; met at 0 or below.

        Args:
            output: logits `(B, timbres, F', T)`.
            features: `(B, 1, F, T)` in dB.
        """
        given = level(self.amplitude(features))  # (B, F, T)
        weight = given.mean(1)  # (B, T)
        excess = entropy(self.channels(output).flatten(1, 2)) - entropy(given) + (self.margin or 0.0)  # (B, T)
        return (weight * excess.clamp_min(0)).sum() / weight.sum().clamp_min(EMPTY) - SLACK

    def _transformed(self, features: Tensor, steps: list[int]) -> Tensor:
        """Return copies of features `(B, 1, F, T)`: equalised, transposed by a number of bins each, and mixed."""
        floor, device = self.frontend.out_spec.low, features.device
        batch, _, bins, _ = features.shape
        if self.equalise:
            # A smooth response, linear between points some octave apart, and a gain.
            points = self.equalise * torch.randn(batch, 1, max(2, bins // 24), device=device)
            response = F.interpolate(points, bins, mode="linear", align_corners=True)[..., None]  # (B, 1, F, 1)
            response = response + 2 * self.equalise * torch.randn(batch, 1, 1, 1, device=device)
            features = torch.where(features > floor, features + response, floor).clamp_min(floor)
        moved = torch.stack([shift_bins(x, n, floor) for x, n in zip(features, steps)])
        if self.mix:
            # Sounds of unknown phase add in power; silence, which reads as the floor, adds nothing.
            power = 10 ** (moved / 10)
            moved = (10 * (power + power.roll(1, 0) - 10 ** (floor / 10)).log10()).clamp_min(floor)
        return moved

    def _added_terms(self, logit: Tensor, count: int, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute `consistency` and `tones` of logits `(B', F', T)`, the first `count` of which are of real windows."""
        terms, steps = {}, targets["steps"].tolist() if "steps" in targets else []
        real, copies, tones = logit.split([count, len(steps), len(logit) - count - len(steps)])
        if steps:
            target = torch.stack([shift_bins(x, n, 0.0) for x, n in zip(real.detach().sigmoid(), steps)])
            if self.mix:
                target = torch.maximum(target, target.roll(1, 0))
            terms["consistency"] = self.consistency * focal_by_pitch(copies, target)
        if "tones" in targets:
            weight = 1 + self.tone_octaves * octave_errors(targets["tones"], self.octave)
            terms["tones"] = self.tones * focal_by_pitch(tones, targets["tones"], weight)
        return terms

    # --- Validation ---------------------------------------------------------------------------------------

    def eval_outputs(self, output: Tensor, example: Example, position: int | None = None) -> list[PitchMapOutput]:
        """Return what `PitchMap` needs of each item of logits `(B, timbres, F', T)`, and metrics of the batch.

        `unexplained` is what the map leaves of its input; `constraint` is met at 0 or below.
        """
        extra = {"unexplained": float(self.unexplained(output, example.features))}
        if self.margin is not None:
            extra["constraint"] = float(self.violation(output, example.features))
        return [item._replace(extra=extra) for item in super().eval_outputs(output, example, position)]

    def sample(self, output: Tensor, example: Example, index: int) -> Sample:
        """Show spectrogram, target and map, with the spectrogram that logits `(B, timbres, F', T)` rebuild."""
        sample = super().sample(output, example, index)
        spec, frames = self.frontend.out_spec, self.item_frames(example.batch, index)
        amplitude = self.synthesis(self.channels(output), example.features)[index, :, :frames]
        rebuilt = 20 * (amplitude + 10 ** (spec.low / 20)).log10()  # (F, T) dB, the floor where there is nothing
        return sample._replace(pictures=[*sample.pictures, feature_picture("rebuilt", rebuilt, spec)])


def level(amplitude: Tensor) -> Tensor:
    """Compress amplitudes of any shape, 0 or more, to a scale on which silence is 0 and full scale 1.

    `log(1 + amplitude / q) / log(1 + 1 / q)` with q at `QUIET`.
    """
    quiet = 10 ** (QUIET / 20)
    return torch.log1p(amplitude / quiet) / np.log1p(1 / quiet)


def entropy(values: Tensor) -> Tensor:
    """Compute the entropy in nats `(B, T)` of each frame of values `(B, F, T)` >= 0, as a distribution over F."""
    share = values / values.sum(1, keepdim=True).clamp_min(EMPTY)
    return -torch.xlogy(share, share.clamp_min(EMPTY)).sum(1)


def any_channel(output: Tensor) -> Tensor:
    """Return the logit `(B, F, T)` that any of independent channels is on, of their logits `(B, C, F, T)`."""
    if output.shape[1] == 1:
        return output[:, 0]
    off = F.softplus(output).sum(1).clamp_min(EMPTY)  # -log of the probability that none is
    return off + torch.log(-torch.expm1(-off))


def shift_bins(x: Tensor, steps: int, fill: float) -> Tensor:
    """Move `(..., F, T)` up by a number of bins; what comes in from beyond the ends is `fill`."""
    steps = max(-x.shape[-2], min(steps, x.shape[-2]))
    return F.pad(x, (0, 0, steps, -steps), value=fill)


def octave_errors(target: Tensor, octave: int) -> Tensor:
    """Weigh the silent cells of a target `(B, F, T)` that are one or two octaves, in bins, from one that sounds."""
    sounding = [shift_bins(target, n * octave, 0.0) for n in (-2, -1, 1, 2)]
    return (torch.stack(sounding).amax(0) - target).clamp_min(0)


def focal_by_pitch(logit: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Divide the focal loss by the sum of the target, not by the number of cells, of which nearly all are silent.

    So do Lin et al. ("Focal loss for dense object detection", ICCV 2017) by the number of boxes with an object.

    Args:
        logit: `(B, F, T)`.
        target: in 0..1, of the same shape.
        weight: of each cell, of the same shape; 1 where there is none.
    """
    return focal(logit, target, 2.0, weight) * target.numel() / target.sum().clamp_min(1)


def octaves_per_bin(spec: FeatureSpec) -> float:
    """Return the octaves from bin to bin.

    Raises:
        Incompatible: the features are not one channel of levels in dB that are evenly spaced in log frequency.
    """
    steps = np.diff(np.log2(np.maximum(spec.frequencies, 1e-3))) if spec.bins > 1 else np.zeros(1)
    even = bool(np.ptp(steps) < 0.01 * steps.mean())
    if spec.unit != "dB" or spec.channels != 1 or spec.normalization != "none" or not even:
        raise Incompatible(
            f"task=self_salience rebuilds one channel of levels in dB, evenly spaced in log frequency, and features of "
            f"{spec} are not that; use frontend=cqt or frontend=vqt, with frontend.normalize=none"
        )
    return float(steps.mean())


def harmonic_bins(spec: FeatureSpec, pitches: tuple[float, ...], harmonics: int) -> tuple[Tensor, Tensor]:
    """Find where the partials of each pitch lie among the bins of a spec.

    Returns:
        What each partial of each pitch gives to each bin, `(H, F, F')`: `LOBE`, between bins by linear interpolation;
        and the bin nearest to each partial, `(H, F')`, one past the last where there is none.
    """
    h = np.arange(1, harmonics + 1)
    place = np.log2(np.outer(h, pitches) / spec.frequencies[0]) / octaves_per_bin(spec)  # (H, F') in bins
    distance = np.abs(np.arange(spec.bins)[None, :, None] - place[:, None, :])  # (H, F, F')
    lobe = np.interp(distance, [0, 1, 2], [LOBE[1], LOBE[2], 0.0])
    row = np.rint(place).astype(int)
    rows = np.where((row >= 0) & (row < spec.bins), row, spec.bins)
    return torch.tensor(lobe, dtype=torch.float32), torch.tensor(rows)

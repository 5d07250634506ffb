"""Pitch salience without labels: a map that has to rebuild its own spectrogram through harmonic kernels.

The model gives a share of energy for each pitch and timbre; a synthesis that knows of nothing but harmonics makes a
spectrogram of it. What that leaves open (octaves above all: any spectrum is also that of lower notes) is closed by
ingredients that a weight each takes in or leaves out: few pitches at a time, as a constraint; consistency of the map
under transposition, equalisation and mixing; calibration on self-made tones. Notes of the data serve to score alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavespace.data.base import Batch, collate, rng_for
from wavespace.data.labels import pitch_salience
from wavespace.data.synthesis.tones import Tones
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd
from wavespace.metrics import average
from wavespace.spec import FeatureSpec, check_table
from wavespace.tasks.base import Picture, Sample
from wavespace.tasks.salience import SPREAD, PitchMap, focal

QUIET = -60.0
"""Level in dB of full scale from which on the compressed scale grows with the logarithm."""

LOBE = (0.5, 1.0, 0.5)
"""What a steady partial gives to a bin and its neighbours: a Hann window's main lobe, as wide as a bin."""

HEARD = 3
"""Partials by the loudest of which a pitch's energy is known, so that it may lack its fundamental."""

SLACK = 0.1
"""By how many nats frames may fall short of the constraint on average: true maps of very dense frames do, too."""

EMPTY = 1e-6


class Extra(NamedTuple):
    """What a training batch holds after its real windows: changed copies of them, then windows of tones.

    Attributes:
        steps: bins by which each copy was transposed, one a copy.
        notes: of the tones, as in `Batch`.
    """

    steps: list[int]
    notes: Tensor


class SelfSalience(PitchMap):
    """A salience map learned by rebuilding the input.

    With p the share `(B, timbres, F', T)` that the model gives and e the amplitude of the loudest of a pitch's first
    `HEARD` partials, the rebuilt spectrogram is `sum_c sum_h a[c, h] g(f - log2 h) * (p[c] e)`, with learned a >= 0 and
    the lobe g of a partial. Both spectrograms are compared on `level`, a compressed scale that is 0 at the floor: a map
    of nothing, and any map of silence, rebuild silence exactly.

    The loss is a sum of terms, each there if its weight is not 0:

    - `reconstruction`: `sum |rebuilt - input| / sum input` on that scale, every frame weighed by its mean level: 0 is
      perfect, 1 is what silence scores.
    - `margin`: the constraint `mean max(0, H(map) - H(input) + margin) <= SLACK`, in nats, where H is the entropy along
      frequency of a frame as a distribution, and the mean is over frames by level. A chord is held to it as a single
      note is: no frame makes up for another. Its multiplier rises while it is violated and falls while it is met
      (dual ascent), and is a buffer.
    - `consistency`: the map of a changed copy of the input is the map of the input, changed alike. Copies are
      transposed by up to `transpose` bins (equivariance), equalised and made louder or softer by `equalise` dB
      (invariance), and with `mix` laid over each other, where the larger share counts.
    - `tones`: windows of self-made notes, whose pitches are known because they are drawn; the octave is learned here.
    - `decay`: kernels that rise from a partial to the next cost the rise. `smoothness`: what a map changes from frame
      to frame, relative to what is in it.

    Args:
        frontend: one channel of levels in dB, evenly spaced in log frequency, not normalised.
        timbres: channels of the map, each with a kernel.
        harmonics: partials of a kernel.
        below: bins of the map below the front-end's lowest, so that energy there can be a partial of something.
        fmax: highest bin of the map at or below, in Hz.
        reconstruction: weight of the term.
        margin: nats by which the map is to be sparser than its input, frame by frame; null: no constraint.
        ascent: what the multiplier gains a step and nat of violation.
        consistency: weight of the term.
        transpose: most bins of a transposition; 0: none.
        equalise: standard deviation in dB of a random smooth response, and of a gain; 0: none.
        mix: lay copies over each other.
        tones: weight of the term.
        tone_windows: windows of tones a batch.
        tone_notes: most notes in one of them that is not of melodies.
        tone_melodies: share of them that are of melodies.
        tone_octaves: by how much more, as a factor, cells of tones count that are silent, and one or two octaves from
            one that sounds: what a spectrum alone confuses most.
        audible: dB by which a struck tone may fall before it counts as over.
        decay: weight of the term.
        smoothness: weight of the term.
        thresholds: smallest saliences of a pitch that validation tries; the best is kept in the checkpoint.

    Raises:
        Incompatible: the front-end has no such levels.
        ValueError: a setting is out of range.
    """

    needs = ("notes",)  # validation and test are scored by them; no loss reads them

    multiplier: Tensor
    partials: Tensor
    heard: Tensor

    def __init__(
        self,
        frontend: FrontEnd,
        *,
        timbres: int = 1,
        harmonics: int = 10,
        below: int = 24,
        fmax: float = 4500.0,
        reconstruction: float = 0.1,
        margin: float | None = 1.0,
        ascent: float = 1e-3,
        consistency: float = 1.0,
        transpose: int = 12,
        equalise: float = 4.0,
        mix: bool = True,
        tones: float = 1.0,
        tone_windows: int = 4,
        tone_notes: int = 40,
        tone_melodies: float = 0.5,
        tone_octaves: float = 0.0,
        audible: float = 60.0,
        decay: float = 0.01,
        smoothness: float = 0.0,
        thresholds: tuple[float, ...] = (
            0.05,
            0.1,
            0.15,
            0.2,
            0.25,
            0.3,
            0.35,
            0.4,
            0.45,
            0.5,
            0.6,
            0.65,
            0.7,
            0.75,
            0.8,
            0.85,
            0.9,
            0.95,
        ),
    ) -> None:
        spec = frontend.out_spec
        step = spacing(spec)
        counts = {"timbres": timbres, "harmonics": harmonics, "tone_windows": tone_windows}
        if min(counts.values()) < 1 or min(below, transpose) < 0:
            raise ValueError(f"{counts} are to be at least 1, below {below} and transpose {transpose} at least 0")
        weights = {
            "reconstruction": reconstruction,
            "ascent": ascent,
            "consistency": consistency,
            "equalise": equalise,
            "tones": tones,
            "tone_octaves": tone_octaves,
            "decay": decay,
            "smoothness": smoothness,
        }
        if not 0 <= tone_melodies <= 1:
            raise ValueError(f"tone_melodies is {tone_melodies}; it is a share of the windows of tones, 0 to 1")
        if min(weights.values()) < 0:
            raise ValueError(f"{weights}: none may be below 0")
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
        self.maker = Tones(frontend.in_spec.sample_rate, frontend.in_spec.seconds, tone_notes, tone_melodies, audible)
        self.register_buffer("multiplier", torch.zeros(()))
        self.register_buffer("partials", partials_of(spec, frequencies, harmonics), persistent=False)  # (H, F, F')
        self.register_buffer("heard", rows_of(spec, frequencies, min(HEARD, harmonics)), persistent=False)  # (h, F')
        start = 1 / torch.arange(1.0, harmonics + 1)  # (H,)
        # Timbres differ from the start, or they would learn the same.
        tilt = torch.linspace(1.0, 2.0, timbres)[:, None]
        self.envelope = nn.Parameter(torch.log(torch.expm1(0.5 * start**tilt)))  # (timbres, H)
        self.extra: Extra | None = None

    # --- The map and what it rebuilds ---------------------------------------------------------------------

    def kernels(self) -> Tensor:
        """Amplitude of each partial, `(timbres, harmonics)`, not negative."""
        return F.softplus(self.envelope)

    def channels(self, output: Tensor) -> Tensor:
        """The share of its energy that each pitch and timbre has, `(B, timbres, F', T)` in 0..1."""
        return output.sigmoid()

    def salience(self, output: Tensor) -> Tensor:
        """The chance `(B, F', T)` that any timbre sounds."""
        return joined(output).sigmoid()

    def synthesis(self, shares: Tensor, features: Tensor) -> Tensor:
        """Amplitudes `(B, F, T)` rebuilt from shares `(B, timbres, F', T)` of the energy in features `(B, 1, F, T)`."""
        energy = F.pad(self.amplitude(features), (0, 0, 0, 1))[:, self.heard].amax(1)  # (B, F', T)
        kernels = torch.einsum("ch,hfg->cfg", self.kernels(), self.partials)  # (timbres, F, F')
        return torch.einsum("cfg,bcgt->bft", kernels, shares * energy[:, None])

    def amplitude(self, features: Tensor) -> Tensor:
        """Amplitudes `(B, F, T)` above that of the floor, which is 0, of features `(B, 1, F, T)` in dB."""
        floor = 10 ** (self.frontend.out_spec.low / 20)
        return (10 ** (features[:, 0] / 20) - floor).clamp_min(0)

    # --- Training -----------------------------------------------------------------------------------------

    def features_of(self, batch: Batch) -> Tensor:
        """Features of a batch; in training followed by changed copies and by tones, as far as they have weight.

        All go through the model at once, so that its norms see one distribution.
        """
        real = super().features_of(batch)  # (B, 1, F, T)
        if not self.training:
            return real
        parts, steps, notes = [real], [], batch.notes[:0]
        if self.consistency:
            steps = torch.randint(-self.transpose, self.transpose + 1, (len(real),)).tolist()
            parts.append(self._changed(real, steps))
        if self.tones:
            seed = int(torch.randint(2**62, ()))  # of the step, which Lightning's hook has seeded
            drawn = collate([self.maker.item(rng_for(seed, i)) for i in range(self.tone_windows)])
            notes = drawn.notes.to(real.device)
            parts.append(self.features(drawn.audio.to(real.device))[..., : real.shape[-1]])
        self.extra = Extra(steps, notes)
        return torch.cat(parts)

    def loss(self, output: Tensor, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Loss and its terms; outside of training those of reconstruction and constraint alone."""
        count = len(batch.names)
        real, given = output[:count], features[:count]
        terms, violation = {}, None
        if self.reconstruction:
            terms["reconstruction"] = self.reconstruction * self.unexplained(real, given)
        if self.margin is not None:
            violation = self.violation(real, given)
            terms["sparsity"] = self.multiplier.clone() * violation  # a copy, as the buffer is about to change
        if self.decay:
            kernels = self.kernels()
            terms["decay"] = self.decay * (kernels[:, 1:] - kernels[:, :-1]).clamp_min(0).sum(1).mean()
        if self.smoothness:
            shares = self.channels(real)
            terms["smoothness"] = self.smoothness * shares.diff(dim=-1).abs().sum() / shares.sum().clamp_min(1)
        if self.extra is not None and self.training:
            terms |= self._extra_terms(output, count, self.extra)
        losses = {"loss": sum(terms.values(), output.sum() * 0)} | terms
        if violation is not None:
            losses |= {"constraint": violation.detach(), "multiplier": self.multiplier.clone()}
            if self.training:
                with torch.no_grad():  # dual ascent
                    self.multiplier.add_(self.ascent * violation.detach()).clamp_(min=0)
        return losses

    def unexplained(self, output: Tensor, features: Tensor) -> Tensor:
        """`sum w |rebuilt - input| / sum w input` of levels, for weights w of frames by their mean level."""
        wanted = level(self.amplitude(features))  # (B, F, T)
        found = level(self.synthesis(self.channels(output), features))
        weight = wanted.mean(1, keepdim=True)  # (B, 1, T)
        return (weight * (found - wanted).abs()).sum() / (weight * wanted).sum().clamp_min(EMPTY)

    def violation(self, output: Tensor, features: Tensor) -> Tensor:
        """Nats of `margin` that frames lack, a mean by level, beyond `SLACK`; the constraint is met at 0 or below."""
        given = level(self.amplitude(features))  # (B, F, T)
        weight = given.mean(1)  # (B, T)
        excess = entropy(self.channels(output).flatten(1, 2)) - entropy(given) + (self.margin or 0.0)  # (B, T)
        return (weight * excess.clamp_min(0)).sum() / weight.sum().clamp_min(EMPTY) - SLACK

    def _changed(self, features: Tensor, steps: list[int]) -> Tensor:
        """Copies of features `(B, 1, F, T)`: equalised, transposed by so many bins, and mixed, as far as wanted."""
        floor, device = self.frontend.out_spec.low, features.device
        batch, _, bins, _ = features.shape
        if self.equalise:
            # A smooth response, linear between points some octave apart, and a gain.
            points = self.equalise * torch.randn(batch, 1, max(2, bins // 24), device=device)
            response = F.interpolate(points, bins, mode="linear", align_corners=True)[..., None]  # (B, 1, F, 1)
            response = response + 2 * self.equalise * torch.randn(batch, 1, 1, 1, device=device)
            features = torch.where(features > floor, features + response, floor).clamp_min(floor)
        moved = torch.stack([shifted(x, n, floor) for x, n in zip(features, steps)])
        if self.mix:
            # Sounds of unknown phase add in power; silence, which reads as the floor, adds nothing.
            power = 10 ** (moved / 10)
            moved = (10 * (power + power.roll(1, 0) - 10 ** (floor / 10)).log10()).clamp_min(floor)
        return moved

    def _extra_terms(self, output: Tensor, count: int, extra: Extra) -> dict[str, Tensor]:
        """`consistency` and `tones` of the output of a batch whose first `count` windows are real."""
        logit = joined(output)  # (B, F', T)
        copies = len(extra.steps)
        real, changed, heard = logit.split([count, copies, len(logit) - count - copies])
        terms = {}
        if copies:
            target = torch.stack([shifted(x, n, 0.0) for x, n in zip(real.detach().sigmoid(), extra.steps)])
            if self.mix:
                target = torch.maximum(target, target.roll(1, 0))
            terms["consistency"] = self.consistency * by_pitch(changed, target)
        if len(heard):
            target = pitch_salience(
                extra.notes,
                batch=len(heard),
                frequencies=self.out_spec.frequencies,
                frame_rate=self.out_spec.frame_rate,
                frames=heard.shape[-1],
                kind="activation",
                spread_cents=SPREAD,
            )
            weight = 1 + self.tone_octaves * off_by_octaves(target, self.octave)
            terms["tones"] = self.tones * by_pitch(heard, target, weight)
        return terms

    # --- Validation ---------------------------------------------------------------------------------------

    def observe(self, output: Tensor, features: Tensor, batch: Batch) -> list[Any]:
        """What `PitchMap` observes of each item, with the batch's reconstruction and constraint."""
        figures = {"unexplained": float(self.unexplained(output, features))}
        if self.margin is not None:
            figures["constraint"] = float(self.violation(output, features))
        return [(found, figures) for found in super().observe(output, features, batch)]

    def summarize(self, observed: list[Any], *, tune: bool) -> dict[str, float]:
        """`PitchMap`'s figures; what the map leaves `unexplained` of its input; the `constraint`, met at 0 or below."""
        return super().summarize([found for found, _ in observed], tune=tune) | average([more for _, more in observed])

    def sample(self, output: Tensor, features: Tensor, batch: Batch, index: int) -> Sample:
        """Spectrogram, target and map, with the spectrogram that the map rebuilds."""
        sample = super().sample(output, features, batch, index)
        spec, frames = self.frontend.out_spec, self._frames(batch, index)
        amplitude = self.synthesis(self.channels(output), features)[index, :, :frames]
        rebuilt = 20 * (amplitude + 10 ** (spec.low / 20)).log10()  # (F, T) dB, the floor where there is nothing
        picture = Picture(
            "rebuilt", rebuilt.cpu().numpy(), spec.frequencies, spec.frame_rate, spec.low, spec.high, spec.unit
        )
        return sample._replace(pictures=[*sample.pictures, picture])


def level(amplitude: Tensor) -> Tensor:
    """`log(1 + amplitude / q) / log(1 + 1 / q)` with q at `QUIET`: 0 of nothing, 1 at full scale."""
    quiet = 10 ** (QUIET / 20)
    return torch.log1p(amplitude / quiet) / np.log1p(1 / quiet)


def entropy(values: Tensor) -> Tensor:
    """Entropy in nats `(B, T)` of each frame of values `(B, F, T)` >= 0, as a distribution over F."""
    share = values / values.sum(1, keepdim=True).clamp_min(EMPTY)
    return -torch.xlogy(share, share.clamp_min(EMPTY)).sum(1)


def joined(output: Tensor) -> Tensor:
    """The logit `(B, F, T)` of the chance that any of independent channels `(B, C, F, T)` of logits is on."""
    if output.shape[1] == 1:
        return output[:, 0]
    off = F.softplus(output).sum(1).clamp_min(EMPTY)  # -log of the chance that none is
    return off + torch.log(-torch.expm1(-off))


def shifted(x: Tensor, steps: int, fill: float) -> Tensor:
    """`(..., F, T)` moved up by so many bins; what comes in from beyond the ends is `fill`."""
    moved = torch.full_like(x, fill)
    steps = max(-x.shape[-2], min(steps, x.shape[-2]))
    if steps >= 0:
        moved[..., steps:, :] = x[..., : x.shape[-2] - steps, :]
    else:
        moved[..., :steps, :] = x[..., -steps:, :]
    return moved


def off_by_octaves(target: Tensor, octave: int) -> Tensor:
    """How far `(B, F, T)` each cell of a target is silent, and one or two octaves of so many bins from what sounds."""
    sounding = [shifted(target, n * octave, 0.0) for n in (-2, -1, 1, 2)]
    return (torch.stack(sounding).amax(0) - target).clamp_min(0)


def by_pitch(logit: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The focal loss, not as a mean over cells but over what sounds in them: silent cells outnumber others by far.

    With a weight of each cell, if one is given.
    """
    return focal(logit, target, 2.0, weight) * target.numel() / target.sum().clamp_min(1)


def spacing(spec: FeatureSpec) -> float:
    """Octaves from bin to bin.

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


def partials_of(spec: FeatureSpec, pitches: tuple[float, ...], harmonics: int) -> Tensor:
    """What each partial of each pitch gives to each bin, `(H, F, F')`: `LOBE`, between bins by linear interpolation."""
    step = spacing(spec)
    h = np.arange(1, harmonics + 1)
    place = np.log2(np.outer(h, pitches) / spec.frequencies[0]) / step  # (H, F') in bins
    distance = np.abs(np.arange(spec.bins)[None, :, None] - place[:, None, :])  # (H, F, F')
    return torch.tensor(np.interp(distance, [0, 1, 2], [LOBE[1], LOBE[2], 0.0]), dtype=torch.float32)


def rows_of(spec: FeatureSpec, pitches: tuple[float, ...], harmonics: int) -> Tensor:
    """The bin nearest to each partial of each pitch, `(H, F')`; one past the last where there is none."""
    h = np.arange(1, harmonics + 1)
    row = np.rint(np.log2(np.outer(h, pitches) / spec.frequencies[0]) / spacing(spec)).astype(int)
    return torch.tensor(np.where((row >= 0) & (row < spec.bins), row, spec.bins))

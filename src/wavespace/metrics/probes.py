"""What a linear map reads off the codes of a model, and the single tones that models are compared by.

Tones are synthesized here, so that models trained on any data can be compared.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import Item
from wavespace.data.synthesis.tones import PARTIALS, draw_timbre
from wavespace.units import midi_to_hz

Float = NDArray[np.float64]

RIDGE = 1e-2
"""Penalty of a linear map's weights, a share of the number of its examples; inputs are scaled to deviation 1."""

LOWEST, HIGHEST = 40, 88
TIMBRES, SECONDS = 9, 0.3
FITTED = 6
"""Timbres to whose tones the linear map to pitches is fitted; it is tested on those of the others."""


def balanced_accuracy(
    codes: Float, classes: NDArray[np.int64], test_codes: Float, test_classes: NDArray[np.int64]
) -> float:
    """Mean recall, over the classes that occur in test, of a ridge classifier of codes `(K, dims)`.

    Every class weighs as much in the fit, however many codes it has.
    """
    from sklearn.linear_model import RidgeClassifier  # here, as scikit-learn takes seconds to import
    from sklearn.metrics import recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = RidgeClassifier(RIDGE * len(codes), class_weight="balanced")
    found = make_pipeline(StandardScaler(), classifier).fit(codes, classes).predict(test_codes)
    return float(recall_score(test_classes, found, labels=np.unique(test_classes), average="macro"))


def pitch_probe(codes: Float, pitches: NDArray[np.int64], timbres: NDArray[np.int64]) -> float:
    """Accuracy within half a semitone of a linear map of codes `(K, dims)`, on timbres that it was not fitted to."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted, known = timbres < FITTED, np.unique(pitches)
    # Each pitch's neighbours are nearly it: targets are bumps a semitone wide, and the answer is the highest.
    bumps = np.exp(-0.5 * (pitches[:, None] - known) ** 2)
    regression = make_pipeline(StandardScaler(), Ridge(RIDGE * fitted.sum())).fit(codes[fitted], bumps[fitted])
    found = known[regression.predict(codes[~fitted]).argmax(axis=1)]
    return float(np.mean(np.abs(found - pitches[~fitted]) <= 0.5))


def concentration(codes: Float) -> float:
    """Entropy of the share of each dim in the variance of codes `(K, dims)`, over the log of their number."""
    from scipy.stats import entropy

    variance = codes.var(axis=0)
    if len(variance) < 2 or not variance.sum() > 0:
        return 0.0
    return float(entropy(variance) / np.log(len(variance)))


@cache
def tones(sample_rate: int) -> list[Item]:
    """Single tones with labels `pitch` (MIDI) and `timbre`: every other semitone of four octaves in nine timbres."""
    rng = np.random.default_rng(0)
    time = np.arange(round(SECONDS * sample_rate)) / sample_rate  # (N,)
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
    n = np.arange(1, PARTIALS + 1)
    made = []
    for timbre in range(TIMBRES):
        drawn = draw_timbre(rng)
        phases = rng.uniform(0, 2 * np.pi, PARTIALS)
        for pitch in range(LOWEST + timbre % 2, HIGHEST, 2):
            hertz = midi_to_hz(pitch) * n * np.sqrt((1 + drawn.stiffness * n**2) / (1 + drawn.stiffness))
            kept = hertz < min(0.45 * sample_rate, 12_000)
            amplitude = (10 ** (drawn.level / 20) / np.sqrt(1 + (hertz / drawn.lowpass) ** 4))[kept]
            wave = amplitude @ np.sin(2 * np.pi * hertz[kept, None] * time + phases[kept, None])  # (N,)
            audio = (0.2 * wave / (wave.std() * 3 + 1e-9) * fade).astype(np.float32)
            made.append(Item(audio, "", labels={"pitch": pitch, "timbre": timbre}))
    return made

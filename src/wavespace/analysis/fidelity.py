"""Fidelity against control, the study's central question: what a code loses of a sound, and what it lets one set.

Control is measured three ways: how concentrated a code is (entropy), whether pitch and whether instrument can be read
off it by a linear map. Pitch and entropy are measured on self-made tones, so that runs on any data can be compared.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wavespace.analysis.fits import CantFit

if TYPE_CHECKING:
    import pandas as pd

    from wavespace.tasks.base import Task

Float = NDArray[np.float64]

DISTORTION = ("test/l1_db", "val/l1_db", "test/unexplained", "val/unexplained")
"""What a run is unfaithful by, the first that it has: L1 in dB, or what a salience map can't rebuild."""

CONTROL = {
    "test/instrument_probe": True,
    "test/pitch_probe": True,
    "test/latent_entropy": False,
    "test/salience_f1": True,
    "test/rpa": True,
    "test/map_entropy": False,
}
"""What a run can be steered by, and whether more of it is better."""


def tradeoff(
    runs: pd.DataFrame, control: str, distortion: str | None = None, *, higher: bool | None = None
) -> pd.DataFrame:
    """Runs that have both figures, with `front`: no other is better in one and as good in the other.

    Args:
        runs: from `table`.
        control: a column.
        distortion: a column of which less is better; the first of `DISTORTION` that occurs with the control.
        higher: whether more of `control` is better; as in `CONTROL`.

    Raises:
        CantFit: no run has both.
    """
    names = [distortion] if distortion else [name for name in DISTORTION if name in runs]
    for name in names:
        if control in runs and name in runs:
            both = runs[runs[name].notna() & runs[control].notna()].copy()
            if len(both):
                up = CONTROL.get(control, True) if higher is None else higher
                values = both[control].to_numpy(float)
                both["front"] = pareto(both[name].to_numpy(float), -values if up else values)
                both.attrs["distortion"] = name
                return both
    raise CantFit(f"no run has both a distortion ({', '.join(names) or 'none was measured'}) and {control}")


def pareto(a: Float, b: Float) -> NDArray[np.bool_]:
    """Which of the points `(K,)` none other beats: is as small in both, and smaller in one."""
    order = np.lexsort((b, a))
    front = np.zeros(len(a), dtype=bool)
    least, at = np.inf, np.nan
    for index in order:
        if b[index] < least or (b[index] == least and a[index] == at):
            front[index] = True
            least, at = b[index], a[index]
    return front


# --- What a code lets one set -------------------------------------------------------------------------------

LOWEST, HIGHEST = 40, 88
TIMBRES, NOTE = 9, 0.3
TAUGHT = 6
"""Timbres whose tones teach the probe; the others test it."""


class Heard(NamedTuple):
    """Codes `(K, numbers)` of single tones, the MIDI pitch `(K,)` and the timbre `(K,)` of each."""

    codes: Float
    pitch: NDArray[np.int64]
    timbre: NDArray[np.int64]


@cache
def tones(sample_rate: int, seed: int = 0) -> list[tuple[NDArray[np.float32], int, int]]:
    """Single tones `(N,)` with their MIDI pitch and timbre: every other semitone of four octaves in nine timbres."""
    from wavespace.data.synthesis.tones import PARTIALS, draw_timbre

    rng = np.random.default_rng(seed)
    time = np.arange(round(NOTE * sample_rate)) / sample_rate  # (N,)
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
    found = []
    for timbre in range(TIMBRES):
        drawn = draw_timbre(rng)
        phases = rng.uniform(0, 2 * np.pi, PARTIALS)
        for pitch in range(LOWEST + timbre % 2, HIGHEST, 2):
            n = np.arange(1, PARTIALS + 1)
            hertz = 440 * 2 ** ((pitch - 69) / 12) * n * np.sqrt((1 + drawn.stiffness * n**2) / (1 + drawn.stiffness))
            heard = hertz < min(0.45 * sample_rate, 12_000)
            amplitude = (10 ** (drawn.level / 20) / np.sqrt(1 + (hertz / drawn.lowpass) ** 4))[heard]
            wave = amplitude @ np.sin(2 * np.pi * hertz[heard, None] * time + phases[heard, None])  # (N,)
            found.append(((0.2 * wave / (wave.std() * 3 + 1e-9) * fade).astype(np.float32), pitch, timbre))
    return found


def hear(task: Task, seed: int = 0) -> Heard | None:
    """Codes of self-made tones, each averaged over time; None of a model without codes."""
    import torch

    from wavespace.errors import Incompatible

    model: Any = task.model
    if not hasattr(model, "encode"):
        return None
    task.eval()
    codes, pitches, timbres = [], [], []
    with torch.inference_mode():
        for wave, pitch, timbre in tones(task.frontend.in_spec.sample_rate, seed):
            features = task.features(torch.from_numpy(wave).view(1, 1, -1).to(task.device))  # (1, C, F, T)
            try:
                code = model.encode(features)  # (1, numbers, 1, t)
            except Incompatible:  # a net with skips
                return None
            codes.append(code[0, :, 0].mean(-1).double().cpu().numpy())
            pitches.append(pitch)
            timbres.append(timbre)
    return Heard(np.stack(codes), np.array(pitches), np.array(timbres))


def control(task: Task, seed: int = 0) -> dict[str, float]:
    """`pitch_probe` and `latent_entropy` of a model with codes; `map_entropy` of a salience map; nothing of others.

    - `pitch_probe`: share of tones of unheard timbres whose pitch a linear map of the code tells within half a
      semitone; the map is taught on other timbres, by ridge regression. 0.25 dB of level or so is chance: about 0.04.
    - `latent_entropy`: nats of the mean distribution of a code's variance over its numbers, divided by the most there
      can be: 1 where all of a code's numbers carry as much, 0 where one carries all.
    - `map_entropy`: nats of a frame of the map as a distribution along frequency, over the most there can be, a mean
      over tones: 0 where a tone is one bin.
    """
    figures: dict[str, float] = {}
    if (heard := hear(task, seed)) is not None:
        figures = {"pitch_probe": pitch_probe(heard), "latent_entropy": concentration(heard.codes)}
    if hasattr(task, "salience"):
        figures["map_entropy"] = _map_entropy(task, seed)
    return figures


def pitch_probe(heard: Heard) -> float:
    """Accuracy within half a semitone, on timbres that the linear map was not taught on."""
    taught = heard.timbre < TAUGHT
    mean, deviation = heard.codes[taught].mean(0), heard.codes[taught].std(0) + 1e-9
    inputs = np.pad((heard.codes - mean) / deviation, ((0, 0), (0, 1)), constant_values=1)
    known = np.unique(heard.pitch)
    # Each pitch's neighbours are nearly it: targets are bumps a semitone wide, and the answer is the highest.
    bumps = np.exp(-0.5 * ((heard.pitch[:, None] - known) / 1.0) ** 2)
    penalty = 1e-2 * taught.sum() * np.eye(inputs.shape[1])
    penalty[-1, -1] = 0
    solution = np.linalg.lstsq(
        inputs[taught].T @ inputs[taught] + penalty, inputs[taught].T @ bumps[taught], rcond=None
    )[0]
    told = known[np.argmax(inputs[~taught] @ solution, axis=1)]
    return float(np.mean(np.abs(told - heard.pitch[~taught]) <= 0.5))


def concentration(codes: Float) -> float:
    """Entropy of the share of each number in the variance of codes `(K, numbers)`, over the log of their number."""
    variance = codes.var(axis=0)
    if len(variance) < 2 or not variance.sum() > 0:
        return 0.0
    share = variance / variance.sum()
    return float(-np.sum(share * np.log(np.maximum(share, 1e-300))) / np.log(len(share)))


def _map_entropy(task: Any, seed: int) -> float:
    import torch

    found = []
    with torch.inference_mode():
        for wave, _, _ in tones(task.frontend.in_spec.sample_rate, seed)[::3]:
            features = task.features(torch.from_numpy(wave).view(1, 1, -1).to(task.device))
            values = task.salience(task.apply_model(features))[0].double()  # (F', T)
            share = values / values.sum(0).clamp_min(1e-12)
            entropy = -(share * share.clamp_min(1e-12).log()).sum(0) / np.log(len(values))
            found.append(float(entropy[len(entropy) // 4 : -len(entropy) // 4 or None].mean()))
    return float(np.mean(found))

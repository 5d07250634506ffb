"""Metrics: `notes` and `pitch` score as mir_eval does, `probes` measures codes.

Every score lies in 0..1. Where reference and estimate are both empty it is undefined, where only one is it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HIGHER_IS_BETTER = {
    **dict.fromkeys(("note_precision_onset", "note_recall_onset", "note_f1_onset", "note_f1_onset_offset"), True),
    **dict.fromkeys(("note_f1_onset_offset_velocity", "frame_precision", "frame_recall", "frame_f1"), True),
    **dict.fromkeys(("salience_precision", "salience_recall", "salience_f1", "salience_accuracy"), True),
    **dict.fromkeys(("salience_chroma_f1", "rpa", "rca", "vr", "instrument_probe", "pitch_probe"), True),
    **dict.fromkeys(("loss", "l1_db", "l1_db_above_floor", "multi_scale", "octave_share_of_fp", "vfa"), False),
    **dict.fromkeys(("unexplained", "constraint", "latent_entropy", "map_entropy"), False),
}
"""Of the metrics of every task, by their names without a split; a task says which way its own monitor is better."""


def average(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Average each score over recordings, as the field reports them: every recording weighs the same."""
    return {key: mean([score[key] for score in scores]) for key in scores[0]} if scores else {}


def mean(values: Sequence[float]) -> float:
    """Average over the recordings in which a score is defined; 0, as mir_eval has it, where it is defined in none.

    A recording that is empty in reference and estimate alike does not measure a model.
    """
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else 0.0


def precision_recall_f1(hits: int, estimated: int, actual: int) -> tuple[float, float, float]:
    """Compute the three from counts: NaN where both sides are empty, 0 where one side alone is."""
    if not estimated or not actual:
        return (0.0 if estimated or actual else float("nan"),) * 3
    precision, recall = hits / estimated, hits / actual
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0

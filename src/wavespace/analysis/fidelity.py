"""Fidelity against control: which runs lose least of a sound for what their codes let one set.

`wavespace.analysis.probes` measures control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wavespace.analysis.fits import CantFit
from wavespace.analysis.runs import higher_is_better

if TYPE_CHECKING:
    import pandas as pd

Float = NDArray[np.float64]

DISTORTION = ("test/l1_db", "val/l1_db", "test/unexplained", "val/unexplained")
"""What a run is unfaithful by, the first that it has: L1 in dB, or what a salience map can't rebuild."""

CONTROL = (
    *("test/instrument_probe", "test/pitch_probe", "test/latent_entropy", "test/salience_f1", "test/rpa"),
    "test/map_entropy",
)
"""What a run can be steered by."""


def tradeoff(runs: pd.DataFrame, control: str, distortion: str | None = None) -> pd.DataFrame:
    """Runs that have both metrics, with `front`: no other is better in one and as good in the other.

    Its `attrs` name the `control` and the `distortion`, and say whether more control is `higher`.

    Args:
        runs: from `table`.
        control: a column.
        distortion: a column of which less is better; the first of `DISTORTION` that occurs with the control.

    Raises:
        CantFit: no run has both, or nothing says which way the control is better.
    """
    names = [distortion] if distortion else [name for name in DISTORTION if name in runs]
    for name in names:
        if control in runs and name in runs:
            both = runs[runs[name].notna() & runs[control].notna()].copy()
            if len(both):
                higher = higher_is_better(control, {})
                if higher is None:
                    raise CantFit(f"{control}: nothing says whether more of it is better")
                values = both[control].to_numpy(float)
                both["front"] = pareto(both[name].to_numpy(float), -values if higher else values)
                both.attrs = {"distortion": name, "control": control, "higher": higher}
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

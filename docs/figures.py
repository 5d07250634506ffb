"""Figures of the documents, drawn from the run folders that the commands beside them fill.

`python docs/figures.py latent_curve RUNS`: the error of reconstruction against the numbers that a frame passes through.
RUNS is the folder of `wavespace train -m experiment=medley_dense model.latent=4,8,16,32,64,128` (runs/medley_dense).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from omegaconf import OmegaConf

STUDY = 0.77
"""The best L1 in dB that the study reports, of a net that passes as many numbers as it is given, or more."""


def latent_curve(runs: Path, target: Path) -> None:
    """Draw `target` from all finished runs in a folder, and print the figures that it shows."""
    rows = []
    for status in runs.glob("*/status.json"):
        found = json.loads(status.read_text())
        if found["state"] == "finished":
            latent = OmegaConf.load(status.with_name("config.yaml")).model.latent
            rows.append((latent, found["metrics"]["test/l1_db"], found["metrics"]["baseline/l1_db"]))
    if not rows:
        sys.exit(f"{runs}: there is no finished run in it")
    rows.sort()
    for latent, ours, pca in rows:
        print(f"{latent:4d} numbers a frame: {ours:.2f} dB, PCA {pca:.2f} dB")
    latents, ours, pca = zip(*rows)
    with rc_context({"font.size": 9, "svg.hashsalt": "wavespace", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6, 3.6), facecolor="white", layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log")
        axes.plot(latents, pca, "o-", color="#8a8a8a", label="PCA of the training clips")
        axes.plot(latents, ours, "o-", color="#7a3fb0", label="wavespace, experiment=medley_dense")
        axes.axhline(STUDY, color="#c0392b", linestyle=":", label="0.77 dB: the study's best, with no narrow middle")
        axes.set_xticks(latents, map(str, latents), minor=False)
        axes.set_yticks(ticks := [0.5, 1, 2, 4, 8], map(str, ticks))
        axes.minorticks_off()
        axes.set(xlabel="numbers a frame (of 256 bins)", ylabel="L1 on held-out songs, dB")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper right")
        figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "latent_curve":
        sys.exit(__doc__)
    latent_curve(Path(sys.argv[2]), Path(__file__).with_name("latent_curve.svg"))

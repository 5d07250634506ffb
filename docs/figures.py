"""Draw the figures of the documents from the run folders that the commands beside them fill.

`python docs/figures.py latent_curve RUNS`: the error of reconstruction against the dims that a frame passes through.
RUNS is the folder of `python benchmarks/studies.py latent` (runs/study-latent).

`python docs/figures.py piano_roll_curve RUNS`: notes found in validation pieces against CPU minutes of training.
RUNS is the folder of `python benchmarks/studies.py piano_roll` (runs/study-piano_roll); its runs are seeds.

`python docs/figures.py constraint_curve RUNS`: what maps lack of the constraint in training and on unseen pieces.
RUNS is the folder of `python benchmarks/studies.py self_salience_piano` (runs/study-self_salience_piano).
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import OmegaConf

STUDY = 0.77
"""The best L1 in dB that the study reports, of a net that passes as many dims as it is given, or more."""


STYLE = {"font.size": 9, "svg.hashsalt": "wavespace", "svg.fonttype": "none"}


def finished(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and status of each finished run in a folder."""
    found = [(path.parent, json.loads(path.read_text())) for path in sorted(runs.glob("*/status.json"))]
    done = [(folder, status) for folder, status in found if status["state"] == "finished"]
    return done or sys.exit(f"{runs}: there is no finished run in it")


def piano_roll_curve(runs: Path, target: Path) -> None:
    """Draw `target`, a line a run and metric, and print the numbers that it shows."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 3.6), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        for folder, status in finished(runs):
            with (folder / "metrics.csv").open() as file:
                rows = [row for row in csv.DictReader(file) if row["val/note_f1_onset"]]
            pace = status["cpu_minutes"] / status["step"]  # the test at the end spread over all steps
            minutes = [int(row["step"]) * pace for row in rows]
            for name, colour in (("onset", "#7a3fb0"), ("onset_offset", "#2a7f62")):
                values = [float(row[f"val/note_f1_{name}"]) for row in rows]
                label = {"onset": "onset", "onset_offset": "onset and offset"}[name]
                known = axes.get_legend_handles_labels()[1]
                axes.plot(minutes, values, ".-", color=colour, alpha=0.7, label=None if label in known else label)
                print(f"{folder.name} {label}: " + ", ".join(f"{m:.0f} min {v:.3f}" for m, v in zip(minutes, values)))
        axes.set(xlabel="CPU minutes of training", ylabel="F1 of notes, validation pieces", ylim=(0, 1), xlim=(0, None))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(target, metadata={"Date": None})


def latent_curve(runs: Path, target: Path) -> None:
    """Draw `target` from all finished runs in a folder, and print the numbers that it shows."""
    rows = []
    for folder, status in finished(runs):
        latent = OmegaConf.load(folder / "config.yaml").model.latent
        rows.append((latent, status["metrics"]["test/l1_db"], status["metrics"]["baseline/l1_db"]))
    rows.sort()
    for latent, ours, pca in rows:
        print(f"{latent:4d} dims a frame: {ours:.2f} dB, PCA {pca:.2f} dB")
    latents, ours, pca = zip(*rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 3.6), facecolor="white", layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log")
        axes.plot(latents, pca, "o-", color="#8a8a8a", label="PCA of the training clips")
        axes.plot(latents, ours, "o-", color="#7a3fb0", label="wavespace, experiment=medley_dense")
        axes.axhline(STUDY, color="#c0392b", linestyle=":", label="0.77 dB: the study's best, with no narrow middle")
        axes.set_xticks(latents, map(str, latents), minor=False)
        axes.set_yticks(ticks := [0.5, 1, 2, 4, 8], map(str, ticks))
        axes.minorticks_off()
        axes.set(xlabel="dims a frame (of 256 bins)", ylabel="L1 on held-out songs, dB")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.18))
        figure.savefig(target, metadata={"Date": None})


def constraint_curve(runs: Path, target: Path) -> None:
    """Draw `target`, a line a run, and print the numbers that it shows."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 4.4), facecolor="white", layout="constrained")
        above, below = figure.subplots(2, sharex=True)
        for folder, status in finished(runs):
            with (folder / "metrics.csv").open() as file:
                rows = [row for row in csv.DictReader(file) if row.get("train/constraint")]
            if not rows:
                continue
            steps = np.array([int(row["step"]) for row in rows])
            violation, multiplier = (
                np.array([float(row[f"train/{name}"]) for row in rows]) for name in ("constraint", "multiplier")
            )
            known = above.get_legend_handles_labels()[1]
            for axes, values in ((above, smooth(violation)), (below, multiplier)):
                axes.plot(
                    steps, values, color="#7a3fb0", alpha=0.7, label=None if known else "training, a mean of 200 steps"
                )
            found = status["metrics"]["test/constraint"]
            above.plot(steps[-1], found, "o", color="#c0392b", label=None if known else "test pieces")
            print(f"{folder.name}: training {smooth(violation)[-1]:.3f}, test {found:.3f}, at {multiplier[-1]:.2f}")
        above.axhline(0, color="#555555", linestyle=":")
        above.set(ylabel="constraint, nats (met below 0)", ylim=(None, 0.6))
        below.set(xlabel="steps", ylabel="multiplier", ylim=(0, None))
        above.legend(frameon=False, loc="upper right")
        for axes in (above, below):
            axes.grid(alpha=0.25)
        figure.savefig(target, metadata={"Date": None})


def smooth(values: NDArray[np.float64], rows: int = 20) -> NDArray[np.float64]:
    """Means of so many rows of metrics.csv, of which there is one every ten steps, up to each."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - rows, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


if __name__ == "__main__":
    figures = {function.__name__: function for function in (constraint_curve, latent_curve, piano_roll_curve)}
    if len(sys.argv) != 3 or sys.argv[1] not in figures:
        sys.exit(__doc__)
    figures[sys.argv[1]](Path(sys.argv[2]), Path(__file__).with_name(f"{sys.argv[1]}.svg"))

"""`make studies`: train the runs of each study that are not finished, and write its table into docs/findings.md.

    python benchmarks/studies.py [STUDY …]

A study is a file of benchmarks/studies/. Its `rows` are overrides; its `columns` are metrics of a run, or of its best
checkpoint on other data, as `NAME: METRIC`, where NAME is one of the study's `evaluations` (overrides, too). With
`baseline`, the first row has the metrics of the first run's baseline under that name. The table is written between
`<!-- study: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from wavespace import config
from wavespace.runfolder import RunFolder

HERE = Path(__file__).parent
FINDINGS = HERE.parent / "docs" / "findings.md"


def main(names: list[str]) -> None:
    for file in sorted(HERE.glob("studies/*.yaml")):
        if not names or file.stem in names:
            table = tabulate(file.stem, OmegaConf.to_container(OmegaConf.load(file)))
            insert(file.stem, table)
            print(table)


def tabulate(name: str, study: Any) -> str:
    """Return a Markdown table: a line for each row of the study, a metric as mean ± standard deviation over seeds."""
    columns: dict[str, str] = study["columns"]
    trained = not all(metric.startswith("baseline/") for metric in columns.values())
    heads = [*columns, *(["steps", "CPU minutes"] if trained else [])]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for label, overrides in study["rows"].items():
        elsewhere = study.get("evaluations", {})
        seeds = study.get("seeds", [0])
        found = [run(name, [*study["base"], *overrides, f"seed={seed}"], elsewhere) for seed in seeds]
        spent = [str(found[0]["step"]), spread([status.get("cpu_minutes") for status in found], 1)] if trained else []
        lines.append(f"| {label} | " + " | ".join([*cells(found, columns.values()), *spent]) + " |")
        if "baseline" in study and len(lines) == 3:
            metrics = [metric.replace("test/", "baseline/") for metric in columns.values()]
            lines.insert(2, f"| {study['baseline']} | " + " | ".join([*cells(found, metrics), "–", "–"]) + " |")
    return "\n".join(lines)


def cells(found: list[dict[str, Any]], metrics: Iterable[str]) -> list[str]:
    """Return each metric over the statuses of a row's seeds, as text."""
    return [spread([status["metrics"].get(metric) for status in found]) for metric in metrics]


def run(name: str, overrides: list[str], elsewhere: dict[str, list[str]]) -> dict[str, Any]:
    """Return the status of a configuration's run, which is trained first if it is not finished.

    Metrics of its best checkpoint on other data are added, and kept in its folder.
    """
    overrides = [f"name=study-{name}", *overrides]
    folder = RunFolder.of(config.compose(overrides))
    if folder.status().get("state") != "finished":
        print(f"\n--- {name}: {' '.join(overrides[1:])}", flush=True)
        subprocess.run(["wavespace", "train", *overrides], check=True)
    for label, data in elsewhere.items():
        kept = folder.path / f"evaluation-{label.replace(' ', '_')}.json"
        if not kept.is_file():
            print(f"\n--- {name}: wavespace evaluate {folder.path} {' '.join(data)}", flush=True)
            command = ["wavespace", "evaluate", str(folder.path), *data, "--json"]
            kept.write_text(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    status = folder.status()
    for label in elsewhere:
        metrics = json.loads((folder.path / f"evaluation-{label.replace(' ', '_')}.json").read_text())
        status["metrics"] |= {f"{label}: {metric}": value for metric, value in metrics.items()}
    return status


def spread(values: list[float | None], digits: int = 3) -> str:
    """Return the mean and, for several values, the standard deviation, as text."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return "–"
    return f"{known.mean():.{digits}f}" + (f" ± {known.std(ddof=1):.{digits}f}" if len(known) > 1 else "")


def insert(name: str, table: str) -> None:
    """Replace a study's table in docs/findings.md."""
    text = FINDINGS.read_text()
    before, mark, rest = text.partition(f"<!-- study: {name} -->\n")
    if mark:
        FINDINGS.write_text(before + mark + table + "\n" + rest[rest.index("<!-- end -->") :])


if __name__ == "__main__":
    main(sys.argv[1:])

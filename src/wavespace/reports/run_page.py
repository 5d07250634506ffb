"""What a run did, as one page that opens from disk.

A page is made from the files of the run folder alone. What is missing or damaged is said on it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from wavespace.analysis.runs import (
    MOST_BYTES,
    Series,
    higher_is_better,
    parse_config,
    parse_status,
    read_metrics,
    read_part,
)
from wavespace.errors import BadInput
from wavespace.files import named_file, open_regular, read_regular, write_atomic
from wavespace.reports.charts import charts
from wavespace.reports.pages import edition, number, render
from wavespace.runfolder import RunFolder

MEDIA_LIMIT = 4_500_000
"""Bytes of pictures and sounds (as base64) in a page; what does not fit is named by its file."""

MOST_SAMPLES, MOST_VALUES = 50, 2**23
"""Samples that a page shows, and values of all channels that a sound in it may have: three minutes at 44,100 Hz."""

SOURCES = ("status.json", "config.yaml", "metrics.csv", "samples/samples.json", "samples")
"""What a run's page is made from."""


def _made_of(folder: Path) -> str:
    """A digest of the state of a page's sources, and of how it is made from them."""
    found = []
    for name in SOURCES:
        try:
            facts = (folder / name).stat()
            found.append([name, facts.st_mtime_ns, facts.st_size])
        except OSError:
            continue
    return hashlib.sha256(json.dumps([edition(), found]).encode()).hexdigest()[:16]


def is_current(folder: Path) -> bool:
    """Whether a run's page is there, and made from what is in its folder now."""
    try:
        with open_regular(folder / "report.html") as file:
            return f'content="{_made_of(folder)}"'.encode() in file.read(1000)
    except (OSError, BadInput):
        return False


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` from the other files of a run folder, and return its path.

    One file that needs no network and runs no script; a missing or damaged source is a sentence on the page.
    """
    notices: list[str] = []
    made_of = _made_of(folder.path)  # before anything is read: what changes meanwhile makes it out of date
    status = read_part(folder.path, "status.json", parse_status, notices, {})
    text, config = read_part(folder.path, "config.yaml", parse_config, notices, ("", {}))
    metrics = read_metrics(folder.path, notices)
    samples = read_part(folder.path, "samples/samples.json", json.loads, notices, [])
    nodes = [config.get(group) for group in ("data", "frontend", "model", "task")]
    targets = [str(node["_target_"]) for node in nodes if isinstance(node, dict) and "_target_" in node]
    names = list(dict.fromkeys(key.partition("/")[2] for key in status.get("metrics", {}) if "/" in key))
    page = render(
        "run.html",
        made_of=made_of,
        name=config.get("name") or folder.path.absolute().parent.name,
        signature=status.get("signature") or folder.path.absolute().name,
        parts=[target.rpartition(".")[2] for target in targets],
        status=status,
        table=figures_table(status),
        every=figures_table(status | {"table": names}),
        logged=logged_table(metrics, status),
        charts=charts(metrics, status),
        samples=_samples(samples, folder.path, notices),
        config=text,
        notices=notices,
    )
    write_atomic(folder.path / "report.html", page.encode("utf-8", "replace"))  # JSON can hold what UTF-8 can't
    return folder.path / "report.html"


def figures_table(status: dict[str, Any]) -> list[list[str]]:
    """A run's figures as text: a head `["", "val", "test", "baseline"]` (those there are), then a row a name.

    Args:
        status: as in status.json; `metrics` holds the figures, `table` names the rows.
    """
    figures = status.get("metrics", {})
    splits = [split for split in ("val", "test", "baseline") if any(key.startswith(f"{split}/") for key in figures)]
    rows = [[name, *(number(figures.get(f"{split}/{name}")) for split in splits)] for name in status.get("table", [])]
    return [["", *splits], *rows]


def logged_table(metrics: dict[str, Series], status: dict[str, Any]) -> list[list[str]]:
    """What was logged in training as text: a head, then the best value, if it is known which, and the last, of each."""
    rows = []
    for name, (steps, values) in sorted(metrics.items()):
        higher, known = higher_is_better(name, status), np.flatnonzero(np.isfinite(values))
        best, at = "–", "–"
        if higher is not None and len(known):
            place = known[np.argmax(values[known] if higher else -values[known])]
            best, at = number(float(values[place])), f"{steps[place]:.0f}"
        rows.append([name, best, at, number(float(values[-1]))])
    return [["", "best", "at step", "last"], *rows]


# --- Samples ------------------------------------------------------------------------------------------------


def _samples(entries: Any, folder: Path, notices: list[str]) -> list[dict[str, Any]]:
    """What samples.json lists, with its files as data URIs; None in place of one that can't be shown."""
    left = MEDIA_LIMIT

    def embedded(file: str) -> str | None:
        nonlocal left
        name = f"samples/{Path(file).name}"
        try:
            kind, data = _media(folder, name)
        except FileNotFoundError:
            notices.append(f"{name} is missing.")
            return None
        except BadInput as error:
            notices.append(f"{name} can't be read ({str(error).removeprefix(f'{folder / name}: ')}).")
            return None
        except Exception as error:  # whatever a damaged file makes its reader raise
            notices.append(f"{name} can't be read ({type(error).__name__}).")
            return None
        uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        if len(uri) > left:
            notices.append(f"{name} is too large for this page.")
            return None
        left -= len(uri)
        return uri

    shown = []
    try:
        for entry in entries[:MOST_SAMPLES]:
            files = {
                key: [(e["title"], e["file"], embedded(e["file"])) for e in entry[key][:MOST_SAMPLES]]
                for key in ("sounds", "midi")
            }
            shown.append({**entry, **files, "picture": (entry["picture"], embedded(entry["picture"]))})
        if len(entries) > MOST_SAMPLES:
            notices.append(f"samples/samples.json lists {len(entries)} samples; the first {MOST_SAMPLES} are shown.")
    except (KeyError, TypeError, AttributeError) as error:
        notices.append(f"samples/samples.json is damaged ({type(error).__name__}: {error}).")
    return shown


def _media(folder: Path, name: str) -> tuple[str, bytes]:
    """Type and bytes of a file as the page holds it: sounds as MP3, half of FLAC's size, where that can be written."""
    data, packed = read_regular(named_file(folder, name), MOST_BYTES), io.BytesIO()
    if (suffix := Path(name).suffix) in (".mid", ".png"):
        return {".mid": "audio/midi", ".png": "image/png"}[suffix], data
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as file:  # a few bytes of silence may be hours
        if file.frames * file.channels > MOST_VALUES:
            raise BadInput(f"{folder / name}: its header states {file.frames} samples, too many for a page")
        audio, rate = file.read(dtype="float32"), file.samplerate
    best: Any = {"bitrate_mode": "VARIABLE", "compression_level": 0.0}
    try:
        soundfile.write(packed, audio, rate, format="MP3", **best)
    except (RuntimeError, TypeError, ValueError):  # a rate that MP3 has not got, or a libsndfile without it
        return "audio/flac", data
    return "audio/mpeg", packed.getvalue()

"""What a run looks and sounds like, in `samples/` and in W&B: the first validation items, and audits of the model."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, WandbLogger

from wavespace.data.base import DataModule
from wavespace.data.files.midi import clean, write_midi
from wavespace.data.synthesis.soundfont import Sampler, Voice
from wavespace.errors import UserError
from wavespace.files import write_atomic
from wavespace.reports.figures import Audit, draw, png
from wavespace.tasks.base import Sample, Task
from wavespace.training.callbacks.audits import audits
from wavespace.units import to_int16

SECONDS = 10.0
"""How much of each item is kept, from its start: enough to judge by, and readable on a phone."""


def save_samples(task: Task, data: DataModule, folder: Path, count: int = 2) -> None:
    """Run a task on the first `count` validation items, audit it, and fill `folder` with what comes out.

    Every item gives a picture (`.png`), its sounds (`.flac`, 16 bit) and, if it has notes, `estimate.mid`,
    `reference.mid` and the estimate rendered as a piano; an audit gives a picture. `samples.json` lists them: a list of
    `{kind, name, description, picture, sounds: [{title, file}], midi: [{title, file}], missing}`, where `kind` is
    "sample" or "audit", and `missing` says why something could not be made, or is null. The folder appears whole or
    not at all.

    Args:
        task: is left in evaluation mode. One that has neither samples nor audits writes nothing.
        data: after `setup`.
        folder: replaced if it exists.
        count: how many items, always the same ones.
    """
    unfinished, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    shutil.rmtree(unfinished, ignore_errors=True)  # what a killed run left
    shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        rate = task.frontend.in_spec.sample_rate
        items: Any = data.val_set
        count = 0 if type(task).sample is Task.sample else min(count, len(items))
        entries = [_write(task.item_sample(items[i], SECONDS), rate, unfinished, i) for i in range(count)]
        entries += [_write_audit(audit, unfinished) for audit in audits(task, data)]
        if not entries:
            return
        write_atomic(unfinished / "samples.json", json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def log_samples(folder: Path, loggers: Iterable[Logger], step: int) -> None:
    """Give what `save_samples` wrote, if it did, to each W&B logger: pictures, sounds, and the MIDI as files.

    Args:
        folder: of `save_samples`.
        loggers: any; the others are left alone.
        step: of the run, that they are logged at.
    """
    chosen = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    if not chosen or not (folder / "samples.json").is_file():
        return
    import wandb

    media: dict[str, Any] = {"trainer/global_step": step}
    for index, entry in enumerate(json.loads((folder / "samples.json").read_text("utf-8"))):
        key = f"audits/{entry['name']}" if entry["kind"] == "audit" else f"samples/{index} picture"
        media[key] = wandb.Image(str(folder / entry["picture"]), caption=f"{entry['name']}: {entry['description']}")
        for sound in entry["sounds"]:
            media[f"samples/{index} {sound['title']}"] = wandb.Audio(str(folder / sound["file"]), caption=entry["name"])
    for logger in chosen:
        logger.experiment.log(media)
        for path in sorted(folder.glob("*.mid")):
            logger.experiment.save(str(path), base_path=str(folder.parent), policy="now")


def _write(sample: Sample, rate: int, folder: Path, index: int) -> dict[str, Any]:
    """Files of one sample; returns its entry in the manifest."""
    from soundfile import write

    has_notes = bool(len(sample.reference) or len(sample.estimate))
    sounds, missing = dict(sample.sounds), None
    if has_notes:
        try:
            longest = max([len(sound) for sound in sounds.values()], default=round(SECONDS * rate))
            voice = Voice(clean(sample.estimate))
            sounds["transcription"] = Sampler(None, rate).render([voice], longest)
        except UserError as error:  # tinysoundfont may be missing, and the network too
            missing = f"The transcription is not rendered: {error}."

    files = {title: f"{index}-{_safe(title)}.flac" for title in sounds}
    for title, sound in sounds.items():
        # Scaled as a 16-bit input was, so that it comes back bit by bit.
        pcm, _ = to_int16(np.nan_to_num(sound, posinf=1, neginf=-1))  # (N,)
        packed = io.BytesIO()  # soundfile makes another error of what a disk refuses
        write(packed, pcm, rate, subtype="PCM_16", format="FLAC")
        write_atomic(folder / files[title], packed.getvalue())
    midi = {"estimate": sample.estimate, "reference": sample.reference} if has_notes else {}
    for title, notes in midi.items():
        write_midi(folder / f"{index}-{title}.mid", notes)

    figure, description = draw(sample)
    name = f"{index}-{_safe(sample.name)}.png"
    write_atomic(folder / name, png(figure))
    return {
        "kind": "sample",
        "name": sample.name,
        "description": description,
        "picture": name,
        "sounds": [{"title": title, "file": file} for title, file in files.items()],
        "midi": [{"title": title, "file": f"{index}-{title}.mid"} for title in midi],
        "missing": missing,
    }


def _write_audit(audit: Audit, folder: Path) -> dict[str, Any]:
    """The file of one audit; returns its entry in the manifest."""
    name = f"audit-{_safe(audit.name)}.png"
    write_atomic(folder / name, png(audit.figure))
    entry = {"kind": "audit", "name": audit.name, "description": audit.description, "picture": name}
    return entry | {"sounds": [], "midi": [], "missing": None}


def _safe(name: str) -> str:
    """A name as a part of a file's name: letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")[:50] or "item"

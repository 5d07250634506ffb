"""The commands of README and docs, taken from their text and run in one folder, cut to seconds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import soundfile

from launcher.cloud import PLANTED
from parts import sound_of
from processes import command, forked
from training import RENDERED, make_medley
from wavespace.data.files.midi import write_midi

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "docs/reports.md", "docs/runpod.md"]
SMALL_DATA = [word for word in RENDERED if word.startswith("data.")]
SMALL_NET = ["model.width=4", "model.dilations=[[1,1],[12,1]]"]
ELSEWHERE = ("me/project/ab12cd34", "runs/launches/")
"""What only an account has: W&B's sweeps, and a launch, which a journey of its own makes."""


def blocks(language: str) -> list[str]:
    """Every block of a language, of all documents, in their order."""
    texts = [(ROOT / name).read_text() for name in DOCUMENTS]
    return [
        block for text in texts for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def commands() -> list[list[str]]:
    """The words of each command line of the documents."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def cut(words: list[str], medley: list[str]) -> list[str]:
    """A command with settings that make it take seconds; what it is about stays."""
    verb, *given = words
    lists = [word for word in given if "," in word and "[" not in word]
    shorter = {word: word.split(",")[0] for word in lists} | {word: ",".join(word.split(",")[:2]) for word in lists[:1]}
    words = [shorter.get(word, word) for word in words]
    if verb not in ("train", "check", "prepare"):
        return words
    of_medley = any("medley" in word for word in given)
    if of_medley:
        front = ["frontend=log_frequency"] if "experiment" not in " ".join(given) else []
        small = [*front, *(word for word in medley if word.startswith(("data.", "frontend.")))]
    elif "data=audio_folder" in given:
        small = ["data.seconds=1.0", "data.batch_size=1", "data.stores=stores"]
    else:
        small = [*SMALL_DATA, *SMALL_NET]
    return [*words, *small, *(["trainer.max_steps=2", "trainer.val_check_interval=2"] if verb != "prepare" else [])]


def make_what_they_name(folder: Path) -> list[str]:
    """What the reader has: a recording, and a folder of recordings with their notes; returns settings of a dataset."""
    (folder / "recordings").mkdir()
    for i, name in enumerate(("song", *(f"recordings/{letter}" for letter in "abcd"))):
        notes = np.array([(0.5 + k, 1.2 + k, 60 + i + k, 90) for k in range(5)])
        soundfile.write(folder / f"{name}.flac", sound_of(notes, 22_050, 6.0), 22_050)
        if name != "song":
            write_midi(folder / f"{name}.mid", notes)
    return make_medley(folder / "medley")


def test_every_command_of_the_documents_does_what_it_says(tmp_path: Path) -> None:
    medley = make_what_they_name(tmp_path)
    account = PLANTED | {"WAVESPACE_IMAGE": "you/wavespace:1"}  # as docs/runpod.md says to set
    tried = []
    for program, *words in commands():
        if program != "wavespace" or any(place in word for place in ELSEWHERE for word in words):
            continue
        line = cut(words, medley)
        if "hydra/launcher=runpod" in line:
            line.append("hydra.launcher.dry_run=true")
        line = [str(next(tmp_path.glob("runs/*/*/status.json")).parent) if "0123" in word else word for word in line]
        done = command(*line, cwd=tmp_path, **account)
        assert done.returncode == 0, f"wavespace {shlex.join(line)}\n{done.stdout}{done.stderr}"
        tried.append(words[0])
    assert {*tried} == {"check", "train", "transcribe", "evaluate", "report", "prepare"}
    assert len(tried) == len(commands()) - len(ELSEWHERE)  # each of which stands in the documents once
    made = ["song.mid", "song.png", "runs/demo/report.html", "runs/medley_unet/report.html", "both/report.html"]
    assert not [name for name in made if not (tmp_path / name).is_file()]


def _execute(code: str) -> None:
    exec(code, {"__name__": "__main__"})


def test_the_python_of_the_documents_runs_after_their_commands(tmp_path: Path) -> None:
    make_what_they_name(tmp_path)
    made = command(*cut(["train", "experiment=demo"], []), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    code = "\n".join(blocks("python")).replace('"val/l1_db"', '"val/note_f1_onset"')
    done = forked(_execute, code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

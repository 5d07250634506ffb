"""The recipes of CONTRIBUTING.md, each copied into an empty folder and followed word for word, cut to seconds."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from parts import sound_of
from processes import command, forked

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
RECIPES = {"A model": "mynet", "A task": "mytask", "A dataset": "mydata", "A front-end": "myfrontend"}
SMALL = ["data.seconds=1.0", "data.batch_size=2", "data.workers=0"]
SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu"]
RATE = 22_050


def blocks(heading: str) -> list[tuple[str, str]]:
    """Return language and text of each code block of a section."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def cut(words: list[str]) -> list[str]:
    """Add settings that make a command take seconds."""
    if words[0] not in ("check", "prepare", "train"):
        return words
    few = ["data.val_items=2", "data.test_items=2"] if "data=synthetic" in words else []
    return [*words, *SMALL, *few, *(SHORT if words[0] == "train" else [])]


def make_recordings(folder: Path) -> None:
    """Write what the reader of the recipe for a dataset has: recordings in three splits, with notes as CSV."""
    for number, split in enumerate(("train", "val", "test")):
        (folder / split).mkdir(parents=True)
        notes = np.array([(0.2 + k, 0.9 + k, 60 + 5 * number + k, 90) for k in range(3)])
        np.savetxt(folder / split / "a.csv", notes, delimiter=",")
        soundfile.write(folder / split / "a.wav", sound_of(notes, RATE, 4.0), RATE)


def execute(code: str) -> None:
    """Run code as Python does that is started in the current folder."""
    sys.path.insert(0, "")
    exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("heading", RECIPES)
def test_a_recipe_works_word_for_word(heading: str, tmp_path: Path) -> None:
    package, verbs = RECIPES[heading], []
    make_recordings(tmp_path / "recordings")
    for language, text in blocks(heading):
        file = re.match(r"# (\S+/\S+)\n", text)
        if file:
            (tmp_path / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file[1]).write_text(text)
        elif language == "python":
            done = forked(execute, text, cwd=tmp_path)
            assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr
        for line in text.splitlines() if language == "sh" else ():
            program, *words = shlex.split(line)
            done = command(*cut(words), cwd=tmp_path)
            assert (program, done.returncode) == ("wavespace", 0), f"{line}\n{done.stdout}{done.stderr}"
            verbs.append(words[0])
    assert {"check", "train", "evaluate", "export"} <= set(verbs)
    assert (tmp_path / f"{package}.ckpt").is_file()

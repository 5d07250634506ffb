"""`wavespace evaluate`: the metrics of the run itself, and metrics on other data."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from parts import save, small_task, sound_of
from training import RENDERED, TRAINER, make_medley
from wavespace.commands import evaluate
from wavespace.config import compose
from wavespace.data.files.midi import write_midi
from wavespace.data.synthesis.rendered import Rendered
from wavespace.errors import BadInput, ConfigError, Incompatible
from wavespace.runfolder import RunFolder
from wavespace.training.run import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    cfg = compose([*RENDERED, *TRAINER, f"runs={tmp_path_factory.mktemp('runs')}"])
    run(cfg)
    return RunFolder.of(cfg)


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    evaluate.main(["--json", *arguments])
    return json.loads(capsys.readouterr().out)


def test_figures_equal_those_of_the_run(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, str(finished.path))
    kept = {key.removeprefix("test/"): value for key, value in finished.status()["metrics"].items() if "test/" in key}
    assert {name: found[name] for name in kept} == pytest.approx(kept, abs=1e-9)
    facts = {name: value for name, value in found.items() if name not in kept}
    assert facts.pop("notes") > 0
    assert facts == {"split": "test", "recordings": 2, "seconds": 8.0}
    assert figures(capsys, str(finished.best)) == found


def test_other_data_give_other_figures(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    own = figures(capsys, str(finished.path))
    assert figures(capsys, str(finished.path), "data.piece_seconds=3.0")["loss"] != own["loss"]
    assert figures(capsys, str(finished.path), "--split", "val")["loss"] != own["loss"]


def test_data_without_the_labels_is_refused(finished: RunFolder, tmp_path: Path) -> None:
    make_medley(tmp_path)
    with pytest.raises(Incompatible, match="notes"):
        evaluate.main([str(finished.path), "data=medley_solos", f"data.root={tmp_path}"])


def test_a_rate_that_the_checkpoint_does_not_hear_is_refused(finished: RunFolder) -> None:
    with pytest.raises(Incompatible, match="22050"):
        evaluate.main([str(finished.path), "data.sample_rate=16000"])


def test_a_typo_is_refused(finished: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'data\.seed'"):
        evaluate.main([str(finished.path), "data.sede=3"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    task = small_task("multi_resolution", "peaks", "piano_roll")
    return str(save(task, tmp_path_factory.mktemp("model") / "best.ckpt"))


@pytest.fixture
def folder(tmp_path: Path) -> list[str]:
    """Three recordings, each a note; the last has a second one in its score that is not heard."""
    (tmp_path / "own").mkdir()
    for number in range(3):
        score = np.array([[0.5 + 0.1 * number, 1.5, 76.0, 90.0], [2.2, 2.6, 40.0, 80.0]])
        audio = sound_of(score[:1], 22_050, 3.0)
        soundfile.write(tmp_path / "own" / f"{number}.wav", audio, 22_050)
        write_midi(tmp_path / "own" / f"{number}.mid", score if number == 2 else score[:1])
    return ["data=audio_folder", f"data.folder={tmp_path / 'own'}", f"data.stores={tmp_path / 'stores'}"]


def test_a_named_folder_is_scored_whole_unless_a_split_is_asked_for(
    checkpoint: str, folder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = figures(capsys, checkpoint, *folder, "--per-file")
    assert [whole[key] for key in ("split", "recordings", "notes", "seconds")] == ["all", 3, 4, 9.0]
    files: Any = whole["files"]
    assert [(row["recording"], row["notes"]) for row in files] == [("0.wav", 1), ("1.wav", 1), ("2.wav", 2)]
    for name in ("note_f1_onset", "note_recall_onset", "frame_f1", "loss"):
        assert np.mean([row[name] for row in files]) == pytest.approx(whole[name])
    assert files[2]["note_recall_onset"] < files[0]["note_recall_onset"] == 1
    asked = figures(capsys, "--split", "test", checkpoint, "data.splits=[0.4,0.3,0.3]", *folder)
    assert (asked["split"], asked["recordings"]) == ("test", 1)


def test_a_table_of_recordings_is_read_by_pandas_and_by_people(
    checkpoint: str, folder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([checkpoint, "--csv", *folder, "--per-file"])
    table = pd.read_csv(io.StringIO(capsys.readouterr().out), dtype={"recording": str})
    assert table["recording"].tolist() == ["0.wav", "1.wav", "2.wav", "mean"]
    means = table.drop(columns=["recording", "notes", "seconds"])
    np.testing.assert_allclose(means.iloc[:3].mean(), means.iloc[3], rtol=1e-6)
    evaluate.main([checkpoint, *folder, "--per-file"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["notes", "seconds"]
    assert lines[3].split()[:3] == ["2.wav", "2", "3.000"]
    assert {len(line) for line in lines[:4]} == {len(lines[0])}
    assert len(lines[3].split()) == len(lines[0].split()) + 1
    assert lines[5].split() == ["split", "all"]


def test_recordings_without_notes_are_told(
    checkpoint: str, folder: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_midi(tmp_path / "own" / "1.mid", np.zeros((0, 4)))
    evaluate.main([checkpoint, *folder])
    assert "1 of 3 recordings have no notes" in capsys.readouterr().err


def test_columns_stay_apart_whatever_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate._print_text([{"recording": "long.wav", "notes": 1321, "seconds": 1140.0, "loss": 12.28}], {})
    assert capsys.readouterr().out.splitlines()[1].split() == ["long.wav", "1321", "1140.000", "12.280"]


def test_scores_that_are_named_are_scored_whole_unless_their_splits_are_official(tmp_path: Path) -> None:
    for number in range(5):
        write_midi(tmp_path / f"{number}.mid", np.array([[0.0, 1.0, 60.0 + number, 80.0]]))
    data = Rendered(midi=str(tmp_path), piece_seconds=1.0, test_pieces=1, stores=str(tmp_path / "stores"))
    assert not data.is_official()
    assert [item.name for item in data.whole()] == [f"{number}-{number}.mid" for number in range(5)]  # type: ignore[attr-defined]
    assert Rendered().is_official()
    (tmp_path / "maestro-v3.0.0.csv").touch()
    assert data.is_official()
    with pytest.raises(BadInput, match="--split val or test"):
        Rendered().whole()

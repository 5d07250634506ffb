"""A folder of recordings and MAESTRO, through the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavespace.data.notes import write_midi
from wavespace.data.recordings import AudioFolder, Maestro
from wavespace.errors import BadInput

RATE = 8_000


def record(path: Path, onset: float, seconds: float = 3.0, rate: int = RATE) -> None:
    """A tone of MIDI pitch 69 from `onset` on for a second, and its score."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, np.where((time >= onset) & (time < onset + 1), 0.5 * np.sin(2 * np.pi * 440 * time), 0), rate)
    write_midi(path.with_suffix(".mid"), np.array([[onset, onset + 1.0, 69.0, 80.0]]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(10):
        record(tmp_path / "music" / f"{i}.wav", onset=0.1 * i, rate=RATE if i % 2 else 2 * RATE)
    soundfile.write(tmp_path / "music" / "without score.wav", np.zeros(RATE), RATE)
    return tmp_path / "music"


def ready(folder: Path, **options: object) -> AudioFolder:
    data = AudioFolder(
        folder=str(folder), sample_rate=RATE, seconds=0.5, stores=str(folder.parent / "stores"), **options
    )  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def test_recordings_with_a_score_are_split_and_sound_where_their_notes_are(folder: Path) -> None:
    data = ready(folder)
    facts = data.describe()
    assert [facts[split]["recordings"] for split in ("train", "val", "test")] == [8, 1, 1]
    for items in (data.val_set, data.test_set):
        item = items[0]
        sound = np.flatnonzero(np.abs(item.audio.astype(float)) > 1000) / RATE
        ((onset, offset, pitch, velocity),) = item.notes
        assert (pitch, velocity) == (69, 80)
        assert sound[0] == pytest.approx(onset, abs=0.01)
        assert sound[-1] == pytest.approx(offset, abs=0.01)


def test_windows_agree_with_their_labels(folder: Path) -> None:
    data = ready(folder)
    for position in range(40):
        item = data.train_set[position]
        time = np.arange(len(item.audio)) / RATE
        labelled = np.zeros(len(time), bool)
        for onset, offset, _, _ in item.notes:
            labelled |= (time >= onset - 0.01) & (time < offset + 0.01)
        assert not (np.abs(item.audio.astype(float))[~labelled] > 1000).any()


def test_a_store_is_built_once_and_anew_when_a_file_changes(folder: Path) -> None:
    first = ready(folder).store.folder
    assert ready(folder).store.folder == first
    record(folder / "0.wav", onset=1.5, seconds=4.0)
    assert ready(folder).store.folder != first


def test_an_empty_split_is_told_when_it_is_asked_for(folder: Path) -> None:
    data = ready(folder, splits=(0.0, 0.0, 1.0))
    assert len(data.test_set) == 10  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="its train split has no recordings"):
        data.train_dataloader()


def test_folders_without_anything_to_use_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no audio files with a MIDI file"):
        ready(tmp_path)
    with pytest.raises(ValueError, match="sum to 1"):
        AudioFolder(folder=str(tmp_path), splits=(0.5, 0.1, 0.1))
    with pytest.raises(BadInput, match=r"no maestro-v\*.csv"):
        Maestro(root=str(tmp_path)).prepare_data()


def test_maestro_keeps_its_splits_and_counts_what_is_absent(tmp_path: Path) -> None:
    rows = ["split,midi_filename,audio_filename,duration"]
    for name, split in (("a", "train"), ("b", "validation"), ("c", "test")):
        record(tmp_path / "2004" / f"{name}.wav", onset=0.5)
        rows.append(f"{split},2004/{name}.mid,2004/{name}.wav,3.0")
    rows.append("train,2004/gone.mid,2004/gone.wav,3.0")
    (tmp_path / "maestro-v3.0.0.csv").write_text("\n".join(rows) + "\n")
    data = Maestro(root=str(tmp_path), sample_rate=RATE, stores=str(tmp_path / "stores"))
    data.prepare_data()
    data.setup()
    assert data.test_set[0].name == "2004/c.wav"
    facts = data.describe()
    assert facts["rows of the metadata without their files"] == 1
    assert all(facts[split]["recordings"] == 1 for split in ("train", "val", "test"))
    assert "NC" in data.store.manifest["licence"]


def test_the_real_maestro_excerpt_is_read(shared_data: Path, tmp_path: Path) -> None:
    data = Maestro(root=str(shared_data / "real" / "maestro-v3.0.0"), stores=str(tmp_path))
    data.prepare_data()
    data.setup()
    assert data.store.frames.tolist() == [2 * 22_050]  # the one WAV, cut to two seconds: the file counts, not the CSV
    assert data.describe()["rows of the metadata without their files"] == 1_275

"""A folder of recordings and MAESTRO, through the store."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datasets import PIECES, RATE, maestro, record
from wavespace.data.audio_folder import AudioFolder
from wavespace.data.maestro import Maestro
from wavespace.data.sources import maestro_metadata as metadata
from wavespace.errors import BadInput, Incompatible


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(10):
        record(tmp_path / "music" / f"{i}.wav", onset=0.1 * i, rate=RATE if i % 2 else 2 * RATE)
    soundfile.write(tmp_path / "music" / "without score.wav", np.zeros(RATE), RATE)
    return tmp_path / "music"


def ready(place: Path, **options: object) -> AudioFolder:
    defaults = {"folder": str(place), "sample_rate": RATE, "seconds": 0.5, "stores": str(place.parent / "stores")}
    data = AudioFolder(**(defaults | options))  # type: ignore[arg-type]
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


def opened(root: Path, **options: object) -> Maestro:
    stores = str(root.parent / "stores")
    data = Maestro(root=str(root), **({"sample_rate": RATE, "seconds": 0.5, "stores": stores} | options))  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def test_maestro_keeps_its_splits_and_counts_what_is_absent(tmp_path: Path) -> None:
    root = maestro(tmp_path / "m", [("a", "A", "train"), ("b", "B", "validation"), ("c", "C", "test")])
    data = opened(root)
    assert data.test_set[0].name == "2004/c.wav"
    facts = data.describe()
    assert facts["rows of the metadata without their files"] == 1
    assert all(facts[split]["recordings"] == facts[split]["notes"] == 1 for split in ("train", "val", "test"))
    assert "NC" in data.store.manifest["licence"]


def test_a_piece_on_both_sides_leaves_the_side_that_is_not_held_out(tmp_path: Path) -> None:
    root = maestro(tmp_path / "m", PIECES)
    record(root / "2004" / "d.wav", onset=0.05 * 6)  # the audio of g, under another name and title
    data = opened(root)
    left = {split: [data.store.names[row][5] for row in rows] for split, rows in data.in_split.items()}
    assert left == {"train": ["a"], "val": ["e", "g"], "test": ["h", "i", "j"]}
    facts = data.describe()
    assert facts["train recordings left out, whose piece or audio is also held out"] == (
        "3 (2004/b.wav, 2004/c.wav, 2004/d.wav)"
    )
    assert facts["val recordings left out, whose piece or audio is also held out"] == "1 (2004/f.wav)"
    assert {item.name.split(" at ")[0] for item in map(data.train_set.__getitem__, range(20))} == {"2004/a.wav"}

    kept = opened(root, leaks="keep")
    assert [len(rows) for rows in kept.in_split.values()] == [4, 3, 3]
    assert kept.store.folder == data.store.folder
    assert "train recordings kept, whose piece or audio is also held out" in kept.describe()


def test_the_official_splits_leak_five_pieces_and_no_more(shared_data: Path) -> None:
    rows = metadata(shared_data / "real" / "maestro-v3.0.0" / "maestro-v3.0.0.csv")
    assert Counter(row.split for row in rows) == {"train": 962, "validation": 137, "test": 177}
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.piece, set()).add(row.split)
    assert sum(len(found) > 1 for found in splits.values()) == 5


def test_a_share_is_a_part_of_a_larger_share_and_of_every_split(shared_data: Path, tmp_path: Path) -> None:
    table = shared_data / "real" / "maestro-v3.0.0" / "maestro-v3.0.0.csv"
    (tmp_path / table.name).write_bytes(table.read_bytes())

    def names(**options: object) -> dict[str, str]:
        return {row.audio: row.split for row in Maestro(root=str(tmp_path), **options).wanted()}  # type: ignore[arg-type]

    tenth, half = names(share=0.1), names(share=0.5)
    assert Counter(tenth.values()) == {"train": 97, "validation": 14, "test": 18}
    assert tenth.items() <= half.items()
    assert Counter(names(only=("test",)).values()) == {"test": 177}
    assert len(names()) == 1276
    for bad in ({"only": ()}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(ValueError, match="one split at least, and a share"):
            Maestro(**bad)  # type: ignore[arg-type]


def test_a_recording_shorter_than_the_metadata_says_is_told(tmp_path: Path) -> None:
    root = maestro(tmp_path / "m", PIECES[:1] + PIECES[-1:])
    table = root / "maestro-v3.0.0.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("j.wav,3.0", "j.wav,13.5"), encoding="utf-8")
    assert opened(root).describe()["shorter by more than 10 s than the metadata says"] == "1 (2004/j.wav)"


def test_a_store_alone_is_enough_and_another_one_is_refused(folder: Path, tmp_path: Path) -> None:
    root = maestro(tmp_path / "m", PIECES)
    store = opened(root).store.folder
    shutil.rmtree(root)
    assert len(opened(store).in_split["test"]) == 3
    with pytest.raises(Incompatible, match=r"a store at 8000 Hz.*; set data.sample_rate=8000"):
        opened(store, sample_rate=22_050)
    with pytest.raises(BadInput, match="is a store of data=maestro, not of data=audio_folder"):
        ready(store)


def test_validation_is_whole_recordings_or_so_many_windows(folder: Path) -> None:
    assert len(ready(folder, splits=(0.5, 0.4, 0.1)).val_set[0].audio) == 3 * RATE
    data = ready(folder, splits=(0.5, 0.4, 0.1), val_windows=6)
    items = [data.val_set[i] for i in range(6)]
    assert [len(item.audio) for item in items] == [RATE // 2] * 6
    assert len({item.name for item in items}) == 6
    assert len(data.test_set[0].audio) == 3 * RATE
    with pytest.raises(ValueError, match="val_windows is 0; it must be at least 1"):
        ready(folder, val_windows=0)


def test_another_seed_is_another_split(folder: Path) -> None:
    halves = [ready(folder, splits=(0.5, 0.0, 0.5), split_seed=seed).in_split["train"].tolist() for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]


def test_balance_is_by_time_or_by_recording(folder: Path) -> None:
    record(folder / "long.wav", onset=0.5, seconds=60.0)

    def share(balance: str) -> float:
        data = ready(folder, splits=(1.0, 0.0, 0.0), balance=balance)
        return float(np.mean(["long" in data.train_set[position].name for position in range(300)]))

    assert share("recording") == pytest.approx(1 / 11, abs=0.01)
    assert share("time") == pytest.approx(59.5 / (59.5 + 10 * 2.5), abs=0.08)
    with pytest.raises(ValueError, match="balance is notes; it can be time, recording"):
        ready(folder, balance="notes")


def test_the_real_maestro_excerpt_is_read(shared_data: Path, tmp_path: Path) -> None:
    data = Maestro(root=str(shared_data / "real" / "maestro-v3.0.0"), stores=str(tmp_path))
    data.prepare_data()
    data.setup()
    assert data.store.frames.tolist() == [2 * 22_050]  # the one WAV, cut to two seconds: the file counts, not the CSV
    facts = data.describe()
    assert facts["rows of the metadata without their files"] == 1_275
    assert facts["shorter by more than 10 s than the metadata says"].startswith("1 (2018/")

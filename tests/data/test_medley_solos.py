"""Medley-solos-DB: the official splits, parts of the data, and windows that depend on nothing but their position."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from training import make_medley
from wavespace.data.files.audio import read_audio
from wavespace.data.sources.medley_solos import CLIP_SECONDS, INSTRUMENTS, METADATA, MedleySolos
from wavespace.errors import BadInput
from wavespace.units import to_int16


@pytest.fixture(scope="module")
def medley(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips a split, of as many songs; one row of the metadata has no clip."""
    root = tmp_path_factory.mktemp("medley")
    make_medley(root, clips=6)
    return root


def ready(root: Path, **settings: object) -> MedleySolos:
    defaults: dict[str, object] = {"sample_rate": 22_050, "seconds": 0.5, "stores": str(root / "stores")}
    data = MedleySolos(root=str(root), **(defaults | settings))  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def clips(data: MedleySolos, split: str) -> list[str]:
    """Names of the clips of a split."""
    return [data.store.names[row] for row in data.in_split[split]]


def songs(data: MedleySolos, split: str) -> set[int]:
    return set(data.store.labels["song"][data.in_split[split]].tolist())


def metadata(root: Path, *rows: str, header: str = "subset,instrument,instrument_id,song_id,uuid4") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / METADATA).write_text("\n".join([header, *rows]) + "\n")


def test_official_splits_are_the_metadata_s(medley: Path) -> None:
    data = ready(medley)
    facts = data.describe()
    assert facts["rows of the metadata without their file"] == 1
    for split, subset in (("train", "training"), ("val", "validation"), ("test", "test")):
        assert facts[split]["recordings"] == 6
        assert facts[split]["songs"] == 6
        assert facts[split]["hours"] == round(6 * CLIP_SECONDS / 3600, 4)
        for row, name in zip(data.in_split[split], clips(data, split)):
            instrument = int(data.store.labels["instrument"][row])
            assert name.startswith(f"Medley-solos-DB_{subset}-{instrument}_")
            assert facts[split][INSTRUMENTS[instrument]] == 1


def test_a_flat_folder_with_the_old_header_is_the_same_data(medley: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in medley.rglob("Medley*"):
        shutil.copy(file, flat)
    text = (flat / METADATA).read_text()
    (flat / METADATA).write_text("\ufeff" + text.replace("song_id", "track_id"), encoding="utf-8")
    theirs, ours = ready(medley), ready(flat)
    for split in ("train", "val", "test"):
        assert clips(ours, split) == clips(theirs, split)
    for label, values in theirs.store.labels.items():
        np.testing.assert_array_equal(ours.store.labels[label], values)
    item = ours.train_set[5]
    np.testing.assert_array_equal(item.audio, theirs.train_set[5].audio)


def test_a_folder_without_metadata_says_what_it_wants(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match=f"{root}: there is no {METADATA} in it; set data.root"):
            MedleySolos(root=str(root)).prepare_data()


def test_metadata_without_clips_says_how_to_go_on(tmp_path: Path) -> None:
    metadata(tmp_path, "training,x,0,1,a", "test,x,0,2,b")
    with pytest.raises(BadInput, match=r"none of the 2 clips of .* data\.root .* wavespace prepare"):
        ready(tmp_path)


def test_a_part_of_the_data_without_a_split_says_how_to_go_on(medley: Path, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    for file in (medley / "annotation" / METADATA, *medley.rglob("*training-*.wav")):
        shutil.copy(file, tmp_path / "part")
    with pytest.raises(BadInput, match=r"no clips for the val split, of 6 in all; .* data.splits=songs"):
        ready(tmp_path / "part")


def test_a_clip_that_is_cut_off_is_named(medley: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(medley, tmp_path / "copied", ignore=shutil.ignore_patterns("stores")))
    clip = sorted(copied.rglob("*.wav"))[3]
    clip.write_bytes(clip.read_bytes()[:-4])
    with pytest.raises(BadInput, match=f"{clip.name}: has 524328 bytes, and every clip has 524332"):
        ready(copied)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ("training,x,0", "'song_id': None"),
        ("training,x,zero,1,a", "zero"),
        ("training,x,8,1,a", "'8'"),
        ("training,x,-1,1,a", "'-1'"),
        ("trainin,x,0,1,a", "'trainin'"),
    ],
)
def test_a_malformed_row_is_shown(row: str, shown: str, tmp_path: Path) -> None:
    metadata(tmp_path, "training,x,0,1,a", row)
    with pytest.raises(BadInput, match=f"{METADATA}: a row is .*{shown}.* expected columns subset"):
        ready(tmp_path)


def test_another_csv_and_a_binary_file_are_a_sentence(tmp_path: Path) -> None:
    metadata(tmp_path, "1,2", header="a,b")
    with pytest.raises(BadInput, match="expected columns subset"):
        ready(tmp_path)
    (tmp_path / METADATA).write_bytes(b"subset,instrument_id\n\xff\xfe\x00\n")
    with pytest.raises(BadInput, match="can't be read as CSV"):
        ready(tmp_path)


@pytest.fixture(scope="module")
def songbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four songs each of two instruments, three clips a song."""
    root = tmp_path_factory.mktemp("songbook")
    make_medley(root, clips=8)
    table = root / "annotation" / METADATA
    header, *rows = table.read_text().splitlines()
    changed = []
    for number, row in enumerate(rows[:-1]):
        subset, name, instrument, _, uuid = row.split(",")
        changed.append(",".join([subset, name, instrument, f"{number % 8:03d}", uuid]))
    table.write_text("\n".join([header, *changed]) + "\n")
    for path in list(root.rglob("*.wav")):  # instruments 0-7 become 0 and 1: four songs each
        subset, rest = path.stem.split("_")[1].split("-"), path.stem.split("_")[2]
        path.rename(path.with_name(f"Medley-solos-DB_{subset[0]}-{int(subset[1]) % 2}_{rest}.wav"))
    text = table.read_text()
    for instrument in range(2, 8):
        text = text.replace(f",x,{instrument},", f",x,{instrument % 2},")
    table.write_text(text)
    return root


@pytest.mark.parametrize("seed", [0, 1, -1])
def test_splits_by_song_share_no_song_and_lose_no_clip(seed: int, songbook: Path) -> None:
    data = ready(songbook, splits="songs", seed=seed)
    held = {split: songs(data, split) for split in ("train", "val", "test")}
    assert [len(held[split]) for split in ("train", "val", "test")] == [4, 2, 2]  # one song of each instrument
    assert not held["train"] & held["val"]
    assert not held["train"] & held["test"]
    assert not held["val"] & held["test"]
    names = sorted(name for split in held for name in clips(data, split))
    assert names == sorted(path.stem for path in songbook.rglob("*.wav"))
    again = ready(songbook, splits="songs", seed=seed + 5)
    assert all(clips(again, split) == clips(data, split) for split in held)


def test_a_store_serves_both_splits_and_needs_no_clips(songbook: Path) -> None:
    by_song = ready(songbook, splits="songs")
    assert ready(songbook, leaks="keep").store.folder == by_song.store.folder
    data = MedleySolos(root=str(by_song.store.folder), sample_rate=22_050, seconds=0.5, splits="songs")
    data.prepare_data()
    data.setup()
    assert clips(data, "test") == clips(by_song, "test")
    np.testing.assert_array_equal(data.test_set[0].audio, by_song.test_set[0].audio)


def test_a_song_on_both_sides_leaves_training(songbook: Path) -> None:
    with pytest.raises(BadInput, match="no clips for the train split"):
        ready(songbook)  # each song is in each official split here
    facts = ready(songbook, leaks="keep").describe()
    told = [fact for fact in facts if fact.startswith("train recordings kept, whose piece or audio is also held out")]
    assert len(told) == 1
    assert facts[told[0]].startswith("8 (Medley-solos-DB_training-0_")


def test_windows_are_a_function_of_their_position(medley: Path) -> None:
    data = ready(medley)
    items = [data.train_set[position] for position in (7, 3, 7)]
    np.testing.assert_array_equal(items[0].audio, items[2].audio)
    assert items[0].name == items[2].name
    assert not np.array_equal(items[0].audio, items[1].audio)
    other = ready(medley, seed=1)
    names = [[split.train_set[i].name.split(" at ")[0] for i in range(12)] for split in (data, other)]
    assert names[0] != names[1]
    epochs = [sorted(names[0][:6]), sorted(names[0][6:])]
    assert epochs[0] == epochs[1] == sorted(clips(data, "train"))


def test_classes_come_as_often_as_each_other_when_balanced(songbook: Path) -> None:
    data = ready(songbook, leaks="keep", balance="instrument")
    rare = data.in_split["train"][:3]  # two clips of one class, one of the other: four windows are two of each
    data.in_split["train"] = rare
    classes = data.store.labels["instrument"][rare]
    assert sorted(np.bincount(classes).tolist()) == [1, 2]
    windows = type(data.train_set)(data.store, rare, data.spec.samples, 0, classes)
    drawn = [windows[position] for position in range(40)]
    assert np.bincount([item.labels["instrument"] for item in drawn]).tolist() == [20, 20]
    names = [item.name.split(" at ")[0] for item in drawn]
    counts = sorted(names.count(data.store.names[row]) for row in rare)
    assert counts == [10, 10, 20]
    assert data.train_set[0].labels["instrument"] != data.train_set[1].labels["instrument"]


def test_validation_windows_are_the_middle_and_training_windows_lie_anywhere(medley: Path) -> None:
    data = ready(medley, sample_rate=44_100)
    audio = {path.stem: to_int16(read_audio(path, 44_100))[0] for path in medley.rglob("*.wav")}
    start = (131_072 - 22_050) // 2
    np.testing.assert_array_equal(data.val_set[0].audio, audio[clips(data, "val")[0]][start : start + 22_050])

    starts = []
    for item in (data.train_set[position] for position in range(30)):
        assert len(item.audio) == data.spec.samples
        clip = audio[item.name.split(" at ")[0]]
        windows = np.lib.stride_tricks.sliding_window_view(clip, 8)
        starts.append(int(np.flatnonzero((windows == item.audio[:8]).all(1))[0]))
        np.testing.assert_array_equal(item.audio, clip[starts[-1] :][:22_050])
    assert min(starts) < 0.2 * (131_072 - 22_050) < 0.8 * (131_072 - 22_050) < max(starts)


def test_workers_change_nothing(medley: Path) -> None:
    batches = []
    for workers in (0, 2):
        data = ready(medley, workers=workers, batch_size=3)
        loader = iter(data.train_dataloader())
        batches.append([next(loader) for _ in range(4)])
        del loader
    for ours, theirs in zip(*batches):
        assert ours.names == theirs.names
        assert torch.equal(ours.audio, theirs.audio)
        assert torch.equal(ours.labels["instrument"], theirs.labels["instrument"])
    assert batches[0][0].audio.shape == (3, 1, 11_025)
    assert batches[0][0].audio.dtype == torch.int16


def test_a_window_longer_than_the_clips_is_refused() -> None:
    for seconds in (3.0, 0.0, -1.0):
        with pytest.raises(ValueError, match=f"seconds = {seconds}: input should be"):
            MedleySolos(seconds=seconds)


def test_the_real_clips_have_the_counts_of_their_readme(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "real" / "medley-solos-db"
    stores = str(tmp_path)
    official = ready(root, seconds=2.0, stores=stores).describe()
    assert [official[split]["recordings"] for split in ("train", "val", "test")] == [15, 1, 67]
    assert official["train"]["female singer"] == 15
    assert official["val"]["flute"] == 1
    assert official["test"]["clarinet"] == 67
    assert official["rows of the metadata without their file"] == 21_571 - 83

    by_song = ready(root, seconds=2.0, splits="songs", stores=stores)
    assert sum(len(rows) for rows in by_song.in_split.values()) == 83
    assert all(len(rows) >= 10 for rows in by_song.in_split.values())
    held = [songs(by_song, split) for split in ("train", "val", "test")]
    assert len(set().union(*held)) == sum(len(part) for part in held)
    for split in ("val", "test"):
        assert set(by_song.store.labels["instrument"][by_song.in_split[split]].tolist()) == {0, 2}
    for items in (by_song.val_set, by_song.test_set):
        item = items[0]
        assert item.audio.shape == (44_100,)
        assert 0.001 < np.abs(item.audio).max() / 32768 <= 1.0

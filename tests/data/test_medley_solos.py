"""Medley-solos-DB: the official splits, parts of the data, and windows that depend on nothing but their position."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from training import make_medley
from wavespace.data.audio import read_audio
from wavespace.data.medley_solos import CLIP_SECONDS, INSTRUMENTS, METADATA, MedleySolos
from wavespace.errors import BadInput


@pytest.fixture(scope="module")
def medley(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips a split, of as many songs; one row of the metadata has no clip."""
    root = tmp_path_factory.mktemp("medley")
    make_medley(root, clips=6)
    return root


def ready(root: Path, **settings: object) -> MedleySolos:
    defaults: dict[str, object] = {"sample_rate": 22_050, "seconds": 0.5}
    data = MedleySolos(root=str(root), **(defaults | settings))  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def metadata(root: Path, *rows: str, header: str = "subset,instrument,instrument_id,song_id,uuid4") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / METADATA).write_text("\n".join([header, *rows]) + "\n")


def test_official_splits_are_the_metadata_s(medley: Path) -> None:
    data = ready(medley)
    facts = data.describe()
    assert facts["rows of the metadata without their file"] == 1
    for split, subset in (("train", "training"), ("val", "validation"), ("test", "test")):
        assert facts[split]["clips"] == 6
        assert facts[split]["songs"] == 6
        assert facts[split]["minutes"] == round(6 * CLIP_SECONDS / 60, 1)
        assert all(f"_{subset}-" in clip.path.name for clip in data.by_split[split])
        for clip in data.by_split[split]:
            assert f"_{subset}-{clip.instrument}_" in clip.path.name
            assert facts[split][INSTRUMENTS[clip.instrument]] == 1


def test_a_flat_folder_with_the_old_header_is_the_same_data(medley: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in medley.rglob("Medley*"):
        shutil.copy(file, flat)
    text = (flat / METADATA).read_text()
    (flat / METADATA).write_text("\ufeff" + text.replace("song_id", "track_id"), encoding="utf-8")
    theirs, ours = ready(medley), ready(flat)
    for split, clips in theirs.by_split.items():
        assert [(c.path.name, *c[1:]) for c in ours.by_split[split]] == [(c.path.name, *c[1:]) for c in clips]
    item = ours.train_set[5]
    np.testing.assert_array_equal(item.audio, theirs.train_set[5].audio)


def test_a_folder_without_metadata_says_what_it_wants(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match=f"{root}: there is no {METADATA} in it; set data.root"):
            MedleySolos(root=str(root)).prepare_data()


def test_metadata_without_clips_says_how_to_go_on(tmp_path: Path) -> None:
    metadata(tmp_path, "training,x,0,1,a", "test,x,0,2,b")
    with pytest.raises(BadInput, match=r"no clips for the train split \(0 clips, 2 rows .* data.splits=songs"):
        ready(tmp_path)
    with pytest.raises(BadInput, match=r"no clips for the train split .* needs three songs"):
        ready(tmp_path, splits="songs")


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


@pytest.mark.parametrize("seed", [0, 1, -1])
def test_splits_by_song_share_no_song_and_lose_no_clip(seed: int, medley: Path) -> None:
    data = ready(medley, splits="songs", seed=seed)
    songs = {split: {clip.song for clip in clips} for split, clips in data.by_split.items()}
    assert not songs["train"] & songs["val"]
    assert not songs["train"] & songs["test"]
    assert not songs["val"] & songs["test"]
    assert sorted(clip.path for clips in data.by_split.values() for clip in clips) == sorted(medley.rglob("*.wav"))
    again = ready(medley, splits="songs", seed=seed)
    assert again.by_split == data.by_split


def test_windows_are_a_function_of_their_position(medley: Path) -> None:
    data = ready(medley)
    items = [data.train_set[position] for position in (7, 3, 7)]
    np.testing.assert_array_equal(items[0].audio, items[2].audio)
    assert items[0].name == items[2].name
    assert not np.array_equal(items[0].audio, items[1].audio)
    other = ready(medley, seed=1)
    names = [[split.train_set[i].name for i in range(12)] for split in (data, other)]
    assert names[0] != names[1]
    epochs = [sorted(names[0][:6]), sorted(names[0][6:])]
    assert epochs[0] == epochs[1] == sorted(clip.path.stem for clip in data.by_split["train"])


def test_validation_windows_are_the_middle_and_training_windows_lie_anywhere(medley: Path) -> None:
    data = ready(medley, sample_rate=44_100)
    audio = read_audio(data.by_split["val"][0].path, 44_100)
    start = round((CLIP_SECONDS - 0.5) / 2 * 44_100)
    np.testing.assert_array_equal(data.val_set[0].audio, audio[start : start + 22_050])

    clips = {clip.path.stem: read_audio(clip.path, 44_100) for clip in data.by_split["train"]}
    starts = []
    for item in (data.train_set[position] for position in range(30)):
        assert len(item.audio) == data.spec.samples
        windows = np.lib.stride_tricks.sliding_window_view(clips[item.name], 8)
        starts.append(int(np.flatnonzero((windows == item.audio[:8]).all(1))[0]))
        np.testing.assert_array_equal(item.audio, clips[item.name][starts[-1] :][:22_050])
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
    assert batches[0][0].audio.dtype == torch.float32


def test_a_window_longer_than_the_clips_is_refused() -> None:
    for seconds in (3.0, 0.0, -1.0):
        with pytest.raises(ValueError, match=r"the clips are 2.97 s long"):
            MedleySolos(seconds=seconds)


def test_the_real_clips_have_the_counts_of_their_readme(shared_data: Path) -> None:
    root = shared_data / "real" / "medley-solos-db"
    official = ready(root, seconds=2.0).describe()
    assert [official[split]["clips"] for split in ("train", "val", "test")] == [15, 1, 67]
    assert official["train"]["female singer"] == 15
    assert official["val"]["flute"] == 1
    assert official["test"]["clarinet"] == 67
    assert official["rows of the metadata without their file"] == 21_571 - 83

    by_song = ready(root, seconds=2.0, splits="songs")
    clips = {split: by_song.by_split[split] for split in ("train", "val", "test")}
    assert sum(len(part) for part in clips.values()) == 83
    assert all(len(part) >= 10 for part in clips.values())
    songs = [{clip.song for clip in part} for part in clips.values()]
    assert len(set().union(*songs)) == sum(len(part) for part in songs)
    assert {clip.instrument for clip in clips["val"]} == {clip.instrument for clip in clips["test"]} == {0, 2}
    for split in (by_song.val_set, by_song.test_set):
        item = split[0]
        assert item.audio.shape == (44_100,)
        assert 0.001 < np.abs(item.audio).max() <= 1.0

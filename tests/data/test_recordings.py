"""A folder of recordings and MAESTRO, through the store."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from datasets import PIECES, RATE, maestro, record
from wavespace.data.base import NO_NOTES
from wavespace.data.files.audio import seconds_of
from wavespace.data.files.discovery import find_audio_folder, midi_files
from wavespace.data.files.discovery import maestro_metadata as metadata
from wavespace.data.files.midi import write_midi
from wavespace.data.sources.audio_folder import AudioFolder
from wavespace.data.sources.maestro import Maestro
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


def test_recordings_that_are_too_few_are_told_before_they_are_read(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        record(tmp_path / "music" / f"{count}.wav", onset=0.1)
        data = AudioFolder(folder=str(tmp_path / "music"), stores=str(tmp_path / "stores"))
        if count < 3:
            with pytest.raises(BadInput, match=f"no recordings, of {count} in all; it takes three"):
                data.unprepared()
    assert "prepared" in data.unprepared()


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


def test_every_audio_format_and_spelling_is_found_and_the_rest_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    music, elsewhere = tmp_path / "music", tmp_path / "elsewhere"
    for name in ("a.WAV", "b.Flac", "c.w64", "d.caf", "e.wave", "f.oga", "g.opus", "h.mp3", "i.aifc", "j.au"):
        record(music / "0.wav", onset=0.1)
        audio, rate = soundfile.read(music / "0.wav")
        kind = {"wave": "WAV", "oga": "OGG", "opus": "OGG", "aifc": "AIFF"}.get(
            name.split(".")[1].lower(), name[2:].upper()
        )
        opus = {"subtype": "OPUS"} if "opus" in name else {}
        soundfile.write(music / name, audio, 48_000 if opus else rate, format=kind, **opus)
        shutil.move(music / "0.mid", music / f"{name[0]}.{'MID' if name < 'e' else 'Midi'}")
    (music / "0.wav").unlink()
    record(elsewhere / "x" / "linked.wav", onset=0.2)
    (music / "link").symlink_to(elsewhere)
    (elsewhere / "x" / "loop").symlink_to(music)
    composed, apart = "caf\u00e9", "cafe\u0301"
    record(music / f"{composed}.wav", onset=0.3)
    shutil.move(music / f"{composed}.mid", music / f"{apart}.mid")
    for junk in ("._a.WAV", ".DS_Store", "__MACOSX/._b.wav", "__MACOSX/b.wav", "__MACOSX/b.mid"):
        (music / junk).parent.mkdir(exist_ok=True)
        (music / junk).write_bytes(b"junk")
    shutil.copy(music / "h.mp3", music / "a.mp3")
    shutil.copy(music / "h.mp3", music / "alone.mp3")
    shutil.copy(music / "a.MID", music / "silent film.mid")
    shutil.copy(music / "a.MID", music / "a.mid")
    (music / "phone.m4a").write_bytes(b"m4a")
    (music / "notes.txt").write_bytes(b"text")
    names = sorted(recording.name for recording in find_audio_folder(music))
    expected = ["a.WAV", "b.Flac", "c.w64", "d.caf", "e.wave", "f.oga", "g.opus", "h.mp3", "i.aifc", "j.au"]
    assert names == sorted([*expected, f"{composed}.wav", "link/x/linked.wav"])
    said = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(f"{music}: ")[2] for line in said) == [
        "1 MIDI file is left out, as another file of the same stem is read: a.mid",
        "1 MIDI file is left out, without an audio file of the same stem: silent film.mid",
        "1 audio file is left out, as another file of the same stem is read: a.mp3",
        "1 file is left out, whose format can't be read (ffmpeg -i FILE FILE.flac converts one): phone.m4a",
        "1 recording is left out, without a MIDI file of the same stem: alone.mp3",
    ]
    assert len(ready(music).store) == 12
    assert [path.name for path in midi_files(music)][-3:] == ["j.Midi", "linked.mid", "silent film.mid"]
    assert len(midi_files(music)) == 14


def test_what_is_no_folder_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere: there is no such folder"):
        find_audio_folder(tmp_path / "nowhere")
    (tmp_path / "a.wav").touch()
    with pytest.raises(BadInput, match=r"a\.wav: is a file; set data\.folder to a folder"):
        find_audio_folder(tmp_path / "a.wav")
    with pytest.raises(BadInput, match="is a folder, no recording"):
        seconds_of(tmp_path)


def test_audio_without_midi_says_what_can_be_trained_on_it(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", onset=0.1)
    (tmp_path / "a.mid").unlink()
    with pytest.raises(BadInput, match=r"but 1 without; data\.notes=false takes those, to train task=reconstruction"):
        find_audio_folder(tmp_path)


def test_a_folder_of_midi_files_says_how_they_are_rendered(tmp_path: Path) -> None:
    (tmp_path / "a.mid").touch()
    (tmp_path / "a.m4a").touch()
    with pytest.raises(BadInput, match=rf"\.flac.*data=rendered data\.midi={tmp_path}"):
        find_audio_folder(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 9, 15, 40])
def test_few_recordings_are_in_every_split_and_a_new_one_moves_few(count: int) -> None:
    def parts(names: list[str]) -> dict[str, str]:
        data = AudioFolder(folder="nowhere")
        data.store = SimpleNamespace(names=names)  # type: ignore[assignment]
        return {names[row]: split for split, rows in data.rows().items() for row in rows}

    names = [f"{i}.wav" for i in range(count)]
    before = parts(names)
    assert len(set(before.values())) == min(count, 3)
    assert sum(split == "train" for split in before.values()) >= count / 3
    for new in ("x", "y", "z"):
        after = parts([*names, new])
        assert sum(after[name] != before[name] for name in names) <= 2


def test_a_missing_split_of_two_recordings_says_what_it_takes(tmp_path: Path) -> None:
    for name in "ab":
        record(tmp_path / "music" / f"{name}.wav", onset=0.1 if name == "a" else 0.3)
    data = ready(tmp_path / "music")
    with pytest.raises(BadInput, match="its test split has no recordings, of 2 in all; it takes three"):
        data.test_dataloader()


def noise(path: Path, level: float, seconds: float = 3.0) -> None:
    soundfile.write(path, level * np.random.default_rng(0).normal(size=round(seconds * RATE)), RATE, subtype="FLOAT")


def test_what_is_odd_of_audio_and_labels_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    music = tmp_path / "music"
    for name in ("good", "clipped", "silent", "soft", "offset", "early", "none", "short", "cancel", "cut"):
        record(music / f"{name}.wav", onset=0.1)
    noise(music / "clipped.wav", 0.7)
    noise(music / "silent.wav", 0.0)
    noise(music / "soft.wav", 1e-3)
    soundfile.write(music / "offset.wav", 0.3 + 0.1 * soundfile.read(music / "good.wav")[0], RATE)
    write_midi(music / "early.mid", np.array([[0.1, 0.5, 60, 64], [0.6, 0.9, 60, 64], [20, 21, 62, 64]]))
    write_midi(music / "none.mid", NO_NOTES)
    noise(music / "short.wav", 0.1, 60)
    left = soundfile.read(music / "good.wav")[0]
    soundfile.write(music / "cancel.wav", np.column_stack([left, -left]), RATE)
    noise(music / "cut.wav", 0.7)
    (music / "cut.wav").write_bytes((music / "cut.wav").read_bytes()[: 8 * RATE])
    ready(music)
    text = capsys.readouterr().err
    data = ready(music)
    assert not capsys.readouterr().err
    assert "look at the audio of 6 of 10 recordings" in text
    assert f"and 3 more; all are in {data.store.folder}/manifest.json" in text
    assert "look at the labels of 3 of 10 recordings" in text
    told: dict[str, str] = {}
    for _, name, what in data.store.manifest["remarks"]:
        told[name] = told.get(name, "") + what
    assert set(told) == {
        "clipped.wav",
        "silent.wav",
        "soft.wav",
        "offset.wav",
        "early.wav",
        "none.wav",
        "short.wav",
        "cancel.wav",
        "cut.wav",
    }
    assert "is silent" in told["silent.wav"]
    assert "is soft" in told["soft.wav"]
    assert "is clipped" in told["clipped.wav"]
    assert "offset of" in told["offset.wav"]
    assert "cancel each other" in told["cancel.wav"]
    assert "is cut short: its header states 3.0 s, 2.0 s are there" in told["cut.wav"]
    assert "is clipped" in told["cut.wav"]
    assert "1 of its 3 notes begin after the end of the audio" in told["early.wav"]
    assert "no notes, and its audio is not silent" in told["none.wav"]
    assert "its notes end at" in told["short.wav"]


def test_labels_that_lie_past_the_audio_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "music" / "a.wav", onset=0.1)
    write_midi(tmp_path / "music" / "a.mid", np.array([[0.1, 0.5, 60, 64], [100, 101, 60, 64], [102, 103, 62, 64]]))
    ready(tmp_path / "music")
    said = "look at the labels of 1 of 1 recordings: a.wav 2 of its 3 notes begin after the end of the audio at 3.0 s"
    assert said in capsys.readouterr().err


def test_metadata_names_files_whatever_the_case_of_their_endings(tmp_path: Path) -> None:
    place = maestro(tmp_path / "maestro", PIECES)
    row = metadata(next(place.glob("*.csv")))[0]
    for name in (row.audio, row.midi):
        (place / name).rename((place / name).with_suffix((place / name).suffix.upper()))
    data = Maestro(root=str(place), sample_rate=RATE, seconds=0.5, stores=str(tmp_path / "stores"))
    assert row.audio in [recording.name for recording in data.found()]
    assert not data.missing() & {row.audio, row.midi}


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

    tenth, half = names(fraction=0.1), names(fraction=0.5)
    assert Counter(tenth.values()) == {"train": 97, "validation": 14, "test": 18}
    assert tenth.items() <= half.items()
    assert Counter(names(splits=("test",)).values()) == {"test": 177}
    assert len(names()) == 1276
    for bad, said in (
        ({"splits": ()}, "at least 1 item"),
        ({"fraction": 0.0}, "greater than 0"),
        ({"fraction": 1.5}, "equal to 1"),
    ):
        with pytest.raises(ValueError, match=said):
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
    with pytest.raises(ValueError, match="val_windows = 0: input should be greater than 0"):
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
    with pytest.raises(ValueError, match="balance = notes: input should be 'time' or 'recording'"):
        ready(folder, balance="notes")


def test_the_real_maestro_excerpt_is_read(shared_data: Path, tmp_path: Path) -> None:
    data = Maestro(root=str(shared_data / "real" / "maestro-v3.0.0"), stores=str(tmp_path))
    data.prepare_data()
    data.setup()
    assert data.store.frames.tolist() == [2 * 22_050]  # the one WAV, cut to two seconds: the file counts, not the CSV
    facts = data.describe()
    assert facts["rows of the metadata without their files"] == 1_275
    assert facts["shorter by more than 10 s than the metadata says"].startswith("1 (2018/")

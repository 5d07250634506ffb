"""Rendered windows: a pure function of position, whose labels match the sound."""

from __future__ import annotations

import csv
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wavespace.data.base import Item, collate, rng_for
from wavespace.data.files import discovery as sources
from wavespace.data.files.midi import apply_pedal, clean, notes_between, read_midi, write_midi
from wavespace.data.synthesis.rendered import LEAD_IN, OTHERS, Rendered, Renderer, ensemble, skyline, vary
from wavespace.data.synthesis.soundfont import Sampler, Voice
from wavespace.errors import BadInput
from wavespace.units import midi_to_hz

pytest.importorskip("tinysoundfont", reason="needs tinysoundfont: pip install --no-deps tinysoundfont")

RATE = 22_050


def ready(**options: Any) -> Rendered:
    stores = f"{options.get('midi')}-stores"
    given = {"workers": 0, "piece_seconds": 4.0, "val_pieces": 3, "test_pieces": 2, "stores": stores}
    data = Rendered(**(given | options))
    data.prepare_data()
    data.setup()
    return data


def scale(path: Path, first: int = 40, keys: int = 40, step: float = 0.25) -> Path:
    """A MIDI file of a chromatic scale."""
    onset = step * np.arange(keys)
    pitch = first + np.arange(keys) % 48
    write_midi(path, np.column_stack([onset, onset + 0.9 * step, pitch, np.full(keys, 80.0)]))
    return path


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve recordings: six alone, and two pieces with three performances each."""
    root = tmp_path_factory.mktemp("scores")
    for i in range(6):
        scale(root / f"{i}.mid", 30 + i)
    for piece, i in itertools.product(("one", "two"), range(3)):
        scale(root / "composer" / piece / f"{i}.MIDI", 30 + i)
    return root


def same(one: Item, other: Item) -> bool:
    return one.name == other.name and np.array_equal(one.audio, other.audio) and np.array_equal(one.notes, other.notes)


@pytest.mark.parametrize("options", [{}, {"programs": "mixed"}, {"augment": False}])
def test_an_item_is_a_function_of_seed_and_position(options: dict[str, Any]) -> None:
    one, again, other = ready(**options), ready(**options), ready(seed=1, **options)
    late = again.train_set[7]
    for position in (3, 0, 7):
        item = one.train_set[position]
        assert same(item, again.train_set[position])
        assert not np.array_equal(item.audio, other.train_set[position].audio)
        assert item.audio.shape == (one.spec.samples,)
        assert item.audio.dtype == np.int16
    assert same(one.train_set[7], late)
    assert not np.array_equal(one.train_set[3].audio, one.train_set[4].audio)
    assert same(one.test_set[0], other.test_set[0])  # what is scored does not depend on the seed


def test_workers_change_nothing() -> None:
    batches = []
    for workers in (0, 2):
        data = ready(workers=workers, batch_size=2, seconds=0.5)
        batches.append(list(itertools.islice(data.train_dataloader(), 4)))
    for alone, apart in zip(*batches):
        assert alone.names == apart.names
        assert (alone.audio == apart.audio).all()
        assert (alone.notes == apart.notes).all()
    assert len({name for batch in batches[0] for name in batch.names}) == 8


def test_evaluation_pieces_are_fixed_apart_and_kept() -> None:
    data = ready()
    assert len(data.val_set) == 3
    assert len(data.test_set) == 2
    everything = [*data.val_set, *data.test_set]
    assert len({item.audio.tobytes() for item in everything}) == 5
    assert [item.name for item in everything] == ["val-0", "val-1", "val-2", "test-0", "test-1"]
    assert data.val_set[1].audio is data.val_set[1].audio
    assert all(same(item, again) for item, again in zip(everything, [*ready().val_set, *ready().test_set]))
    assert all(same(item, again) for item, again in zip(everything, ready(augment=False).val_set))
    assert everything[0].audio.shape == (4 * RATE,)
    for loader, names in ((data.val_dataloader(), ["val-0", "val-1", "val-2"]), (data.test_dataloader(), None)):
        batch = next(iter(loader))
        assert names is None or batch.names == names


@pytest.mark.parametrize("programs", ["piano", "mixed"])
def test_notes_are_those_that_sound_in_the_window(programs: Any) -> None:
    data = ready(programs=programs)
    before = 0
    for position in range(40):
        notes = data.train_set[position].notes
        np.testing.assert_allclose(clean(notes), notes, atol=1e-9)
        assert (notes[:, 0] < data.spec.seconds).all()
        assert (notes[:, 1] > 0).all()
        assert ((notes[:, 2] >= 21) & (notes[:, 2] <= 108)).all()
        assert ((notes[:, 3] >= 1) & (notes[:, 3] <= 127)).all()
        before += (notes[:, 0] < 0).sum()
    assert before > 40, "what rings from before the window is labelled"


def test_a_melody_on_chosen_programs_is_one_voice_of_one_instrument(scores: Path) -> None:
    data = ready(programs=(0, 40, 71), melody=True)
    assert data.spec.labels == ("notes", "instrument")
    assert data.instruments == ("Acoustic Grand Piano", "Violin", "Clarinet")
    played = set()
    for position in range(12):
        item = data.train_set[position]
        played.add(item.labels["instrument"])
        assert (item.notes[1:, 0] >= item.notes[:-1, 1] - 1e-6).all()
        assert item.audio.any()
    assert played == {0, 1, 2}


def test_without_pedal_notes_end_with_their_keys(tmp_path: Path) -> None:
    import pretty_midi

    midi, piano = pretty_midi.PrettyMIDI(), pretty_midi.Instrument(0)
    piano.notes = [pretty_midi.Note(80, 64, 0.0, 0.5), pretty_midi.Note(80, 60, 6.0, 6.5)]
    piano.control_changes = [pretty_midi.ControlChange(64, 100, 5.5), pretty_midi.ControlChange(64, 0, 8.0)]
    midi.instruments.append(piano)
    midi.write(str(tmp_path / "a.mid"))

    def lengths(*, pedal: bool) -> set[float]:
        renderer = Renderer(
            RATE, None, (0,), False, pedal, varied=False, recorded=False, files=(read_midi(tmp_path / "a.mid"),)
        )
        items = [renderer.item(rng_for("pedal", i), 8.0, "x", 0) for i in range(8)]
        notes = np.concatenate([item.notes[item.notes[:, 2] == 60] for item in items])
        return set(np.round(notes[notes[:, 0] > 0, 1] - notes[notes[:, 0] > 0, 0], 2).tolist())

    assert lengths(pedal=True) == {2.0}
    assert lengths(pedal=False) == {0.5}


def test_a_skyline_is_the_top_of_chords_and_of_what_is_held() -> None:
    notes = np.array([[0, 2, 60, 80], [0, 2, 64, 80], [0.01, 2, 67, 80], [1, 1.5, 62, 80], [1.5, 3, 72, 80.0]])
    np.testing.assert_allclose(skyline(notes), [[0, 1.5, 64, 80], [1.5, 3, 72, 80]])
    assert skyline(notes[:0]).shape == (0, 4)


def test_a_folder_of_its_own_is_the_whole_test_split_and_the_rest_trains(tmp_path: Path, scores: Path) -> None:
    other = scale(tmp_path / "other.mid", 50)
    with_test, alone = sources.find_scores(str(scores), str(tmp_path))[0], sources.find_scores(str(scores))[0]
    assert with_test["test"] == [other]
    assert with_test["val"] == alone["val"]
    assert set(with_test["train"]) == {*alone["train"], *alone["test"]}
    played: Any = ready(midi=str(scores), test_midi=str(tmp_path)).test_set
    assert [performance.notes[0, 2] for performance in played.renderer.files] == [50]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"programs": (128,)}, "equal to 127"),
        ({"programs": ()}, "at least 1 item"),
        ({"test_midi": "x"}, "midi is not"),
    ],
)
def test_settings_that_cannot_be_played_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rendered(**options)


def test_music_fills_the_window_whatever_its_tempo() -> None:
    data = ready()
    onsets = np.concatenate([data.train_set[position].notes[:, 0] for position in range(120)])
    count, _ = np.histogram(onsets, bins=6, range=(0, data.spec.seconds))
    assert count.min() > 0.7 * count.mean()


def level(audio: np.ndarray) -> float:
    """RMS of int16 audio in dB of full scale."""
    return float(10 * np.log10(np.mean(np.square(audio / 32768)) + 1e-12))


def test_sound_begins_where_labels_say_and_not_before(tmp_path: Path) -> None:
    """Short notes far apart, in any tempo, key and loudness: silence up to each onset, sound within 5 ms."""
    onset = 0.8 * np.arange(100)
    pitch = np.random.default_rng(0).integers(50, 90, 100)
    write_midi(tmp_path / "a.mid", np.column_stack([onset, onset + 0.1, pitch, np.full(100, 80)]))
    renderer = Renderer(
        RATE,
        None,
        programs="piano",
        melody=False,
        pedal=True,
        varied=True,
        recorded=False,
        files=(read_midi(tmp_path / "a.mid"),),
    )
    checked = 0
    for i in range(20):
        item = renderer.item(rng_for("onsets", i), 4.0, "x")
        for at in np.rint(item.notes[:, 0] * RATE).astype(int):
            if 110 < at < len(item.audio) - 330:
                before, after = level(item.audio[at - 110 : at]), level(item.audio[at + 110 : at + 330])
                assert after > before + 15
                checked += 1
    assert checked > 60


def test_labels_of_music_are_heard() -> None:
    """At the pitch of a note energy rises at its onset; at the same pitch it does not at other times."""
    data = ready(augment=False)
    labelled, elsewhere = [], []
    for position in range(25):
        item = data.train_set[position]
        audio = item.audio / 32768
        for onset, _, pitch, velocity in item.notes:
            if not 0.1 < onset < data.spec.seconds - 0.15 or pitch < 48 or velocity < 50:
                continue
            tone = np.exp(-2j * np.pi * midi_to_hz(pitch) * np.arange(882) / RATE) * np.hanning(882)
            other = 0.1 + rng_for("other", position).random() * (data.spec.seconds - 0.25)
            for time, rises in ((onset, labelled), (other, elsewhere)):
                at = round(time * RATE)
                before, after = (abs(audio[start : start + 882] @ tone) + 1e-6 for start in (at - 882, at + 110))
                rises.append(20 * np.log10(after / before))
    assert len(labelled) > 250
    assert np.mean(np.array(labelled) > 6) > 0.65
    assert np.mean(np.array(elsewhere) > 6) < 0.25


@pytest.mark.parametrize("program", OTHERS)
def test_other_instruments_sound_at_the_pitch_of_their_key(program: int) -> None:
    """No partial below the key's own fundamental, and that fundamental or its octave well above the rest's level."""
    sampler = Sampler(None, RATE)
    for pitch in sorted({52, 64, 76} & sampler.keys(program)):
        audio = sampler.render([Voice(np.array([[0.0, 0.9, pitch, 90.0]]), program)], RATE)[RATE // 20 :]
        spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 1 << 17))

        def partial(ratio: float) -> float:
            center = midi_to_hz(pitch) * ratio / RATE * (1 << 17)  # noqa: B023
            return float(spectrum[int(0.97 * center) : int(1.03 * center) + 2].max() / spectrum.max())  # noqa: B023

        assert max(partial(0.5), partial(0.25), partial(1 / 3)) < 0.06
        assert partial(1.0) > 0.05
        loudness = np.sqrt(np.convolve(audio**2, np.ones(256) / 256, "same"))
        assert loudness[: RATE // 10].max() > 0.1 * loudness.max(), "it speaks within 150 ms"


def test_windows_of_a_file_hold_the_files_notes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.mid"
    onset = np.sort(rng.uniform(0, 60, 400))
    write_midi(path, np.column_stack([onset, onset + 0.4, rng.integers(40, 80, 400), rng.integers(20, 100, 400)]))
    played = read_midi(path)
    notes = apply_pedal(played.notes, played.pedal)
    renderer = Renderer(
        RATE, None, programs="piano", melody=False, pedal=True, varied=False, recorded=False, files=(read_midi(path),)
    )
    for i in range(20):
        item = renderer.item(rng_for("window", i), 3.0, "x")
        strikes = item.notes[item.notes[:, 0] > 0]
        shifts = notes[:, None, 0] - strikes[0, 0]  # the window's start, if the first strike is this note
        starts = shifts[(notes[:, 2] == strikes[0, 2]) & (notes[:, 3] == strikes[0, 3])].ravel()
        matches = [
            start
            for start in starts
            if (expected := notes_between(notes, start, start + 3.0)).shape == item.notes.shape
            and np.allclose(expected, item.notes, atol=1e-6)
        ]
        assert len(matches) == 1


def test_a_gap_of_days_gives_no_silent_windows(tmp_path: Path) -> None:
    for name in "abc":
        path = tmp_path / name / f"{name}.mid"
        once = np.column_stack([np.arange(20) / 2, np.arange(20) / 2 + 0.4, np.full(20, 60), np.full(20, 64)])
        write_midi(path, np.concatenate([once, once + np.array([280_000, 280_000, 0, 0])]))
    data = Rendered(midi=str(tmp_path), val_pieces=1, test_pieces=1, stores=str(tmp_path.parent / "gap-stores"))
    data.setup()
    assert any("gap of 30 s or more, which is shortened" in fact for fact in data.describe())
    assert data.describe()["train"]["hours"] < 0.02
    silent = sum(len(data.train_set[position].notes) == 0 for position in range(30))
    assert silent < 25  # of 30 windows in 50 s, of which 20 s sound


def test_a_late_start_and_a_note_of_days_give_no_silent_windows(tmp_path: Path) -> None:
    for name, times in (("a", [280_000, 280_001]), ("b", [0, 280_000]), ("c", [0, 1])):
        (tmp_path / name).mkdir()
        write_midi(tmp_path / name / f"{name}.mid", np.array([[*times, 60, 64]], float))
    data = Rendered(midi=str(tmp_path), val_pieces=1, test_pieces=1, stores=str(tmp_path.parent / "late-stores"))
    data.setup()
    hours = [facts["hours"] for facts in data.describe().values() if isinstance(facts, dict) and "hours" in facts]
    assert sum(hours) < 0.03
    assert any(
        "gap of 30 s or more, which is shortened: 2" in f"{fact}: {data.describe()[fact]}" for fact in data.describe()
    )


def test_variation_keeps_to_the_keyboard_and_the_notes(scores: Path) -> None:
    notes = read_midi(scores / "0.mid").notes
    low, high = notes.copy(), notes.copy()
    low[:, 2] += 21 - low[:, 2].min()
    high[:, 2] += 108 - high[:, 2].max()
    shifts = set()
    for i in range(200):
        for part in (notes, low, high):
            varied = vary(part, rng_for("vary", i))
            assert varied[:, 2].min() >= 21
            assert varied[:, 2].max() <= 108
            assert (varied[:, 3] >= 1).all()
            assert set(varied[:, 0]) <= set(part[:, 0])
            if len(varied) == len(part):
                shift = set(varied[:, 2] - part[:, 2])
                assert len(shift) == 1
                shifts |= shift if part is notes else set()
    assert shifts == set(range(-6, 7))
    assert vary(notes[:0], rng_for(0)).shape == (0, 4)


def test_an_ensemble_shares_the_notes_by_register(scores: Path) -> None:
    notes = read_midi(scores / "0.mid").notes
    sizes = set()
    for i in range(60):
        voices = ensemble(notes, rng_for("ensemble", i), OTHERS)
        sizes.add(len(voices))
        assert len({voice.program for voice in voices}) == len(voices)
        parts = [voice.notes for voice in voices if len(voice.notes)]
        assert all(low[:, 2].max() < high[:, 2].min() for low, high in itertools.pairwise(parts))
        assert {tuple(row) for part in parts for row in part} <= {tuple(row) for row in notes}
    assert sizes == {1, 2, 3, 4}
    assert sum(len(voice.notes) for voice in ensemble(notes[:0], rng_for(0), OTHERS)) == 0


def test_a_folder_is_split_by_piece(scores: Path) -> None:
    data = ready(midi=str(scores), seed=3)
    files = {split: set(paths) for split, paths in sources.find_scores(str(scores))[0].items()}
    assert sum(map(len, files.values())) == 12
    assert len(set.union(*files.values())) == 12
    for piece in ("one", "two"):
        holders = [split for split, paths in files.items() if any(path.parent.name == piece for path in paths)]
        assert len(holders) == 1
    for split in files:
        assert len(getattr(data, f"{split}_set").renderer.files) == len(files[split])
    facts = data.describe()
    assert sum(facts[split]["files"] for split in files) == 12
    assert sum(facts[split]["notes"] for split in files) == 12 * 40
    assert same(data.train_set[5], ready(midi=str(scores), seed=3).train_set[5])


def test_maestros_own_splits_hold_and_absent_files_are_counted(tmp_path: Path) -> None:
    rows = [("2004/a.midi", "train"), ("2004/b.midi", "train"), ("2006/c.midi", "validation"), ("2006/d.midi", "test")]
    for name, _ in rows[1:]:
        scale(tmp_path / name)
    scale(tmp_path / "2006" / "not-listed.midi")
    with (tmp_path / "maestro-v3.0.0.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = ["canonical_composer", "canonical_title", "split", "midi_filename", "audio_filename", "duration"]
        writer.writerow(names)
        writer.writerows([["Frédéric Chopin", "Études", split, name, f"{name}.wav", 1.0] for name, split in rows])
    data = ready(midi=str(tmp_path))
    for split, name in (("train", "b"), ("val", "c"), ("test", "d")):
        assert [path.stem for path in sources.find_scores(str(tmp_path))[0][split]] == [name]
    assert data.describe()["rows of the metadata without their file"] == 1

    (tmp_path / "2006" / "c.midi").unlink()
    with pytest.raises(BadInput, match="nothing is left for the val split"):
        ready(midi=str(tmp_path))
    (tmp_path / "maestro-v3.0.0.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match=r"maestro-v3.0.0.csv: is not MAESTRO's metadata .*missing or unknown"):
        ready(midi=str(tmp_path))


def test_unreadable_files_are_left_out_and_told(tmp_path: Path) -> None:
    for i in range(40):
        scale(tmp_path / f"{i}.mid")
    for i in range(2):
        (tmp_path / f"bad-{i}.mid").write_bytes(b"no midi" * (i + 1))
    for i in range(3):
        write_midi(tmp_path / f"whales-{i}.mid", np.array([[0.0, 1.0 + i, 12.0, 64.0]]))
    for seed in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = ready(midi=str(tmp_path), seed=seed)
        text = "".join(str(warning.message) for warning in caught)
        assert "5 MIDI files are left out: " in text
        assert text.count(".mid ") == 3
        assert text.endswith(" and 2 more")
        assert data.describe()["unreadable files"] == 2
        assert data.describe()["files without notes on the keyboard of a piano"] == 3
        for position in range(10):
            assert len(data.train_set[position].audio)


def test_folders_that_can_not_be_used_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BadInput, match="no MIDI files in it"):
            ready(midi=str(path))
    scale(tmp_path / "a.mid")
    scale(tmp_path / "b.mid")
    with pytest.raises(BadInput, match=r"nothing is left for the (train|val|test) split, of 2 MIDI files"):
        ready(midi=str(tmp_path))
    with pytest.raises(BadInput, match="no soundfont at"):
        ready(soundfont=str(tmp_path / "none.sf2"))


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"piece_seconds": -1.0}, {"val_pieces": 0}, {"test_pieces": 0}])
def test_wrong_values_are_told_before_anything_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rendered(midi="/nowhere", **wrong)


def test_items_of_a_piece_and_a_window_collate() -> None:
    data = ready(seconds=1.0, piece_seconds=2.0)
    batch = collate([data.val_set[0], data.train_set[0]])
    assert batch.audio.shape == (2, 1, 2 * RATE)
    assert batch.lengths.tolist() == [2 * RATE, RATE]


def test_real_performances_are_rendered(shared_data: Path) -> None:
    data = ready(midi=str(shared_data / "real" / "maestro-v3.0.0"))
    assert data.describe()["train"]["files"] == 11
    notes = [len(data.train_set[position].notes) for position in range(10)]
    assert np.mean(notes) > 10


def test_the_lead_in_is_long_enough_for_a_room() -> None:
    assert LEAD_IN > 1.3, "the longest reverberation"

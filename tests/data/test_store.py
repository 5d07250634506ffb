"""The store gives back what was put in, to the sample, and no accident leaves half a store."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from processes import SERVER
from wavespace.data.base import Item, Notes, collate
from wavespace.data.files.audio import Audio, read_audio, read_blocks
from wavespace.data.files.discovery import Recording
from wavespace.data.store import build as module
from wavespace.data.store.build import Samples, build_store, store_name
from wavespace.data.store.format import Store
from wavespace.data.store.windows import StoreItems, StoreWindows
from wavespace.errors import BadInput, UserError

RATE = 8_000
LENGTHS = (3_000, 1, 8_000, 2_500, 700, 5_000)
FORK = multiprocessing.get_context("fork")


def samples_of(number: int, length: int) -> NDArray[np.int16]:
    return np.random.default_rng(number).integers(-(2**15), 2**15, length, np.int16)


def notes_of(number: int, seconds: float) -> Notes:
    rng = np.random.default_rng(number)
    onset = np.sort(rng.uniform(0, seconds, 20))
    return np.column_stack([onset, onset + rng.exponential(0.1, 20), rng.integers(21, 109, 20), np.full(20, 64)])


def recordings_in(folder: Path, lengths: tuple[int, ...] = LENGTHS) -> list[Recording]:
    folder.mkdir(exist_ok=True)
    found = []
    for number, length in enumerate(lengths):
        path = folder / f"{number}.wav"
        soundfile.write(path, samples_of(number, length), RATE, subtype="PCM_16")
        split = ("train", "val", "test")[number % 3]
        notes = partial(notes_of, number, length / RATE) if number != 1 else None
        found.append(Recording(f"Nº {number}", path, split, notes, {"instrument": number % 4}))
    return found


def put(folder: Path, recordings: list[Recording], rate: int = RATE, **options: int) -> Store:
    """Build with shards of 12,000 bytes and two processes."""
    options = {"shard_bytes": 12_000, "processes": 2} | options
    return build_store(folder, recordings, Samples(RATE), {"rate": rate}, licence="CC0", citation="nobody", **options)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six recordings in several shards."""
    folder = tmp_path_factory.mktemp("stored")
    store = put(folder / "store", recordings_in(folder / "audio"))
    assert len(list(store.folder.glob("*.rows"))) > 2
    return store


@pytest.fixture
def copied(stored: Store, tmp_path: Path) -> Path:
    """A store to be spoilt."""
    return Path(shutil.copytree(stored.folder, tmp_path / "copied"))


def expected(number: int, start: int, samples: int, lengths: tuple[int, ...] = LENGTHS) -> NDArray[np.int16]:
    """A window by its definition."""
    whole = samples_of(number, lengths[number])
    return np.array([whole[i] if 0 <= i < len(whole) else 0 for i in range(start, start + samples)], np.int16)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=12, deadline=None)
@given(data=st.data(), shard_bytes=st.integers(2, 10_000))
def test_any_window_is_that_part_of_the_recording(
    data: st.DataObject, shard_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lengths = tuple(data.draw(st.lists(st.integers(1, 2_000), min_size=1, max_size=6), label="lengths"))
    folder = tmp_path_factory.mktemp("any")
    put(folder / "store", recordings_in(folder / "audio", lengths), shard_bytes=shard_bytes)
    store = Store.open(folder / "store")
    assert store.frames.tolist() == list(lengths)
    for _ in range(25):
        number = data.draw(st.integers(0, len(lengths) - 1))
        start, samples = data.draw(st.integers(-2_500, 2_500)), data.draw(st.integers(0, 3_000))
        audio = store.window(number, start, samples)
        assert audio.dtype == np.int16
        assert audio.flags.writeable
        np.testing.assert_array_equal(audio, expected(number, start, samples, lengths))


def test_names_splits_and_labels_are_kept(stored: Store) -> None:
    assert stored.names == [f"Nº {number}" for number in range(6)]
    assert [stored.split(name).tolist() for name in ("train", "val", "test", "none")] == [[0, 3], [1, 4], [2, 5], []]
    assert stored.labels["instrument"].tolist() == [0, 1, 2, 3, 0, 1]
    assert stored.manifest["splits"]["train"] == {"recordings": 2, "hours": round(5_500 / RATE / 3600, 4), "notes": 40}
    assert stored.manifest["notes"] == 100
    assert (stored.manifest["licence"], stored.manifest["citation"]) == ("CC0", "nobody")
    assert stored.manifest["provenance"] == {"rate": RATE}


@given(number=st.sampled_from([0, 2, 3, 4, 5]), start=st.integers(-8_000, 8_000), samples=st.integers(1, 8_000))
def test_notes_of_a_window_are_those_that_sound_in_it(stored: Store, number: int, start: int, samples: int) -> None:
    item = stored.item(number, start, samples)
    rows = [
        (onset - start / RATE, offset - start / RATE, pitch, velocity)
        for onset, offset, pitch, velocity in notes_of(number, LENGTHS[number] / RATE)
        if onset * RATE < start + samples and offset * RATE > start
    ]
    np.testing.assert_allclose(item.notes, np.array(rows).reshape(-1, 4), atol=1e-12)
    np.testing.assert_array_equal(item.audio, expected(number, start, samples))
    assert item.labels == {"instrument": number % 4}


def test_a_recording_without_notes_has_none(stored: Store) -> None:
    assert stored.notes(1).shape == (0, 4)
    assert stored.notes(0).shape == (20, 4)


def test_a_store_without_notes_opens(tmp_path: Path) -> None:
    recordings = [Recording("a", recordings_in(tmp_path / "audio")[0].audio, "train")]
    store = put(tmp_path / "store", recordings)
    assert store.notes(0).shape == (0, 4)
    assert store.labels == {}


def test_other_rates_and_channels_are_read_as_ever(tmp_path: Path) -> None:
    time_ = np.arange(48_000) / 48_000
    tone = np.column_stack([0.5 * np.sin(2 * np.pi * 440 * time_), np.zeros(48_000)])
    soundfile.write(tmp_path / "stereo.flac", tone, 48_000)
    store = put(tmp_path / "store", [Recording("tone", tmp_path / "stereo.flac", "train")])
    audio = read_audio(tmp_path / "stereo.flac", RATE)
    assert abs(len(audio) - store.frames[0]) <= 2
    assert np.abs(store.window(0, 0, len(audio) - 2) / 32768 - audio[:-2]).max() <= 1 / 32768


def test_what_is_beyond_full_scale_is_clipped_and_counted(tmp_path: Path) -> None:
    loud = np.array([0.0, 0.5, -1.0, 32767 / 32768, 1.0, 1.5, -1.00001, -1.5, 7.5], np.float32)
    soundfile.write(tmp_path / "loud.wav", loud, RATE, subtype="FLOAT")
    store = put(tmp_path / "store", [Recording("loud", tmp_path / "loud.wav", "train")])
    assert store.window(0, 0, 9).tolist() == [0, 16384, -32768, 32767, 32767, 32767, -32768, -32768, 32767]
    assert store.clipped.tolist() == [4]  # 1.0 is one step beyond; -1.00001 rounds to full scale
    assert store.manifest["clipped"] == 4


def test_the_files_are_the_payload_and_little_else(tmp_path: Path) -> None:
    store = put(tmp_path / "store", recordings_in(tmp_path / "audio", (RATE * 300,) * 3), shard_bytes=2**29)
    size = sum(path.stat().st_size for path in store.folder.rglob("*"))
    assert 1 < size / (2 * store.frames.sum()) < 1.001
    assert {path.name for path in store.folder.iterdir()} == {
        "shard-00000.rows", "index.npz", "notes.npy", "manifest.json",
    }  # fmt: skip


def test_opening_asks_nothing_of_each_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    stat = os.stat
    for count in (2, 60):
        store = put(tmp_path / f"store {count}", recordings_in(tmp_path / "audio", (9,) * count), shard_bytes=2**20)
        calls: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", lambda *a, calls=calls, **k: calls.append(a) or stat(*a, **k))
            Store.open(store.folder)
        asked.append(len(calls))
    assert asked[0] == asked[1] <= 5


def test_a_cold_window_reads_little_more_than_itself(tmp_path: Path) -> None:
    store = put(tmp_path / "store", recordings_in(tmp_path / "audio", (8_000_000,)), shard_bytes=2**30)
    shard = os.open(next(store.folder.glob("*.rows")), os.O_RDONLY)
    rng, samples, read = np.random.default_rng(0), 220_500, 0
    for start in rng.integers(0, 8_000_000 - samples, 10).tolist():
        os.posix_fadvise(shard, 0, 0, os.POSIX_FADV_DONTNEED)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
        store.window(0, start, samples)
        read += 512 * (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before)
    os.close(shard)
    if read == 0:
        pytest.skip("this file system does not tell what is read from its disk")
    assert read <= 1.5 * 10 * 2 * samples


@pytest.mark.parametrize("balance", ["time", "recording"])
def test_windows_are_a_function_of_position(stored: Store, balance: Any) -> None:
    def items(positions: range, store: Store = stored) -> list[Item]:
        windows = StoreWindows(store, np.arange(6), 1_000, seed=3, balance=balance)
        return [windows[position] for position in positions]

    forwards, backwards = (
        items(range(5_000, 5_040)),
        items(range(5_039, 4_999, -1), Store.open(stored.folder)),
    )
    for one, other in zip(forwards, reversed(backwards)):
        assert one.name == other.name
        np.testing.assert_array_equal(one.audio, other.audio)
        np.testing.assert_array_equal(one.notes, other.notes)
    assert len({item.name for item in forwards}) > 20
    assert all(len(item.audio) == 1_000 for item in forwards)


def starts(windows: StoreWindows, count: int) -> NDArray[np.int64]:
    """Recording and first sample of windows, `(count, 2)`, without reading them."""
    seen: list[tuple[int, int]] = []
    windows.store = SimpleNamespace(hop=1, item=lambda recording, start, samples: seen.append((recording, start)))  # type: ignore[assignment]
    for position in range(count):
        windows[position]
    return np.array(seen)


def test_every_place_is_as_likely_by_time(stored: Store) -> None:
    seen = starts(StoreWindows(stored, np.array([0, 1, 2, 4]), 1_000, seed=0), 9_004)
    places = {0: 2_001, 1: 1, 2: 7_001, 4: 1}  # 1 and 4 are shorter than a window
    for recording, count in places.items():
        of_it = seen[seen[:, 0] == recording, 1]
        assert abs(len(of_it) - count) < 5 * np.sqrt(count)
        assert of_it.min() >= 0
        assert of_it.max() < count
    deciles = np.histogram(seen[seen[:, 0] == 2, 1], 10, (0, 7_001))[0]
    assert np.abs(deciles - 700).max() < 5 * np.sqrt(700)


def test_every_recording_comes_as_often_when_balanced(stored: Store) -> None:
    seen = starts(StoreWindows(stored, np.array([0, 2, 4]), 1_000, seed=0, balance="recording"), 600)
    for epoch in seen[:, 0].reshape(200, 3):
        assert sorted(epoch) == [0, 2, 4]
    assert seen[seen[:, 0] == 2, 1].max() <= 7_000
    assert seen[seen[:, 0] == 2, 1].max() > 6_500
    assert seen[seen[:, 0] == 4, 1].max() == 0


def test_fixed_windows_lie_at_equal_distances(stored: Store) -> None:
    items = StoreItems.spread(stored, np.array([2, 5]), 1_000, 11)
    assert len(items) == 11
    joined = items.excerpts[:, 1] + np.where(items.excerpts[:, 0] == 5, 7_001, 0)
    assert np.ptp(np.diff(joined)) <= 1
    assert joined[0] + (11_002 - joined[-1]) == pytest.approx(11_002 / 11, abs=2)
    for position, (number, start, samples) in enumerate(items.excerpts.tolist()):
        np.testing.assert_array_equal(items[position].audio, expected(number, start, samples))
    assert len({items[position].name for position in range(11)}) == 11


def test_whole_recordings_are_whole(stored: Store) -> None:
    items = StoreItems.whole(stored, stored.split("train"))
    assert [items[i].name for i in range(len(items))] == ["Nº 0", "Nº 3"]
    for i, number in enumerate((0, 3)):
        np.testing.assert_array_equal(items[i].audio, samples_of(number, LENGTHS[number]))
        assert len(items[i].notes) == 20


def test_no_recordings_is_a_sentence(stored: Store) -> None:
    with pytest.raises(ValueError, match="no recordings"):
        StoreWindows(stored, stored.split("none"), 100, seed=0)


def test_forked_workers_read_no_wrong_window_of_400(stored: Store) -> None:
    store = Store.open(stored.folder)
    items = StoreItems.spread(store, np.array([0, 2, 3, 5]), 500, 400)
    own = [items[position].audio for position in range(400)]  # opened and read before the fork
    loader = DataLoader(items, batch_size=20, collate_fn=collate, num_workers=2, multiprocessing_context="fork")
    rows = [row[0].numpy() for batch in loader for row in batch.audio]
    wrong = sum(
        not np.array_equal(row, expected(*piece)) or not np.array_equal(row, mine)
        for row, mine, piece in zip(rows, own, items.excerpts.tolist(), strict=True)
    )
    assert wrong == 0


def send_windows(items: StoreItems, send: Any) -> None:
    send.send([items[position].audio for position in range(len(items))])


def test_a_worker_that_inherits_nothing_reads_no_wrong_window_of_400(stored: Store) -> None:
    stored.window(0, 0, 100)
    assert len(pickle.dumps(stored)) < 1_000
    items = StoreItems.spread(stored, np.array([0, 2, 3, 5]), 500, 400)
    receive, send = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=send_windows, args=(items, send), daemon=True)
    process.start()
    send.close()
    for window, excerpt in zip(receive.recv(), items.excerpts.tolist(), strict=True):
        np.testing.assert_array_equal(window, expected(*excerpt))
    process.join()


def test_a_forked_process_opens_its_own_files(stored: Store) -> None:
    store = Store.open(stored.folder)
    store.window(0, 0, 100)
    mine = dict(store._files)
    receive, send = FORK.Pipe(duplex=False)

    def child() -> None:
        store.window(0, 0, 100)
        send.send(store._files)

    process = FORK.Process(target=child)
    process.start()
    theirs = receive.recv()
    process.join()
    assert theirs.keys() == mine.keys()
    assert not set(theirs.values()) & set(mine.values())


# Accidents of a build


def in_small_blocks(path: Path, sample_rate: int) -> Iterator[Audio]:
    return read_blocks(path, sample_rate, 0.01)


def killed_at(point: str, folder: Path, recordings: list[Recording]) -> None:
    """Build in another process, of which all is killed when it comes to a point."""

    def builder() -> None:
        boss, replace, rename = os.getpid(), os.replace, os.rename

        def die_at(where: str) -> None:
            if where == point:
                os.kill(boss, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        def blocks(path: Path, sample_rate: int) -> Iterator[Audio]:
            for number, block in enumerate(in_small_blocks(path, sample_rate)):
                die_at(f"block {number} of {path.name}")
                yield block

        def dying_replace(source: Any, target: Any) -> None:
            die_at(Path(target).name)
            replace(source, target)

        def dying_rename(source: Any, target: Any) -> None:
            die_at("the store")
            rename(source, target)
            die_at("after the store")

        module.read_blocks, os.replace, os.rename = blocks, dying_replace, dying_rename  # type: ignore[assignment]
        put(folder, recordings)

    process = FORK.Process(target=builder)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "point",
    [
        "block 0 of 0.wav", "block 7 of 3.wav", "shard-00001.rows", "2.npz", "notes.npy", "index.npz", "manifest.json",
        "the store", "after the store",
    ],
)  # fmt: skip
def test_a_killed_build_goes_on_to_the_same_store(point: str, stored: Store, tmp_path: Path) -> None:
    recordings, folder = recordings_in(tmp_path / "audio"), tmp_path / "store"
    killed_at(point, folder, recordings)
    assert folder.exists() == (point == "after the store")
    place = folder if folder.exists() else tmp_path / ".store.partial"
    finished = {path.stem for path in (place / module.WORK).glob("?.npz")}
    before = {stem: (place / f"shard-0000{stem}.rows").stat().st_mtime_ns for stem in finished}
    if point in ("2.npz", "the store"):
        assert finished
    store = put(folder, recordings)
    store.verify()
    leftover = (
        {name for name in content(folder) if name.startswith(module.WORK)} if point == "after the store" else set()
    )
    assert {name: data for name, data in content(folder).items() if name not in leftover} == content(stored.folder)
    assert {stem: (folder / f"shard-0000{stem}.rows").stat().st_mtime_ns for stem in finished} == before
    assert not (tmp_path / ".store.partial").exists()


def test_workers_end_soon_after_their_builder_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings, beats = recordings_in(tmp_path / "audio"), tmp_path / "beats"

    def slowly(path: Path, sample_rate: int) -> Iterator[Audio]:
        for block in in_small_blocks(path, sample_rate):
            with beats.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.01)
            yield block

    monkeypatch.setattr(module, "read_blocks", slowly)
    builder = FORK.Process(target=put, args=(tmp_path / "store", recordings))
    builder.start()
    while not beats.exists() or len(set(beats.read_text().split())) < 2:  # both workers are at it
        time.sleep(0.01)
    builder.kill()
    builder.join()
    time.sleep(0.3)
    last = beats.stat().st_size
    time.sleep(0.2)
    assert beats.stat().st_size == last


def test_an_interrupted_build_ends_its_workers_and_goes_on(
    stored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = recordings_in(tmp_path / "audio")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            put(tmp_path / "store", recordings)
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "store").exists()
    assert content(put(tmp_path / "store", recordings).folder) == content(stored.folder)


def test_a_terminal_shows_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    put(tmp_path / "store", recordings_in(tmp_path / "audio")).verify()
    shown = capsys.readouterr().err
    assert "preparing store" in shown
    assert "verifying" in shown
    assert "/s" in shown


def test_a_killed_worker_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = recordings_in(tmp_path / "audio")

    def fatal(path: Path, sample_rate: int) -> Iterator[Audio]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from ()

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_blocks", fatal)
        with pytest.raises(UserError, match=r"was killed, often for want of memory.*repeat"):
            put(tmp_path / "store", recordings)
    assert not (tmp_path / "store").exists()
    put(tmp_path / "store", recordings).verify()


def test_one_killed_worker_of_several_is_a_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool ends the workers that wait, on Python 3.12 and newer by SIGTERM."""
    recordings = recordings_in(tmp_path / "audio")
    victim, read = recordings[0].audio, module.read_blocks

    def fatal(path: Path, sample_rate: int) -> Iterator[Audio]:
        if path == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from read(path, sample_rate)

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_blocks", fatal)
        with pytest.raises(UserError, match=r"was killed, often for want of memory.*repeat"):
            put(tmp_path / "store", recordings)
    put(tmp_path / "store", recordings).verify()


def test_two_builders_at_once_are_one(stored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings, folder = recordings_in(tmp_path / "audio"), tmp_path / "store"
    begun, gate = tmp_path / "begun", tmp_path / "gate"

    def gated(path: Path, sample_rate: int) -> Iterator[Audio]:
        begun.touch()
        while not gate.exists():
            time.sleep(0.01)
        yield from read_blocks(path, sample_rate)

    monkeypatch.setattr(module, "read_blocks", gated)
    first = FORK.Process(target=put, args=(folder, recordings))
    first.start()
    while not begun.exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process is preparing it"):
        put(folder, recordings)
    gate.touch()
    first.join()
    assert first.exitcode == 0
    assert content(folder) == content(stored.folder)


def test_two_builders_without_locks_leave_no_half_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first writes, and is in the midst of writing when the first is done."""
    recordings, rows, first = recordings_in(tmp_path / "audio"), Samples.rows, os.getpid()
    (began, begin), (ended, end) = os.pipe(), os.pipe()
    children: list[int] = []
    monkeypatch.setattr(module, "lock", lambda *_, **__: True)

    def interrupted(self: Samples, recording: Recording) -> Iterator[Any]:
        yield from rows(self, recording)
        if os.getpid() == first and not children:
            children.append(os.fork())
            if children[0] == 0:
                with suppress(UserError):
                    put(tmp_path / "store", recordings, processes=0)
                os._exit(0)
            os.read(began, 1)
        elif os.getpid() != first and recording is recordings[0]:
            os.write(begin, b"1")
            os.read(ended, 1)

    monkeypatch.setattr(Samples, "rows", interrupted)
    with suppress(UserError):
        put(tmp_path / "store", recordings, processes=0)
    os.write(end, b"1")
    os.waitpid(children[0], 0)
    for descriptor in (began, begin, ended, end):
        os.close(descriptor)
    Store.open(tmp_path / "store").verify()


def test_a_disk_without_room_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = recordings_in(tmp_path / "audio")
    monkeypatch.setattr(module, "read_blocks", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * sum(LENGTHS) - 1))
    with pytest.raises(UserError, match=r"takes 0\.0 GB more and 0\.0 GB are free; make room"):
        put(tmp_path / "store", recordings)
    assert not (tmp_path / "store").exists()


def test_a_disk_that_fills_up_is_told_and_what_is_finished_is_kept(stored: Store, tmp_path: Path) -> None:
    recordings, folder = recordings_in(tmp_path / "audio"), tmp_path / "store"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the shard of Nº 2 has 16,000 bytes
    try:
        with pytest.raises(UserError, match=r"can't be read or written \(File too large\); what is finished is kept"):
            put(folder, recordings, processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = tmp_path / ".store.partial" / "shard-00000.rows"
    assert not folder.exists()
    before = kept.stat().st_mtime_ns
    assert content(put(folder, recordings).folder) == content(stored.folder)
    assert (folder / kept.name).stat().st_mtime_ns == before


def test_a_folder_that_can_t_be_made_is_a_sentence(tmp_path: Path) -> None:
    recordings = recordings_in(tmp_path / "audio")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be read or written \(Not a directory\)"):
        put(tmp_path / "file" / "store", recordings)


def test_a_bad_recording_is_named_and_may_be_mended(stored: Store, tmp_path: Path) -> None:
    recordings, folder = recordings_in(tmp_path / "audio"), tmp_path / "store"
    audio = recordings[3].audio
    whole = audio.read_bytes()
    broken = np.full(LENGTHS[3], np.nan, np.float32)
    soundfile.write(audio, broken, RATE, subtype="FLOAT")
    with pytest.raises(BadInput, match=r"3\.wav: sample 0 is not a number"):
        put(folder, recordings)
    assert not folder.exists()
    audio.unlink()
    last = recordings[5].audio.read_bytes()
    soundfile.write(recordings[5].audio, broken, RATE, subtype="FLOAT")
    with pytest.raises(BadInput, match=r"3\.wav: there is no such file.*\n.*5\.wav: sample 0 is not a number"):
        put(folder, recordings)
    audio.write_bytes(whole)
    recordings[5].audio.write_bytes(last)
    assert content(put(folder, recordings).folder) == content(stored.folder)


def test_what_another_build_left_is_not_taken_over(tmp_path: Path) -> None:
    longer = recordings_in(tmp_path / "longer", tuple(length + 1 for length in LENGTHS))
    killed_at("manifest.json", tmp_path / "store", longer)
    store = put(tmp_path / "store", recordings_in(tmp_path / "audio"))
    store.verify()
    assert store.frames.tolist() == list(LENGTHS)


def test_a_store_that_is_there_is_opened_and_not_built(
    stored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_build_in_processes", None)
    assert put(stored.folder, []).frames.tolist() == list(LENGTHS)
    with pytest.raises(UserError, match="holds a store of other settings"):
        put(stored.folder, [], rate=1)


def test_memory_is_the_same_however_long_the_file(tmp_path: Path) -> None:
    noise = samples_of(0, RATE * 10)
    peaks = []
    for tens in (3, 30):
        path = tmp_path / f"{tens}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(tens):
                file.write(noise)
        (tmp_path / str(tens) / module.WORK).mkdir(parents=True)
        shard = module.Shard(0, [Recording("long", path, "train")], 0, "")
        tracemalloc.start()
        module._build_shard(tmp_path / str(tens), shard, Samples(RATE), lambda size: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (tmp_path / str(tens) / "shard-00000.rows").stat().st_size == 2 * tens * len(noise)
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("fault", ["none", "twice", "line break", "labels"])
def test_recordings_that_make_no_store_are_a_sentence(fault: str, tmp_path: Path) -> None:
    one, two, *_ = recordings_in(tmp_path / "audio")
    recordings = {
        "none": [],
        "twice": [one, one],
        "line break": [one, Recording("a\nb", two.audio, "train", labels=two.labels)],
        "labels": [one, Recording("b", two.audio, "train")],
    }[fault]
    with pytest.raises(ValueError, match=r"no recordings|unique, and without line breaks|the same labels"):
        put(tmp_path / "store", recordings)
    assert list(tmp_path.iterdir()) == [tmp_path / "audio"]


# Accidents of a finished store


def test_a_read_only_store_is_read(stored: Store, copied: Path) -> None:
    before = content(copied)
    for path in [*copied.iterdir(), copied]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        store = put(copied, [])
        np.testing.assert_array_equal(store.window(2, 100, 5_000), expected(2, 100, 5_000))
        assert len(store.notes(2)) == 20
        store.verify()
        assert content(copied) == before
    finally:
        copied.chmod(0o755)


@pytest.mark.parametrize("name", ["shard-00001.rows", "notes.npy", "index.npz"])
def test_one_changed_bit_is_found(name: str, copied: Path) -> None:
    store = Store.open(copied)
    store.verify()
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(BadInput, match=rf"not as it was written: {name} \(its SHA-256 differs\); delete the folder"):
        store.verify()


@pytest.mark.parametrize("name", ["shard-00000.rows", "shard-00002.rows", "notes.npy", "index.npz"])
def test_a_file_that_is_cut_off_or_missing_is_found_on_opening(name: str, copied: Path) -> None:
    with (copied / name).open("r+b") as file:
        file.truncate((copied / name).stat().st_size - 1)
    with pytest.raises(BadInput, match=rf"{name}: has \d+ bytes and should have \d+; delete"):
        Store.open(copied)
    (copied / name).unlink()
    with pytest.raises(BadInput, match=rf"{name}: can't be read \(No such file or directory\); delete"):
        Store.open(copied)


def test_a_shard_that_is_cut_off_later_is_a_sentence(copied: Path) -> None:
    store = Store.open(copied)
    for shard in copied.glob("*.rows"):
        os.truncate(shard, 100)
    with pytest.raises(BadInput, match=r"shard-\d+\.rows: can't be read \(ends at byte"):
        store.window(2, 0, 5_000)


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [("", "damaged"), ("[]", "damaged"), ("{}", "damaged"), ('{"format": 99}', "has format 99, and this version")],
)
def test_a_manifest_that_says_nothing_is_a_sentence(manifest: str, sentence: str, copied: Path) -> None:
    (copied / "manifest.json").write_text(manifest)
    with pytest.raises(BadInput, match=sentence):
        Store.open(copied)


def test_a_manifest_of_before_is_read(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["made_by"] = manifest.pop("provenance")
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert put(copied, []).frames.tolist() == list(LENGTHS)


def test_where_there_is_no_store_is_a_sentence(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="there is no store here; prepare it first"):
            Store.open(folder)


def test_the_name_depends_on_the_settings_and_not_on_their_order() -> None:
    name = store_name({"data": "maestro", "rate": 22_050})
    assert name == store_name({"rate": 22_050, "data": "maestro"})
    assert name != store_name({"rate": 44_100, "data": "maestro"})
    assert name.isalnum()
    assert json.dumps(name)


def test_real_clips_are_what_the_reader_reads(shared_data: Path, tmp_path: Path) -> None:
    clips = sorted((shared_data / "real").rglob("*.wav"))[:8]
    if not clips:
        pytest.skip(f"needs recordings under {shared_data / 'real'}")
    store = put(tmp_path / "store", [Recording(clip.stem, clip, "test") for clip in clips], shard_bytes=2**20)
    for number, clip in enumerate(clips):
        audio = read_audio(clip, RATE)
        length = min(len(audio), int(store.frames[number]))
        assert abs(len(audio) - store.frames[number]) <= 2
        difference = store.window(number, 0, length) / 32768 - np.clip(audio[:length], -1, 32767 / 32768)
        assert np.abs(difference).max() <= 1 / 32768

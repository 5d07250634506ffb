"""Stores, metadata and archives that a stranger has made, or a disk has damaged: read, or refused in a sentence."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets import PIECES, maestro, record
from wavespace.data.files import discovery as sources
from wavespace.data.files import download
from wavespace.data.files.discovery import Recording
from wavespace.data.files.download import extract
from wavespace.data.sources.medley_solos import MedleySolos
from wavespace.data.store.build import Samples, build_store
from wavespace.data.store.format import Store
from wavespace.data.store.manifest import read_arrays
from wavespace.data.store.windows import StoreItems
from wavespace.digests import DigestCache
from wavespace.errors import BadInput, UserError
from wavespace.files import named_file, open_regular, read_regular

ODD = st.sampled_from(
    [
        *[None, True, -1, 0, 2**31, 2**63, 10**400, 0.5, float("nan"), 1e308, "", "x", "<i2", "/etc/passwd", "../x"],
        *["a\0b", [], {}, [[]], {"a": 1}, json.loads("[" * 500 + "]" * 500)],
    ]
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three recordings."""
    folder = tmp_path_factory.mktemp("store")
    found = []
    for number in range(3):
        record(folder / f"{number}.wav", 0.1 * number)
        found.append(Recording(f"{number}", folder / f"{number}.wav", "train", labels={"instrument": number}))
    store = build_store(folder / "store", found, Samples(8000), {"data": "x"}, licence="", citation="", processes=0)
    return store.folder


def use(folder: Path) -> None:
    """Read all of a store."""
    store = Store.open(folder)
    items = StoreItems.whole(store, np.arange(len(store)))
    assert sum(len(items[place].audio) for place in range(len(items))) == store.frames.sum()
    assert len(store.names) == len(store)


def replaced(value: Any, path: list[int], odd: Any) -> Any:
    """Plain data with one of its values, at any depth, replaced."""
    if path and isinstance(value, dict) and value:
        key = sorted(value)[path[0] % len(value)]
        return value | {key: replaced(value[key], path[1:], odd)}
    return odd


@FUZZ
@given(path=st.lists(st.integers(0, 30), max_size=3), odd=ODD)
def test_a_manifest_of_odd_values_is_read_or_refused_in_a_sentence(whole: Path, path: list[int], odd: Any) -> None:
    manifest = (whole / "manifest.json").read_bytes()
    try:
        (whole / "manifest.json").write_text(json.dumps(replaced(json.loads(manifest), path, odd)))
        with suppress(UserError):
            use(whole)
        with suppress(UserError):
            sources.dataset_digest(whole, list, DigestCache(whole))
    finally:
        (whole / "manifest.json").write_bytes(manifest)


@FUZZ
@given(
    name=st.sampled_from(["manifest.json", "index.npz", "notes.npy"]), place=st.floats(0, 1), odd=st.binary(max_size=3)
)
def test_a_store_of_odd_bytes_is_read_or_refused_in_a_sentence(
    whole: Path, name: str, place: float, odd: bytes
) -> None:
    content = (whole / name).read_bytes()
    start = int(place * len(content))
    try:
        (whole / name).write_bytes(content[:start] + odd + content[start + len(odd) :])
        with suppress(UserError):
            use(whole)
    finally:
        (whole / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frames", [2**40, 1, 1]), ("frames", [-1, 1, 1]), ("frames", [0.5, 1, 1]), ("offset", [2**62, 0, 0]),
        ("shard", [7, 0, 0]), ("shard", [-1, 0, 0]), ("notes_end", [0, 2**40, 0]), ("split", [9, 0, 0]),
        ("names", np.frombuffer(b"a", np.uint8)), ("digest", [1, 2, 3]), ("outside", np.zeros(10**6, np.int16)),
        ("label_instrument", [1]), ("frames", []),
    ],
)  # fmt: skip
def test_an_index_that_disagrees_with_the_files_is_refused(whole: Path, tmp_path: Path, name: str, value: Any) -> None:
    shutil.copytree(whole, tmp_path / "store")
    index = read_arrays(whole / "index.npz") | {name: np.array(value)}
    np.savez(tmp_path / "store" / "index.npz", **index)
    manifest = json.loads((whole / "manifest.json").read_text())
    manifest["files"]["index.npz"]["bytes"] = (tmp_path / "store" / "index.npz").stat().st_size
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="damaged"):
        Store.open(tmp_path / "store")


def test_an_index_that_inflates_is_not_inflated(whole: Path, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", frames=np.zeros(10**7))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("frames.npy", header.getvalue())
    tracemalloc.start()
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ValueError, match="states"):
            read_arrays(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["manifest.json", "index.npz", "notes.npy", "shard-00000.rows"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_a_store_with_a_pipe_or_a_device_is_refused(whole: Path, tmp_path: Path, name: str, kind: str) -> None:
    shutil.copytree(whole, tmp_path / "store")
    (tmp_path / "store" / name).unlink()
    not_a_file(tmp_path / "store" / name, kind)
    with pytest.raises(BadInput, match="not a regular file"):
        Store.open(tmp_path / "store")


def not_a_file(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


# --- Metadata ------------------------------------------------------------------------------------------------


CELL = st.sampled_from(
    [
        "",
        "x",
        "/etc/passwd",
        "../../x",
        "..",
        "a\0b",
        "n" * 300,
        "1e400",
        "nan",
        "9" * 5000,
        "-1",
        "é",
        "2004/h.wav",
        "\n",
    ]
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kind", ["maestro", "scores", "medley"])
def test_odd_metadata_is_read_or_refused_in_a_sentence(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    if kind == "medley":
        path = tmp_path / sources.METADATA
        rows = [["subset", "instrument", "instrument_id", "song_id", "uuid4"], ["training", "x", "3", "1", "abc"]]
    else:
        path = tmp_path / "maestro-v3.0.0.csv"
        head = ["canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename", "duration"]
        rows = [head, ["Bach", "One", "train", "2004", "a.mid", "a.wav", "3.0"]]
        if not (tmp_path / "a.wav").exists():
            record(tmp_path / "a.wav", 0.0)
    row = data.draw(st.integers(0, 1))
    rows[row][data.draw(st.integers(0, len(rows[row]) - 1))] = data.draw(CELL)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    content = text.getvalue().encode()
    start = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=2)) + content[start:])
    with suppress(UserError):
        if kind == "maestro":
            sources.find_maestro(tmp_path, sources.maestro_rows(tmp_path))
        elif kind == "scores":
            sources.find_scores(str(tmp_path))
        else:
            sources.find_medley_solos(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.mid", "2004/../../outside.mid", "link.mid", ""])
def test_what_metadata_names_lies_in_its_folder(tmp_path: Path, name: str) -> None:
    root = maestro(tmp_path / "data", PIECES)
    record(tmp_path / "outside.wav", 0.0)
    (root / "link.mid").symlink_to(tmp_path / "outside.mid")
    table = root / "maestro-v3.0.0.csv"
    table.write_text(table.read_text("utf-8").replace("2004/a.mid", name), "utf-8")
    for read in (lambda: sources.maestro_rows(root), lambda: sources.find_scores(str(root))):
        with pytest.raises(BadInput, match=r"inside of this folder|outside of"):
            read()


def test_a_folder_of_the_data_may_be_a_link(tmp_path: Path) -> None:
    root = maestro(tmp_path / "data", PIECES)
    (tmp_path / "data" / "2004").rename(tmp_path / "big")
    (root / "2004").symlink_to(tmp_path / "big")
    (tmp_path / "big" / "z.mid").symlink_to("a.mid")
    assert len(sources.find_maestro(root, sources.maestro_rows(root))) == len(PIECES)
    assert named_file(root, "2004/z.mid").is_file()


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_metadata_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    not_a_file(tmp_path / "maestro-v3.0.0.csv", kind)
    not_a_file(tmp_path / sources.METADATA, kind)
    with pytest.raises(BadInput, match=r"not a regular file|there is no"):
        sources.maestro_rows(tmp_path)
    with pytest.raises(BadInput, match=r"not a regular file|there is no"):
        sources.find_medley_solos(tmp_path)


def test_names_without_a_file_are_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, target in {"itself.wav": "itself.wav", "one": "two", "two": "one", "nowhere": "gone"}.items():
        (tmp_path / name).symlink_to(target)
    not_a_file(tmp_path / "pipe.wav", "pipe")
    (tmp_path / "x").touch()
    assert [path.name for path in sources.list_files(tmp_path)] == ["x"]
    said = "5 names are left out, whose file is missing, a pipe or a device: itself.wav, nowhere, one and 2 more"
    assert said in capsys.readouterr().err
    table = tmp_path / "maestro" / "maestro-v3.0.0.csv"
    table.parent.mkdir()
    table.symlink_to(table.name)
    with pytest.raises(BadInput, match="can't be read"):
        sources.maestro_rows(table.parent)


def test_links_in_a_circle_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    for name in ("b", "c", "d"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    assert [path.name for path in sources.list_files(tmp_path)] == ["x"]


def test_a_file_that_is_large_beyond_reason_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    os.truncate(tmp_path / "x", 2**40)
    with pytest.raises(BadInput, match=r"at most .* are read"):
        read_regular(tmp_path / "x", 10**6)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "y")
    with pytest.raises(BadInput, match="can't be read"):
        open_regular(tmp_path / ("y" * 300))


# --- Archives ------------------------------------------------------------------------------------------------


def headers(count: int) -> bytes:
    """A tar file of so many empty members."""
    one = tarfile.TarInfo("set/x").tobuf()
    return one * count + bytes(1024)


def stating(size: int, kind: bytes) -> bytes:
    """The header of a tar member that states a size, and as much behind it."""
    info = tarfile.TarInfo("set/a.wav")
    info.size, info.type = size, kind
    return info.tobuf() + bytes(size)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: headers(20_000), "inflates to more than"),
        (lambda: stating(12_000_000, tarfile.REGTYPE), "inflates to more than"),
        (lambda: stating(12_000_000, tarfile.XHDTYPE), "a header states more"),
        (lambda: stating(12_000_000, tarfile.GNUTYPE_LONGNAME), "a header states more"),
        (lambda: bytes(1024) + bytes(12_000_000), "inflates to more than"),
    ],
    ids=["members", "a file", "a header", "a name", "nothing"],
)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_tar_that_inflates_beyond_reason_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, said: str, wanted: bool
) -> None:
    monkeypatch.setattr(download, "SPARE", 2**20)
    monkeypatch.setattr(download, "AT_ONCE", 2**22)
    (tmp_path / "set.tar.gz").write_bytes(gzip.compress(content(), 1))
    tracemalloc.start()
    with pytest.raises(BadInput, match=said):
        extract(tmp_path / "set.tar.gz", tmp_path / "data", lambda name: Path("x") if wanted else None)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    assert not list((tmp_path / "data").glob("*"))


def test_a_zip_that_inflates_beyond_reason_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"set/{number}.wav", bytes(10**7))
    with pytest.raises(BadInput, match="inflates to more than"):
        extract(tmp_path / "set.zip", tmp_path / "data", lambda name: Path(name).relative_to("set"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("set/1.wav", b"x")
    with pytest.raises(BadInput, match="compressed in a way"):
        extract(tmp_path / "set.zip", tmp_path / "data", lambda name: Path(name).relative_to("set"))


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_an_archive_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    not_a_file(tmp_path / "set.zip", kind)
    with pytest.raises(BadInput):
        extract(tmp_path / "set.zip", tmp_path / "data", Path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("remarks", 1), ("remarks", [["audio"]]), ("remarks", [[[], "", ""]]), ("made_from", [1]),
        ("made_from", {"files": 1}), ("dtype", ">i2"), ("labels", ["x" * 10_000]),
    ],
)  # fmt: skip
def test_a_part_of_a_manifest_that_opening_does_not_use_is_of_its_kind(
    whole: Path, tmp_path: Path, key: str, value: Any
) -> None:
    shutil.copytree(whole, tmp_path / "store")
    manifest = json.loads((whole / "manifest.json").read_text()) | {key: value}
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="damaged") as refused:
        Store.open(tmp_path / "store")
    assert len(str(refused.value).replace(str(tmp_path), "")) < 500


@pytest.mark.parametrize("fault", ["features", "instrument 9", "no song"])
def test_a_store_that_is_not_what_the_data_needs_is_refused(fault: str, tmp_path: Path) -> None:
    record(tmp_path / "a.wav", 0.1)
    labels = {"instrument": 9 if fault == "instrument 9" else 1} | ({} if fault == "no song" else {"song": 1})
    found, provenance = [Recording("a", tmp_path / "a.wav", "train", labels=labels)], {"data": "medley_solos"}
    store = build_store(tmp_path / "store", found, Samples(44_100), provenance, licence="", citation="", processes=0)
    if fault == "features":
        (store.folder / "manifest.json").write_text(json.dumps(store.manifest | {"dtype": "<f2"}))
    with pytest.raises(BadInput, match=r"of features|no song, or no instrument"):
        MedleySolos(root=str(store.folder)).prepare_data()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_note_that_is_no_number_is_refused_where_it_is_read(value: float, tmp_path: Path) -> None:
    record(tmp_path / "a.wav", 0.1)
    notes = np.array([[0.0, 0.1, 60.0, 80.0]])
    found = [Recording("a", tmp_path / "a.wav", "train", notes.copy)]
    store = build_store(tmp_path / "store", found, Samples(8000), {}, licence="", citation="", processes=0)
    notes[0, 2] = value
    np.save(store.folder / "notes.npy", notes)
    with pytest.raises(BadInput, match="a number that is none"):
        use(store.folder)

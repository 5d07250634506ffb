"""`wavespace prepare`, from a server, an archive or a folder to a store."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets import PIECES, RATE, maestro
from processes import SERVER, as_started_by_hand
from standins.files import Fault, FileServer, serving
from training import make_medley
from wavespace.commands import check, prepare
from wavespace.data.sources import medley_solos
from wavespace.data.sources.medley_solos import ARCHIVE, DIGESTS, METADATA
from wavespace.errors import BadInput, UserError

ZIP = "maestro-v3.0.0.zip"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Ten short performances as MAESTRO's zip has them, and 8 MB of what no row names."""
    root = maestro(tmp_path_factory.mktemp("original") / "maestro-v3.0.0", PIECES)
    (root / "LICENSE").write_text("NC")
    table = root / "maestro-v3.0.0.csv"
    table.write_text("\n".join(table.read_text(encoding="utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("maestro-v3.0.0/2004/aaa.wav", bytes(8_000_000), zipfile.ZIP_STORED)
        for path in sorted(root.rglob("*")):
            zipped.write(path, path.relative_to(root.parent).as_posix())
    return file.getvalue()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The metadata of nine clips, and their flat tar.gz."""
    root = tmp_path_factory.mktemp("clips")
    make_medley(root)
    table = root / "annotation" / METADATA
    table.write_text(table.read_text().replace("training,x,0,999,absent\n", ""))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for path in sorted(root.rglob("*.wav")):
            tar.add(path, path.name)
    return table.read_bytes(), file.getvalue()


@pytest.fixture
def server(archive: bytes) -> Iterator[FileServer]:
    with serving({ZIP: archive}) as running:
        yield running


@pytest.fixture
def medley_server(clips: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    files = dict(zip((METADATA, ARCHIVE), clips))
    for name, content in files.items():
        monkeypatch.setitem(DIGESTS, name, f"md5:{hashlib.md5(content).hexdigest()}")
    with serving(files) as running:
        yield running


def words(server: FileServer, folder: Path, *more: str) -> list[str]:
    return [
        *("data=maestro", f"data.root={folder / 'maestro'}", f"data.stores={folder / 'stores'}"),
        *(f"data.url={server.url(ZIP)}", f"data.sample_rate={RATE}", "data.seconds=0.5", *more),
    ]


def medley_words(server: FileServer, folder: Path, *more: str) -> list[str]:
    return [
        *("data=medley_solos", f"data.root={folder / 'medley'}", f"data.stores={folder / 'stores'}"),
        *(f"data.url={server.url('').rstrip('/')}", "data.sample_rate=22050", *more),
    ]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def performed(folder: Path) -> set[str]:
    """Files of performances that have come."""
    return {name for name in names(folder / "maestro") if name.endswith((".wav", ".mid"))}


def test_maestro_is_fetched_and_a_repeat_asks_for_nothing(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.main(words(server, tmp_path))
    said = capsys.readouterr().out
    assert "Licence: CC BY-NC-SA 4.0" in said
    assert "Please cite: Hawthorne" in said
    assert [line.split() for line in said.splitlines() if line.startswith("recordings")] == [
        ["recordings", "2", "2", "3"]
    ]
    assert {f"{letter}.wav" for letter in "abcdefghij"} <= names(tmp_path / "maestro")
    assert "LICENSE" in names(tmp_path / "maestro")
    server.reset()
    prepare.main(words(server, tmp_path))
    assert server.requests == []
    assert "Licence" not in capsys.readouterr().out


def test_a_part_costs_a_part_and_the_rest_can_follow(server: FileServer, tmp_path: Path, archive: bytes) -> None:
    prepare.main(words(server, tmp_path, "data.splits=[test]"))
    wavs = {name for name in names(tmp_path / "maestro") if name.endswith(".wav")}
    assert wavs == {"h.wav", "i.wav", "j.wav"}
    assert server.served < len(archive) / 2
    server.reset()
    prepare.main(words(server, tmp_path, "data.splits=[validation,test]"))
    wavs = {name for name in names(tmp_path / "maestro") if name.endswith(".wav")}
    assert wavs == {"e.wav", "f.wav", "g.wav", "h.wav", "i.wav", "j.wav"}
    assert server.served < len(archive) / 2


def test_training_fetches_nothing(server: FileServer, tmp_path: Path) -> None:
    from wavespace.config import compose
    from wavespace.config.construction import make

    data = make(compose(words(server, tmp_path)).data, "data")
    with pytest.raises(BadInput, match="or fetch it with wavespace prepare data=maestro"):
        data.prepare_data()
    assert server.requests == []


def test_a_folder_of_somebody_s_own_is_read_as_it_is(server: FileServer, tmp_path: Path) -> None:
    maestro(tmp_path / "maestro", PIECES)  # a row of its metadata has no files
    prepare.main(words(server, tmp_path))
    assert server.requests == []


@pytest.mark.parametrize("given", ["beside", "inside"])
def test_an_archive_is_unpacked_and_kept(given: str, archive: bytes, server: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / ("maestro" if given == "inside" else ".")
    folder.mkdir(exist_ok=True)
    (folder / "maestro.zip").write_bytes(archive)
    root = folder / "maestro.zip" if given == "beside" else folder
    prepare.main(words(server, tmp_path, f"data.root={root}", "data.splits=[train]"))
    assert server.requests == []
    wavs = {name for name in names(tmp_path / "maestro") if name.endswith(".wav")}
    assert wavs == {"a.wav", "b.wav", "c.wav", "d.wav"}
    assert (folder / "maestro.zip").is_file()


def test_verify_refuses_an_archive_that_is_not_the_official_one(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / ZIP).write_bytes(archive)
    with pytest.raises(BadInput, match=f"{ZIP}: has sha256:"):
        prepare.main(["data=maestro", f"data.root={tmp_path / ZIP}", f"data.stores={tmp_path}", "--verify"])
    assert names(tmp_path) == {ZIP}


def test_a_server_without_ranges_gives_a_sentence_for_maestro(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    with pytest.raises(UserError, match=r"gives this archive as a whole only; download it by other means"):
        prepare.main(words(server, tmp_path))


def test_medley_is_fetched_unpacked_and_its_archive_removed(medley_server: FileServer, tmp_path: Path) -> None:
    prepare.main(medley_words(medley_server, tmp_path, "--verify"))
    assert len(list((tmp_path / "medley" / "audio").glob("*.wav"))) == 9
    assert ARCHIVE not in names(tmp_path / "medley")
    medley_server.reset()
    prepare.main(medley_words(medley_server, tmp_path))
    assert medley_server.requests == []


def test_wrong_bytes_are_told_and_nothing_of_them_stays(medley_server: FileServer, tmp_path: Path) -> None:
    right = medley_server.files[ARCHIVE]
    medley_server.files[ARCHIVE] = right[:1000] + b"x" + right[1001:]
    with pytest.raises(BadInput, match=f"{ARCHIVE}: what .* and should have"):
        prepare.main(medley_words(medley_server, tmp_path))
    assert names(tmp_path / "medley") == {METADATA, ".fetched"}
    medley_server.files[ARCHIVE] = right
    prepare.main(medley_words(medley_server, tmp_path))
    assert len(list((tmp_path / "medley" / "audio").glob("*.wav"))) == 9


def test_stopped_while_unpacking_it_goes_on(
    medley_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract, calls = medley_solos.extract, []

    def stopping(archive: Path, folder: Path, targets: object, *, limit: int) -> None:
        extract(archive, folder, lambda name: targets(name) if len(calls) < 4 and not calls.append(name) else None)  # type: ignore[operator,func-returns-value]
        raise KeyboardInterrupt

    monkeypatch.setattr(medley_solos, "extract", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare.main(medley_words(medley_server, tmp_path))
    monkeypatch.undo()
    assert len(list((tmp_path / "medley" / "audio").glob("*.wav"))) == 4
    medley_server.reset()
    with pytest.MonkeyPatch.context() as patch:
        for name, content in medley_server.files.items():
            patch.setitem(DIGESTS, name, f"md5:{hashlib.md5(content).hexdigest()}")
        prepare.main(medley_words(medley_server, tmp_path))
    assert medley_server.requests == []  # the archive was there
    assert len(list((tmp_path / "medley" / "audio").glob("*.wav"))) == 9
    assert ARCHIVE not in names(tmp_path / "medley")


def prepare_with_its_workers(arguments: list[str]) -> None:
    """In a session of its own, so that all of it can be killed at once; nobody listens."""
    as_started_by_hand()
    os.setsid()
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    prepare.main(arguments)


def test_killed_at_any_moment_the_same_command_goes_on(server: FileServer, archive: bytes, tmp_path: Path) -> None:
    gate = threading.Event()
    server.fault = lambda request: Fault(until=gate) if len(server.requests) > 14 else None  # of some 25
    process = SERVER.Process(target=prepare_with_its_workers, args=(words(server, tmp_path),))
    process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(performed(tmp_path)) < 3:
        time.sleep(0.05)
    assert process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    had = performed(tmp_path)
    assert 3 <= len(had) < 20
    gate.set()
    server.reset()
    prepare.main(words(server, tmp_path))
    assert len(performed(tmp_path)) == 20
    assert server.served < len(archive) / 2
    assert not [name for name in names(tmp_path / "maestro") if ".part" in name]


def test_check_tells_what_is_prepared_and_finds_a_changed_byte(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check.main(words(server, tmp_path))
    assert "The data is not there: " in capsys.readouterr().out
    prepare.main(words(server, tmp_path))
    capsys.readouterr()
    check.main(words(server, tmp_path, "--verify"))
    said = capsys.readouterr().out
    assert "every byte is as it was written" in said
    assert "hours" in said
    shard = next((tmp_path / "stores").rglob("*.rows"))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    check.main(words(server, tmp_path))  # which reads the index alone
    with pytest.raises(BadInput, match=r"shard-00000.rows \(its SHA-256 differs\)"):
        check.main(words(server, tmp_path, "--verify"))


def test_check_refuses_what_training_would_of_data_that_is_there(tmp_path: Path) -> None:
    words = [*make_medley(tmp_path), "trainer.accelerator=cpu"]
    prepare.main(words)
    check.main([*words, "trainer.limit_val_batches=0.5"])
    with pytest.raises(UserError, match=r"limit_val_batches = 0.1: the val split has 2 batches.* at least 0.5"):
        check.main([*words, "trainer.limit_val_batches=0.1"])
    with pytest.raises(UserError, match="audio of a batch takes 44,100 GB"):
        check.main([*words, "data.batch_size=1000000000"])
    table = tmp_path / "annotation" / "Medley-solos-DB_metadata.csv"
    table.write_text("".join(line for line in table.open() if not line.startswith("test,")))
    with pytest.raises(UserError, match="no clips for the test split"):
        check.main([*words, "--data"])
    with pytest.raises(UserError, match="no clips for the test split"):
        prepare.main(words)
    with pytest.raises(UserError, match="no clips for the test split"):
        check.main(words)

"""A full or read-only disk, missing locks and removed folders give one sentence, and files stay whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from processes import forked
from training import RENDERED, TRAINER
from wavespace import files as disk
from wavespace.config import compose
from wavespace.data.files.download import _Part
from wavespace.data.store.build import _sole_builder
from wavespace.errors import UserError
from wavespace.files import byte_progress, written_whole
from wavespace.runfolder import RunFolder
from wavespace.terminal import guarded
from wavespace_launcher.ledger import Launch
from wavespace_launcher.local import _locked


@pytest.fixture
def cfg(tmp_path: Path) -> DictConfig:
    return compose([*RENDERED, *TRAINER, f"runs={tmp_path / 'runs'}"])


def no_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refused)
    monkeypatch.setattr(fcntl, "flock", refused)


SITES: dict[str, Callable[[Path, DictConfig], Any]] = {
    "run": lambda folder, cfg: RunFolder.of(cfg).writing(cfg),
    "store": lambda folder, cfg: _sole_builder(folder / "store", folder / "partial"),
    "download": lambda folder, cfg: _Part(folder / "file"),
    "launch": lambda folder, cfg: Launch(folder).as_controller(),
}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_not_a_lock(
    site: str, number: int, cfg: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    no_locks(monkeypatch, number)
    if site == "launch":  # a second controller would spend money
        with pytest.raises(UserError, match="has no locks"), SITES[site](tmp_path, cfg):
            pass
        assert not Launch(tmp_path).has_controller
        return
    with SITES[site](tmp_path, cfg):
        assert capsys.readouterr().err.count("this file system has no locks") == 1
        assert not _locked(RunFolder.of(cfg))  # what was killed can be told from what lives by nothing


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_holds_is_said(
    site: str, number: int, cfg: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_locks(monkeypatch, number)
    with pytest.raises(UserError, match="another process"), SITES[site](tmp_path, cfg):
        pass


def test_a_name_that_the_system_refuses_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("itself", "nowhere"):
        (tmp_path / name).symlink_to({"itself": "itself", "nowhere": "gone"}[name])
    uses: list[Callable[[], object]] = [
        (tmp_path / ("x" * 300)).stat, (tmp_path / "itself").stat, lambda: (tmp_path / "nowhere").mkdir(exist_ok=True),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(SystemExit, match="2"):
            guarded(use)
        assert "can't be read or written" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_a_full_disk_is_a_sentence_and_leaves_no_run_running(
    number: int, cfg: DictConfig, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder, real = RunFolder.of(cfg), Path.open

    def full(path: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        if "r" not in mode:
            raise OSError(number, os.strerror(number))
        return real(path, mode, *args, **named)

    def train() -> None:
        with folder.writing(cfg):
            monkeypatch.setattr(Path, "open", full)
            folder.update(step=3)

    with pytest.raises(SystemExit) as ended:
        guarded(train)
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert f"status.json: can't be read or written ({os.strerror(number)})" in said
    status = json.loads((folder.path / "status.json").read_text())
    assert status["state"] == "failed"
    assert f"can't be read or written ({os.strerror(number)})" in status["reason"]


def train_on_a_small_disk(blocks: int, arguments: list[str]) -> None:
    """Train where a file of this many bytes is as large as one may be."""
    import resource
    import signal
    import sys

    from wavespace.cli import main

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.argv = ["wavespace", "train", *arguments]
    resource.setrlimit(resource.RLIMIT_FSIZE, (blocks, blocks))
    main()


def test_a_checkpoint_that_does_not_fit_ends_training_in_a_sentence(cfg: DictConfig, tmp_path: Path) -> None:
    words = [*RENDERED, *TRAINER, f"runs={tmp_path / 'runs'}"]
    ended = forked(train_on_a_small_disk, 20_000, words)
    folder = RunFolder.of(cfg)
    assert ended.returncode == 2, ended.stderr
    assert "last.ckpt: can't be read or written (File too large)" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert folder.status()["state"] == "failed"
    assert not list((folder.path / "checkpoints").iterdir()), "what was begun takes the rest of the disk"


def test_a_file_that_can_not_be_written_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full") as told, written_whole(path) as file:  # noqa: PT012
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "full")
    assert told.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(disk.os, name, lambda *a, real=real, name=name: (done.append(name), real(*a))[1])
    with written_whole(tmp_path / "file") as file:
        file.write(b"all")
    assert done == ["fsync", "replace", "fsync"]  # of the file, and of its folder


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to(path.with_name("victim"))])
def test_what_a_stranger_put_where_a_file_is_written_is_not_written_through(
    plant: Callable[[Path], Any], tmp_path: Path
) -> None:
    (tmp_path / "victim").write_text("precious")
    plant(tmp_path / ".file.new")
    with written_whole(tmp_path / "file") as file:
        file.write(b"all")
    assert (tmp_path / "victim").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["file", "victim"]


AWAY: dict[str, Callable[[Path, Path], object]] = {
    "moved in the midst of a write": lambda folder, to: (folder.rename(to), (folder / "status.json").stat()),
    "moved": lambda folder, to: folder.rename(to),
    "its parent moved": lambda folder, to: folder.parent.rename(to),
    "deleted": lambda folder, to: shutil.rmtree(folder),
    "replaced": lambda folder, to: (folder.rename(to), folder.mkdir()),
}


@pytest.mark.parametrize("how", AWAY)
def test_a_folder_that_goes_away_ends_its_run_and_is_not_made_anew(how: str, cfg: DictConfig, tmp_path: Path) -> None:
    folder, to = RunFolder.of(cfg), tmp_path / "elsewhere"
    with pytest.raises(UserError, match="was moved or deleted"), folder.writing(cfg):  # noqa: PT012
        AWAY[how](folder.path, to)
        folder.update(step=3)
    assert not folder.path.exists() or not list(folder.path.iterdir())
    if how != "deleted":
        (status,) = (json.loads(path.read_text()) for path in to.rglob("status.json"))
        assert status["state"] == "failed"
        assert "was moved or deleted" in status["reason"]


def test_bytes_are_drawn_on_a_terminal_that_states_no_size_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "w") as nothing:
        monkeypatch.setattr("sys.stderr", nothing)
        with byte_progress("set.zip", 10**6) as advance:
            advance(10**6)
    other, terminal = os.openpty()
    with open(terminal, "w") as shown:
        monkeypatch.setattr("sys.stderr", shown)
        with byte_progress("set.zip", 10**6, 10**5):
            said = os.read(other, 2**16).decode()
    os.close(other)
    assert said.startswith("\rset.zip:  10%")
    assert "100k/1.00M" in said

"""Where a checkpoint lies: on this disk, at an address, or at W&B; what lies elsewhere is downloaded once."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from wavespace.archive import fault
from wavespace.errors import BadCheckpoint, UserError
from wavespace.files import cache_folder
from wavespace.runfolder import RunFolder
from wavespace.text import printable

if TYPE_CHECKING:
    import requests

MOST_BYTES = 8_000_000_000
"""Bytes that a checkpoint at an address may have."""

FIRST_SECONDS, SLOWEST = 60.0, 20_000
"""A download may take so many seconds, and one more for so many bytes that have come."""

MOST_REDIRECTS = 5


def locate(source: str | Path) -> Path:
    """A run folder or a file on this disk; what lies elsewhere is downloaded once, to the user's cache.

    Of a folder of runs, take the newest finished one, and print which.

    Args:
        source: a path, `https://…`, or `wandb:ENTITY/PROJECT/NAME:ALIAS` for an artifact with one checkpoint in it.
            `http://…` where the environment variable WAVESPACE_ALLOW_HTTP is 1.

    Raises:
        UserError: it can't be had.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"{type(source).__name__}: a checkpoint is named by a path or an address, as text or Path")
    text = str(source)
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        return _downloaded(text)
    if text.startswith("wandb:"):
        return _artifact(text.removeprefix("wandb:"))
    path = Path(source).expanduser()
    if not path.is_dir() or any((path / name).exists() for name in ("checkpoints", "config.yaml", "status.json")):
        return path
    if (run := newest_finished(path)) is None:
        raise BadCheckpoint(
            f"{path}: holds no finished run; name a run folder runs/<name>/<signature>, or a .ckpt file"
        )
    print(f"wavespace: the newest finished run in {printable(path)} is {printable(run)}", file=sys.stderr)
    return run


def newest_finished(folder: Path, accepts: Callable[[Path], bool] = lambda run: True) -> Path | None:
    """Return the newest finished run, by its best checkpoint, one or two levels below a folder.

    Args:
        folder: `runs/<name>`, or `runs`.
        accepts: whether a run folder is one of those that are looked for.
    """
    found = [*folder.glob("*/checkpoints/best.ckpt"), *folder.glob("*/*/checkpoints/best.ckpt")]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        run = RunFolder(path.parents[1])
        if run.status().get("state") == "finished" and accepts(run.path):
            return run.path
    return None


def _downloaded(url: str) -> Path:
    """The file of an address, which is kept once it has been found to be a checkpoint."""
    schemes = ("http", "https") if os.environ.get("WAVESPACE_ALLOW_HTTP") == "1" else ("https",)
    if urlsplit(url).scheme.lower() not in schemes:
        raise UserError(
            f"{url}: checkpoints are downloaded by https, as what comes by other ways can be changed on it; "
            "set WAVESPACE_ALLOW_HTTP=1 if you trust the network to an http address"
        )
    name = re.sub(r"[^\w.-]+", "-", urlsplit(url).path.rpartition("/")[2])[:100].strip(".") or "model.ckpt"
    target = cache_folder() / "checkpoints" / hashlib.sha256(url.encode()).hexdigest()[:12] / name
    if target.is_file() and fault(target) is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".coming-", dir=target.parent) as folder:
        came = Path(folder) / name
        _download(url, came)
        if problem := fault(came):
            raise BadCheckpoint(f"{url}: what came from there {problem}; nothing of it was kept")
        os.replace(came, target)
    return target


def _download(url: str, target: Path) -> None:
    """Write what an address gives to a file, within `MOST_BYTES` and the time for them.

    Raises:
        UserError: it can't be had, or is too large, or comes too slowly.
    """
    halt, came, failure = Event(), [0], list[Exception]()

    def work() -> None:
        try:
            _transfer(url, target, came, halt)
        except Exception as error:  # raised by the thread that waits
            failure.append(error)

    # A thread, because a server that gives a byte now and then holds any call that waits for more.
    thread = Thread(target=work, name="download", daemon=True)
    start = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
        if time.monotonic() - start > FIRST_SECONDS + came[0] / SLOWEST:
            halt.set()
            raise UserError(
                f"{url}: comes too slowly ({came[0]:,} bytes in {time.monotonic() - start:.0f} s); download it "
                "by other means and name the file"
            )
    if failure:
        if isinstance(failure[0], UserError):
            raise failure[0]
        said = " ".join(str(failure[0]).split())[:200]
        raise UserError(f"{url}: can't be downloaded ({type(failure[0]).__name__}: {said})") from failure[0]


def _transfer(url: str, target: Path, came: list[int], halt: Event) -> None:
    """Copy what an address gives to a file, counting in `came`, until `halt`."""
    import requests

    with requests.Session() as session, _answer(session, url) as answer, target.open("wb") as file:
        if answer.status_code != 200:
            raise UserError(f"{url}: can't be downloaded (the server says {answer.status_code} {answer.reason})")
        stated = answer.headers.get("Content-Length", "")
        if stated.isdigit() and int(stated) > MOST_BYTES:
            raise _too_large(url)
        while (block := answer.raw.read1(2**16)) and not halt.is_set():
            came[0] += len(block)
            if came[0] > MOST_BYTES:
                raise _too_large(url)
            file.write(block)
        if stated.isdigit() and int(stated) != came[0]:
            raise UserError(f"{url}: the connection was cut after {came[0]:,} of {stated} bytes; try again")


def _answer(session: requests.Session, url: str) -> requests.Response:
    """What an address leads to; requests itself would read the whole body of each redirect.

    Raises:
        UserError: it leads to another scheme, or too far.
    """
    from requests import Request

    at = url
    for _ in range(MOST_REDIRECTS + 1):
        prepared = session.prepare_request(Request("GET", at, headers={"Accept-Encoding": "identity"}))
        settings = session.merge_environment_settings(at, {}, True, None, None)
        answer = session.get_adapter(at).send(prepared, timeout=30, **settings)
        if not answer.is_redirect:
            return answer
        answer.close()
        at = urljoin(at, answer.headers["Location"])
        if urlsplit(at).scheme.lower() not in ("https", urlsplit(url).scheme.lower()):
            raise UserError(f"{url}: leads to {at[:200]}, which is not https, so it isn't followed")
    raise UserError(f"{url}: leads from address to address, more than {MOST_REDIRECTS} times")


def _too_large(url: str) -> UserError:
    return UserError(f"{url}: gives more than {MOST_BYTES / 1e9:g} GB, the most that a checkpoint may have here")


def _artifact(name: str) -> Path:
    """The checkpoint of an artifact on W&B; of a run's, which has two, the best."""
    try:
        import wandb

        artifact: Any = wandb.Api().artifact(name)
        size = int(artifact.size or 0)
        if size <= MOST_BYTES:
            digest = hashlib.sha256(str(artifact.digest).encode()).hexdigest()[:16]  # W&B's own is any text
            folder = Path(artifact.download(root=str(cache_folder() / "artifacts" / digest)))
    except Exception as error:  # the client has a dozen of them, and no base class
        why = " ".join(str(error).split())[:200]
        raise UserError(f"wandb:{name}: can't be had from W&B ({type(error).__name__}: {why})") from None
    if size > MOST_BYTES:
        raise _too_large(f"wandb:{name}")
    found = sorted(folder.rglob("best.ckpt")) or sorted(folder.rglob("*.ckpt"))
    if len(found) != 1:
        raise BadCheckpoint(f"wandb:{name}: has {len(found)} .ckpt files; an artifact must hold one")
    return found[0]

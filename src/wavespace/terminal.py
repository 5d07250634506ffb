"""What the verbs share at the terminal: errors as sentences, overrides among arguments, a bar for bytes."""

from __future__ import annotations

import os
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from wavespace.errors import UserError

T = TypeVar("T")

SIGTERM_EXIT = 143
"""Exit code of a run that was told to stop, as a shell gives for SIGTERM: not 0, which would say that it is done."""

_held: list[bool] = []


def stop(*_: Any) -> NoReturn:
    """On SIGTERM. Being told again does not cut off what is being saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(SIGTERM_EXIT)


def held(*_: Any) -> None:
    """On SIGTERM while OmegaConf composes, which makes another error of what is raised in it, or none: wait for `heed`.

    Being told twice does not wait.
    """
    if _held:
        stop()
    _held.append(True)


def heed() -> None:
    """Stop now, if SIGTERM came while it was `held`, or whenever it comes."""
    signal.signal(signal.SIGTERM, stop)
    if _held:
        _held.clear()
        stop()


def plain(text: str) -> str:
    """Text that somebody else may have written, with control characters and those that turn the writing direction as
    their codes: a terminal would obey them.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape").decode()


def guarded(function: Callable[[], T]) -> T:
    """Run a verb; a user's error is a sentence on stderr and exit code 2, anything else keeps its traceback."""
    try:
        return function()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os._exit(0)  # the reader of our output has gone
    except UserError as error:
        # A loader's worker wraps the text in its own traceback; the sentence is its last part.
        message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
        print(f"wavespace: {plain(message)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        from wavespace.data.disk import FULL_OR_BROKEN, refusal

        if error.errno not in FULL_OR_BROKEN:
            raise
        print(f"wavespace: {refusal(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        from wavespace import config

        overrides, folder = hydra_arguments(sys.argv[1:])
        faults = config.explain(overrides, folder) if isinstance(error, config.CompositionErrors) else None
        if faults is None:
            raise
        print(f"wavespace: {plain(str(faults))}", file=sys.stderr)
        sys.exit(2)


def hydra_arguments(arguments: list[str]) -> tuple[list[str], str | None]:
    """The overrides among Hydra's arguments, and its --config-dir."""
    overrides, folder = [], None
    words = iter(arguments)
    for word in words:
        if word in ("--config-dir", "-cd"):
            folder = next(words, None)
        elif word.startswith("--config-dir="):
            folder = word.partition("=")[2]
        elif word in ("--cfg", "-c", "--package", "-p", "--config-name", "-cn", "--config-path", "-cp", "--info", "-i"):
            next(words, None)
        elif not word.startswith("-"):
            overrides.append(word)
    return overrides, folder


@contextmanager
def byte_progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with MB/s and the time that is left, on a terminal; yields what to call with the bytes that were done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # No thread redraws it: a process that forks has none.
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
        task, drawn = progress.add_task(title, total=total, completed=done), 0.0

        def advance(size: int) -> None:
            nonlocal drawn
            progress.advance(task, size)
            if time.monotonic() > drawn + 0.1:
                drawn = time.monotonic()
                progress.refresh()

        yield advance
        progress.refresh()

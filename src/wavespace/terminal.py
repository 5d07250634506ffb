"""What the verbs share at the terminal: arguments, errors as sentences, a bar for bytes."""

from __future__ import annotations

import argparse
import difflib
import multiprocessing
import os
import re
import signal
import stat
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from wavespace.errors import UserError
from wavespace.files import FULL_OR_BROKEN, refusal

T = TypeVar("T")

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask for an end: Ctrl-C, a scheduler's, and that of a terminal that is closed."""

STOP_EXITS = tuple(128 + number for number in STOPS)
"""Exit codes of what a signal has stopped, as a shell gives them: not 0, which would say that it is done."""

SIGTERM_EXIT = 128 + signal.SIGTERM


class Stopped(SystemExit):
    """What a signal raises.

    Args:
        number: of the signal; 128 more is the exit code.

    Attributes:
        sentence: what the user is told; whoever knows more than that it was stopped says so here.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.sentence = "stopped"

    def __str__(self) -> str:
        return f"by {signal.Signals(self.number).name}"


class _Told:
    """What this process has been told by signals.

    Attributes:
        number: the first signal.
        holds: how many `hold` are open: the signal is then only noted.
        raised: it has been raised as `Stopped`, so that files are being left in order.
    """

    number: int | None = None
    holds = 0
    raised = False


def told() -> int | None:
    """The signal that has told this process to stop, if one has."""
    return _Told.number


def on_stop(handler: Any) -> dict[signal.Signals, Any]:
    """Set a handler for each of `STOPS`, but those that this process was started to ignore; returns those before."""
    before = {number: signal.getsignal(number) for number in STOPS}
    for number, kept in before.items():
        if kept is not signal.SIG_IGN:
            signal.signal(number, handler)
    return before


def listen() -> dict[signal.Signals, Any]:
    """From now on the first signal of `STOPS` raises `Stopped`, or waits for `heed`; a second Ctrl-C does not wait."""
    sys.unraisablehook = _raise_again
    return on_stop(_stop)


def _raise_again(unraisable: Any) -> None:
    """Where Python can't raise, as while it forks or deletes, it drops `Stopped`: have the signal come again."""
    if unraisable.exc_type is not Stopped:
        sys.__unraisablehook__(unraisable)
        return
    _Told.raised = False
    again = threading.Timer(0.05, os.kill, (os.getpid(), unraisable.exc_value.number))
    again.daemon = True
    again.start()


def _stop(number: int, _: object) -> None:
    leave_terminal(number)
    if _Told.raised:  # files are being left in order, which only Ctrl-C cuts off
        if number == signal.SIGINT:
            exit_at_once(128 + number)
        return
    again = _Told.number is not None
    _Told.number = _Told.number or number
    if not _Told.holds or (again and number == signal.SIGINT):
        _raise()


def _raise() -> NoReturn:
    assert _Told.number
    _Told.raised = True
    raise Stopped(_Told.number)


def leave_terminal(number: int) -> None:
    """On SIGHUP write no more to the terminal, which is gone, so that it can't make an error of what is said."""
    if number != signal.SIGHUP:
        return
    with open(os.devnull, "r+b") as nothing:
        for file in (1, 2):
            if stat.S_ISCHR(os.fstat(file).st_mode):
                os.dup2(nothing.fileno(), file)


def exit_at_once(code: int) -> NoReturn:
    """End, although another thread may wait in a call that doesn't return, and leave no child such as a loader."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def hold() -> None:
    """From here to `heed` a signal waits: while OmegaConf composes, which makes another error of what is raised in it,
    or none; while a step is made, or files that belong together are written.
    """
    _Told.holds += 1


def heed() -> None:
    """Stop now, if a signal came since `hold`."""
    _Told.holds -= 1
    if _Told.number is not None and not _Told.holds and not _Told.raised:
        _raise()


@contextmanager
def held() -> Iterator[None]:
    """`hold`, and `heed` at the end."""
    hold()
    try:
        yield
    finally:
        heed()


@contextmanager
def if_stopped(sentence: Callable[[], str]) -> Iterator[None]:
    """Where a signal stops what is within, the user is told this sentence."""
    try:
        yield
    except Stopped as end:
        end.sentence = sentence()
        raise


@contextmanager
def listening() -> Iterator[None]:
    """`listen` meanwhile, as for a call in somebody's own program; does nothing where this process listens already."""
    if signal.getsignal(signal.SIGTERM) is _stop or threading.current_thread() is not threading.main_thread():
        yield
        return
    hook, before = sys.unraisablehook, listen()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _Told.number, _Told.holds, _Told.raised = None, 0, False


def plain(text: str) -> str:
    """Text that somebody else may have written, with control characters and those that turn the writing direction as
    their codes: a terminal would obey them.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape").decode()


def guarded(function: Callable[[], T], explain: Callable[[Exception], str | None] = lambda error: None) -> T:
    """Run a verb; a user's error is a sentence on stderr and exit code 2, anything else keeps its traceback.

    Args:
        function: the verb.
        explain: the sentence for an error of another kind; None if it has none.
    """
    try:
        return function()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Stopped as end:
        if end.sentence:
            print(f"wavespace: {end.sentence}", file=sys.stderr)
        end.sentence = ""  # it is said once
        raise
    except BrokenPipeError:
        os._exit(0)  # the reader of our output has gone
    except UserError as error:
        _trace(error)
        # A loader's worker wraps the text in its own traceback; the sentence is its last part.
        message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
        print(f"wavespace: {plain(message)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_OR_BROKEN:
            said: str | None = str(refusal(error))
        else:
            said = explain(error)
        if said is None:
            raise
        _trace(error)
        print(f"wavespace: {plain(said)}", file=sys.stderr)
        sys.exit(2)


def _trace(error: BaseException) -> None:
    """With WAVESPACE_TRACEBACK=1, print where an error that is told in a sentence came from, and what caused it."""
    if os.environ.get("WAVESPACE_TRACEBACK") != "1":
        return
    cause: BaseException | None = error
    while cause is not None:
        cause.__suppress_context__ = False  # `from None` keeps the cause from those who want a sentence
        cause = cause.__cause__ or cause.__context__
    traceback.print_exception(error)


def printable(name: object) -> str:
    """A name on one line: line breaks and bytes that are not UTF-8 as their codes, too."""
    return plain(str(name)).replace("\n", "\\n").replace("\t", "\\t")


class Arguments(argparse.ArgumentParser):
    """Arguments of a verb: flags stand anywhere, `--` ends them, and a wrong one is a `UserError`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse does, with flags and other words in any order.

        Raises:
            UserError: a flag is unknown, or an argument is missing or of the wrong kind.
        """
        flags, words = flags_and_words(self, sys.argv[1:] if args is None else args)
        return super().parse_args([*flags, "--", *words] if words else flags, namespace)

    def error(self, message: str) -> NoReturn:
        """What argparse calls with a fault."""
        raise UserError(f"{message}; `{self.prog} --help` tells more")


def _at_home(word: str) -> str:
    """An override with the home folder in place of `~`, which a shell leaves after `=`."""
    key, equals, value = word.partition("=")
    if not equals or not value.startswith("~"):
        return word
    return key + equals + re.sub(r"(^|,)~(?=[/,]|$)", lambda start: start[1] + os.path.expanduser("~"), value)


def flags_and_words(parser: argparse.ArgumentParser, given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of a parser with their values, and the other words; all that follows `--` is words.

    Raises:
        UserError: a flag is unknown.
    """
    known = parser._option_string_actions
    flags: list[str] = []
    words: list[str] = []
    left = [_at_home(word) for word in given]
    while left:
        word = left.pop(0)
        name = word.partition("=")[0]
        if word == "--":
            return flags, words + left
        if not word.startswith("-") or word == "-":
            words.append(word)
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f", did you mean '{close[0]}'?" if close else f"; there are {', '.join(known)}"
            file = f" (the file of this name is ./{word})" if os.path.lexists(word) else ""
            raise UserError(f"{parser.prog}: there is no flag '{name}'{file}{hint}")
        else:
            flags.append(word)
            takes = known[name].choices if known[name].nargs == "?" else None
            follows = bool(left) and left[0] != "--" and left[0].partition("=")[0] not in known
            if "=" not in word and known[name].nargs != 0 and follows and (takes is None or left[0] in takes):
                value = left.pop(0)
                flags[-1:] = [f"{word}={value}"] if word.startswith("--") else [word, value]
    return flags, words


def folder_or_file(text: str) -> Path:
    """The path that a flag names; `~` is the home folder, also after `=`, where a shell leaves it."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a file or a folder")
    return Path(text).expanduser()


def composing(prog: str, about: str) -> Arguments:
    """The arguments of a verb that composes a configuration: overrides, and a folder with a user's own groups."""
    parser = Arguments(prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=[], metavar="OVERRIDE", help="group=choice, or part.key=value")
    parser.add_argument("--config-dir", "-cd", type=folder_or_file, metavar="FOLDER", help="groups of your own")
    return parser


def hydra_arguments(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The overrides among the arguments of `wavespace train`, and its --config-dir."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    flags, overrides = flags_and_words(parser, arguments)
    return overrides, parser.parse_known_args(flags)[0].config_dir


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

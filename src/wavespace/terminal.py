"""What the verbs share at the terminal: arguments, errors as sentences."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from wavespace.errors import UserError
from wavespace.files import DISK_ERRORS, refusal
from wavespace.signals import Stopped, raised_for
from wavespace.text import nearest, printable, printable_text

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


def guarded(function: Callable[[], T], explain: Callable[[], str | None] = lambda: None) -> T:
    """Run a verb; a user's error is a sentence on stderr and exit code 2, anything else keeps its traceback.

    Args:
        function: the verb.
        explain: gives the sentence for an error of another kind; None if there is none.
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
    except Exception as error:
        if (number := raised_for()) is not None:  # OmegaConf turns `Stopped` into another error
            _trace(error)
            print("wavespace: stopped", file=sys.stderr)
            sys.exit(128 + number)
        _exit_with_sentence(error, explain)
        raise


def _exit_with_sentence(error: Exception, explain: Callable[[], str | None]) -> None:
    """Print the sentence that an error has, and exit; do nothing where it has none."""
    if isinstance(error, UserError):
        # A loader's worker wraps the text in its own traceback; the sentence is its last part.
        said: str | None = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
    elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
        said = str(refusal(error))
    else:
        said = explain()
    if said is not None:
        _trace(error)
        print(f"wavespace: {printable_text(said)}", file=sys.stderr)
        sys.exit(2)


def show_warnings_as_sentences() -> None:
    """Print warnings of our own modules as `wavespace: ...` on stderr; those of others stay as they are."""
    standard, own = warnings.showwarning, Path(__file__).parent

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning and own in Path(filename).parents:
            print(f"wavespace: {printable(message)}", file=file or sys.stderr)
        else:
            standard(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def table_console() -> Console:
    """Return a console for tables of any text; in a file or a pipe each row is one line."""
    from rich.console import Console

    return Console(soft_wrap=True, markup=False, highlight=False, width=None if sys.stdout.isatty() else 1000)


def _trace(error: BaseException) -> None:
    """With WAVESPACE_TRACEBACK=1, print where an error that is shown as a sentence came from, and what caused it."""
    if os.environ.get("WAVESPACE_TRACEBACK") != "1":
        return
    cause: BaseException | None = error
    while cause is not None:
        cause.__suppress_context__ = False  # `from None` keeps the cause from those who want a sentence
        cause = cause.__cause__ or cause.__context__
    traceback.print_exception(error)


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
        raise UserError(f"{message}; `{self.prog} --help` describes it")


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
            hint = nearest(name, known) or f"; there are {', '.join(known)}"
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

"""What the verbs share at the terminal: errors as sentences, and overrides among arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from wavespace.errors import UserError

T = TypeVar("T")


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
        print(f"wavespace: {message}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        from wavespace import config

        overrides, folder = hydra_arguments(sys.argv[1:])
        faults = config.explain(overrides, folder) if isinstance(error, config.CompositionErrors) else None
        if faults is None:
            raise
        print(f"wavespace: {faults}", file=sys.stderr)
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

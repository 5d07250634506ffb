"""Ctrl-C, SIGTERM and SIGHUP: raise `Stopped`, at once or after a deferral."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what a scheduler sends, and what a closed terminal sends."""

STOP_EXITS = tuple(128 + number for number in STOPS)
"""Exit codes of a stopped process, as a shell gives them."""

SIGTERM_EXIT = 128 + signal.SIGTERM


class Stopped(SystemExit):
    """Raised by a signal.

    Args:
        number: of the signal; the exit code is 128 more.

    Attributes:
        sentence: the message for the user; `if_stopped` replaces it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.sentence = "stopped"

    def __str__(self) -> str:
        return f"by {signal.Signals(self.number).name}"


class _State:
    """Signals that this process has received.

    Attributes:
        number: the first signal.
        deferrals: how many `defer_stop` are open; a signal is then only noted.
        raised: whether `Stopped` was raised, so that the process is cleaning up.
    """

    number: int | None = None
    deferrals = 0
    raised = False


def stop_signal() -> int | None:
    """Return the first signal that asked this process to stop; None if none did."""
    return _State.number


def raised_for() -> int | None:
    """Return the signal for which `Stopped` was raised; None if it was not."""
    return _State.number if _State.raised else None


def set_stop_handler(handler: Any) -> dict[signal.Signals, Any]:
    """Set a handler for each of `STOPS`, except those ignored when the process started; returns the old handlers."""
    before = {number: signal.getsignal(number) for number in STOPS}
    for number, kept in before.items():
        if kept is not signal.SIG_IGN:
            signal.signal(number, handler)
    return before


def raise_on_stop() -> dict[signal.Signals, Any]:
    """Have the first signal of `STOPS` raise `Stopped`, or wait for `handle_deferred_stop`; a second Ctrl-C exits."""
    sys.unraisablehook = _raise_again
    return set_stop_handler(_stop)


def _raise_again(unraisable: Any) -> None:
    """Send the signal again where Python dropped `Stopped`: it can't raise within a fork or a destructor."""
    if unraisable.exc_type is not Stopped:
        sys.__unraisablehook__(unraisable)
        return
    _State.raised = False
    again = threading.Timer(0.05, os.kill, (os.getpid(), unraisable.exc_value.number))
    again.daemon = True
    again.start()


def _stop(number: int, _: object) -> None:
    leave_terminal(number)
    if _State.raised:  # only Ctrl-C interrupts the cleaning up
        if number == signal.SIGINT:
            exit_at_once(128 + number)
        return
    again = _State.number is not None
    _State.number = _State.number or number
    if not _State.deferrals or (again and number == signal.SIGINT):
        _raise()


def _raise() -> NoReturn:
    assert _State.number
    _State.raised = True
    raise Stopped(_State.number)


def leave_terminal(number: int) -> None:
    """On SIGHUP send output to nowhere: the terminal is gone, and writing to it would raise."""
    if number != signal.SIGHUP:
        return
    with open(os.devnull, "r+b") as nothing:
        for file in (1, 2):
            if stat.S_ISCHR(os.fstat(file).st_mode):
                os.dup2(nothing.fileno(), file)


def exit_at_once(code: int) -> NoReturn:
    """Kill child processes and exit, even while another thread is blocked."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def exit_with_parent() -> None:
    """End this process of `multiprocessing` when the one that started it has ended, be it by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def defer_stop() -> None:
    """Make signals wait until `handle_deferred_stop`.

    For a training step, for files that belong together, and while OmegaConf composes, which turns `Stopped` into
    another error or drops it.
    """
    _State.deferrals += 1


def handle_deferred_stop() -> None:
    """End a `defer_stop`; raise `Stopped` if a signal came meanwhile."""
    _State.deferrals = max(0, _State.deferrals - 1)
    if _State.number is not None and not _State.deferrals and not _State.raised:
        _raise()


@contextmanager
def stop_deferred() -> Iterator[None]:
    """Defer signals to the end of a block."""
    defer_stop()
    try:
        yield
    finally:
        handle_deferred_stop()


@contextmanager
def if_stopped(sentence: Callable[[], str]) -> Iterator[None]:
    """Set the message for a signal that stops the block."""
    try:
        yield
    except Stopped as end:
        end.sentence = sentence()
        raise


@contextmanager
def raising_on_stop() -> Iterator[None]:
    """`raise_on_stop` for a block in somebody's own program; does nothing where it is in force already."""
    if signal.getsignal(signal.SIGTERM) is _stop or threading.current_thread() is not threading.main_thread():
        yield
        return
    hook, before = sys.unraisablehook, raise_on_stop()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.number, _State.deferrals, _State.raised = None, 0, False

"""`wavespace train [overrides]`: train one configuration, or many with `-m`."""

from __future__ import annotations

import os
import signal
import sys

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from wavespace.config import conf_dir, explain, rewrite
from wavespace.config.trainer import rank
from wavespace.errors import UserError
from wavespace.signals import defer_stop, handle_deferred_stop, raise_on_stop, set_stop_handler
from wavespace.terminal import flags_and_words, guarded, hydra_arguments
from wavespace.training.multirun import refuse_idle_settings, refuse_search
from wavespace.training.run import run


def main(arguments: list[str]) -> None:
    """Run Hydra on the arguments; faults of the configuration come all at once, as `guarded` prints them."""
    sys.argv = ["wavespace train", *arguments]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors to us, who explain them
    if guarded(rank):
        set_stop_handler(signal.SIG_IGN)  # the first process decides for all
    raise_on_stop()
    defer_stop()
    guarded(_rewrite_arguments, _explain)
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(_job)
    guarded(entry, _explain)
    guarded(handle_deferred_stop)  # where there was no job, as --cfg has none


def _explain() -> str | None:
    """Return what is wrong with the overrides; None if nothing is."""
    return explain(*hydra_arguments(sys.argv[1:]), many=bool({"-m", "--multirun"} & set(sys.argv)))


def _rewrite_arguments() -> None:
    """Rewrite `sys.argv` for Hydra: flags first, `~` in --config-dir expanded, overrides in its grammar."""
    if {"-sc", "--shell-completion"} & set(sys.argv):  # a line that is being typed
        return
    flags, overrides = flags_and_words(get_args_parser(), sys.argv[1:])
    parts = [word.partition("=") if word.startswith("-") else ("", "", word) for word in flags]
    given = [name + equals + os.path.expanduser(value) for name, equals, value in parts]
    sys.argv[1:] = [*given, *rewrite(overrides, hydra_arguments([*given, *overrides])[1])]
    names = {name for name, _, _ in parts}
    if names & {"-m", "--multirun"} and (shown := names & {"-c", "--cfg", "-i", "--info"}):
        raise UserError(f"{shown.pop()} shows the configuration of one run; leave out -m, and give each key one value")


def _job(cfg: DictConfig) -> float | None:
    """Train one of Hydra's jobs. A single run's errors end the program here; a multirun's go to its launcher."""
    handle_deferred_stop()
    if cfg.search is not None:
        guarded(refuse_search)
    if HydraConfig.get().mode is not RunMode.MULTIRUN:
        guarded(lambda: refuse_idle_settings(HydraConfig.get()))
        return guarded(lambda: run(cfg))
    value = run(cfg)
    defer_stop()  # Hydra composes the next
    return value

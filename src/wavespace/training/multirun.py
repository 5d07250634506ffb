"""What Hydra calls around a multirun: each member is checked before the first starts, and a table ends it."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, NoReturn

from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, open_dict, read_write

from wavespace.config import command_line, compose_rewritten, resolved
from wavespace.config.construction import make
from wavespace.errors import UserError
from wavespace.inputs import inputs_read_once
from wavespace.runfolder import RunFolder
from wavespace.signals import defer_stop, handle_deferred_stop
from wavespace.terminal import guarded, table_console
from wavespace.text import printable_text

SHAPE_SECTIONS = ("frontend", "model", "task", "baseline")
"""Sections that, with the data's spec, decide whether the parts fit together."""

HERE = (BasicLauncherConf._target_, "hydra_plugins.wavespace_launchers.LocalLauncher")
"""Launchers whose jobs run on this machine."""


def refuse_idle_settings(hydra: Any) -> None:
    """Raise `UserError` at settings of Hydra without effect: those that would move runs, a multirun's without -m."""
    moved = {
        "job.chdir": bool(hydra.job.chdir),
        "run.dir": hydra.run.dir != ".",
        "sweep.subdir": hydra.sweep.subdir != ".",
    }
    if given := [f"hydra.{key}" for key in moved if moved[key]]:
        raise UserError(f"{given[0]} moves no run: leave it out; runs=… says where runs/<name>/<signature> lie")
    words = [*hydra.overrides.hydra, *hydra.overrides.task]
    many = [word for word in words if re.match(r"\+*(hydra[./](launcher|sweeper)|sweep=)", word)]
    if many and hydra.mode is not RunMode.MULTIRUN:
        raise UserError(f"{many[0]}: it is for a multirun; add -m, or leave it out")


def refuse_search() -> NoReturn:
    """Raise the `UserError` about a W&B search that no launcher for it runs."""
    raise UserError("this sweep is drawn by W&B: wavespace train -m sweep=… hydra/launcher=runpod (docs/runpod.md)")


def enumerates(hydra: DictConfig) -> bool:
    """Whether the members are known beforehand; sweepers other than Hydra's own decide by the results."""
    return bool(hydra.sweeper._target_ == BasicSweeperConf._target_)


class CheckMembers(Callback):
    """Check all members of a multirun before the first starts; print a table of them after the last."""

    def __init__(self) -> None:
        self.members: list[tuple[str, DictConfig]] = []

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse what can't run, and compose each member that is known."""
        handle_deferred_stop()  # Hydra has composed; each member's composition defers signals itself
        hydra = config.hydra
        # `guarded`, as Hydra would turn an error here into a warning.
        guarded(lambda: refuse_idle_settings(hydra))
        if config.search is not None and not getattr(get_class(hydra.launcher._target_), "takes_searches", False):
            guarded(refuse_search)
        if enumerates(hydra):
            guarded(lambda: self._check_members(*command_line(hydra), hydra.sweeper.params or {}))
            if hydra.launcher._target_ in HERE:
                guarded(self._check_here)
        else:
            guarded(lambda: set_direction(config))
        if _in_this_process(hydra):
            defer_stop()  # Hydra composes the first job

    def _check_members(self, overrides: list[str], folder: str | None, params: dict[str, str]) -> None:
        from wavespace.build import check_shapes  # torch, which a single run may do without

        given = [f"{key}={values}" for key, values in params.items()]  # of the chosen sweep; the command line wins
        choices = list(
            {
                (key := o.get_key_element()): [f"{key}={value}" for value in o.sweep_string_iterator()]
                if o.is_sweep_override()
                else [f"{key}={o.get_value_element_as_str()}"]  # as Hydra's sweeper writes it
                for o in OverridesParser.create().parse_overrides(given + overrides)
            }.values()
        )
        swept = [i for i, values in enumerate(choices) if len(values) > 1]
        built: dict[str, Any] = {}
        fit: set[str] = set()
        for member in itertools.product(*choices):
            cfg = compose_rewritten(member, folder)
            # Each part is built once, and parts that members share are checked once.
            parts = {part: json.dumps(section, sort_keys=True) for part, section in resolved(cfg).items()}
            for part in ("data", "optim"):
                if parts[part] not in built:
                    built[parts[part]] = make(cfg[part], part)
            spec = built[parts["data"]].spec
            shapes = repr(spec) + "".join(parts[part] for part in SHAPE_SECTIONS)
            if shapes not in fit:
                check_shapes(cfg, spec)
                fit.add(shapes)
            self.members.append((" ".join(member[i] for i in swept), cfg))

    def _check_here(self) -> None:
        """Refuse a member that is to be trained where its files are missing, or Lightning or W&B can't run it."""
        from wavespace.build import check_trainer

        with inputs_read_once():
            members = [(cfg, RunFolder.of(cfg)) for _, cfg in self.members]
        to_train = [one for one in members if one[0].fresh or one[1].status().get("state") != "finished"]
        for _, folder in to_train:
            if folder.missing:
                raise folder.missing
        for cfg in {f"{cfg.trainer} {cfg.logger}": cfg for cfg, _ in to_train}.values():
            check_trainer(cfg)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Print the table after the last job: Hydra ends at once where one has failed. Other launchers print theirs."""
        hydra = config.hydra
        last = hydra.mode is RunMode.MULTIRUN and hydra.job.num == len(self.members) - 1
        if last and _in_this_process(hydra):
            self._print_table()

    def _print_table(self) -> None:
        from rich.table import Table

        table = Table("run", "state", "metric", "folder", box=None)
        with inputs_read_once():
            folders = [RunFolder.of(cfg) for _, cfg in self.members]
        for (label, _), run in zip(self.members, folders):
            status = run.status()
            value = status.get("metrics", {}).get(status.get("monitor"))
            metric = f"{status['monitor']} {value:.3f}" if value is not None else str(status.get("reason") or "-")
            table.add_row(*map(printable_text, (label, str(status.get("state", "not started")), metric, str(run.path))))
        table_console().print(table)


def _in_this_process(hydra: DictConfig) -> bool:
    """Whether the jobs run in this process, one after another."""
    return bool(hydra.launcher._target_ == BasicLauncherConf._target_)


def set_direction(config: DictConfig) -> None:
    """Have a sweeper that optimises go the way of the task's metric, unless the command line gives a direction."""
    given = any(text.startswith("hydra.sweeper.direction=") for text in config.hydra.overrides.hydra)
    if "direction" in config.hydra.sweeper and not given:
        task: Any = get_class(config.task._target_)
        with read_write(config), open_dict(config):
            config.hydra.sweeper.direction = {"min": "minimize", "max": "maximize"}[task.mode]

"""Configuration: where it lives, how it is composed, how it is held against the code, and its identity.

Nothing here imports torch: `wavespace train --cfg job` and the return of a finished run must stay quick.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
import logging
import math
import os
import pickle
import re
import shlex
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import MISSING, AnyNode, DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from wavespace.config import trainer, userfiles
from wavespace.config.claims import claims
from wavespace.config.moved import moved
from wavespace.config.overrides import IsText, as_text, started_anew
from wavespace.errors import ConfigError, place_of
from wavespace.signals import stop_deferred

if TYPE_CHECKING:
    from pydantic import TypeAdapter

GROUPS = ("data", "frontend", "model", "task", "optim", "trainer", "logger", "experiment", "sweep")


@dataclass
class TrainConfig:
    """The root of every configuration; each group holds a `_target_` and that constructor's own keywords."""

    data: Any = MISSING
    frontend: Any = MISSING
    model: Any = MISSING
    task: Any = MISSING
    optim: Any = MISSING
    trainer: Any = MISSING
    logger: Any = None

    name: str = "run"
    """The folder that runs of one study share: runs/<name>/<signature>/."""
    seed: int = 0
    """Seed of weights, data order, augmentation and dropout. 0 is a seed."""
    fresh: bool = False
    """Start over although a run of this configuration exists."""
    resume: str | None = None
    """Checkpoint that an unfinished run goes on from, last or best; one that has diverged goes on only with it."""
    runs: str = "runs"
    """Where run folders live (WAVESPACE_RUNS sets it)."""
    save_every: int = 200
    """Steps between checkpoints; one is also written after each validation."""
    patience: int | None = None
    """Stop after this many validations without a better one."""
    cache: bool = False
    """Compute the features of a frozen front-end once for the whole store of recordings, and read them from then on."""
    compile: bool = False
    """Compile the model with torch.compile."""
    baseline: Any = None
    """A model without parameters that is scored on the same test data beside the trained one."""
    search: Any = None
    """A search that W&B draws, for `train -m hydra/launcher=runpod`: method, metric, parameters, run_cap."""
    expect: Any = None
    """What is claimed of the figures, by name: `{test/l1_db: "< 0.5 * baseline/l1_db"}`; told at the end of a run."""


ConfigStore.instance().store(name="schema", node=TrainConfig)

ROOT = tuple(field.name for field in dataclasses.fields(TrainConfig))
"""Keys of the root."""

TEXT = tuple(field.name for field in dataclasses.fields(TrainConfig) if field.type == "str")
"""Root keys whose value is text whatever it looks like."""

NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,48}[A-Za-z0-9_])?")
"""What `name` may be: a folder, part of a W&B run's id (64 characters with the signature) and of an artifact's name."""

RUNTIME = {
    "": {"name", "fresh", "resume", "runs", "logger", "compile", "save_every", "expect", "search"},
    "data": {"workers", "root", "stores", "url"},
    "frontend": {"weights"},
    "trainer": {
        "accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "enable_model_summary",
        "log_every_n_steps", "detect_anomaly", "barebones",
    },
}  # fmt: skip
"""What can't change the result of a run, by section: left out of its identity."""

PLACES = {"root", "stores", "url", "weights"}
"""Those of them that say where files are, in our own constructors."""

FILES = ("folder", "midi", "test_midi", "soundfont")
"""Settings that say where files are, and null that there are none: that they are set is part of the identity."""


def conf_dir() -> Path:
    """The folder of configuration files: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(
        f"no configuration found in {package / 'conf'} or {package.parents[1] / 'conf'}; reinstall wavespace"
    )


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Compose and validate a configuration from overrides, as `wavespace train` does; for notebooks and tests.

    Args:
        overrides: as on the command line, e.g. `["experiment=demo", "optim.lr=1e-3"]`.
        config_dir: a folder with a user's own groups, as `--config-dir`.

    Raises:
        ConfigError: listing every fault with its key, its file and the nearest valid name.
    """
    overrides = read(overrides, config_dir)
    try:
        cfg = _compose(overrides, config_dir)
    except Exception as error:  # of Hydra, OmegaConf or YAML: a user's files may hold anything
        raise ConfigError(explain(overrides, config_dir) or _first_line(error)) from None
    check(cfg, overrides, config_dir)
    return cfg


def read(overrides: Sequence[str], config_dir: str | Path | None = None) -> list[str]:
    """Overrides as Hydra should read them (`wavespace.config.overrides`).

    Raises:
        ConfigError: there is no such folder of configuration files.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"{overrides}: overrides are a list, as in [{overrides!r}]")
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
    for file in userfiles.files(Path(config_dir)) if config_dir is not None else ():
        if said := userfiles.excessive(file):
            raise ConfigError(said)
        shipped = conf_dir() / file.relative_to(Path(str(config_dir)))
        if file.parent.name in GROUPS and shipped.is_file() and not shipped.samefile(file):
            raise ConfigError(
                f"{file}: Wavespace has a {file.parent.name} of this name, which is taken; rename the file"
            )
    return started_anew(as_text(overrides, _text_keys(overrides, config_dir)), GROUPS)


def _text_keys(overrides: Sequence[str], config_dir: str | Path | None, on: DictConfig | None = None) -> IsText:
    """Which keys hold text: by the root's schema, and by what a section's constructor takes.

    The overrides are of the configuration `on`; None: of the one that is composed.
    """
    known = {} if on is None else {"cfg": on}

    def is_text(key: str, value: Any, typed: str) -> bool:
        section, _, _ = key.partition(".")
        if value is None or section not in (*GROUPS, "hydra"):
            return key in TEXT
        if key in GROUPS or key.startswith(("hydra.launcher.env.", "hydra.launcher.secrets.")):
            return True
        parent, _, last = key.rpartition(".")
        if section == "hydra":
            from wavespace_launcher.plan import Settings

            hints = typing.get_type_hints(Settings) if parent == "hydra.launcher" else {}
            return last in hints and bool(_mistyped(value, hints[last])) and not _mistyped(typed, hints[last])
        if not known:
            chosen = [text for text in overrides if text.split("=")[0] in GROUPS and "," not in text]
            try:
                known["cfg"] = _compose(chosen, config_dir)
            except Exception:  # which is told when all of them are composed
                known["cfg"] = OmegaConf.create()
        node = OmegaConf.select(known["cfg"], parent)
        stands = node._get_node(last) if isinstance(node, DictConfig) and last in node else None
        stands = stands._value() if isinstance(stands, AnyNode) else stands
        if stands is not None:
            return isinstance(stands, str) and not stands.startswith("${")
        targets = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith(f"{parent}._target_=")]
        target = targets[-1] if targets else node.get("_target_") if isinstance(node, DictConfig) else None
        try:
            hint = _constructor(str(target))[1][last]
        except Exception:
            return False
        return (isinstance(value, str) or bool(_mistyped(value, hint))) and not _mistyped(typed, hint)

    return is_text


def _compose(overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    search = []
    if config_dir:
        folder = QuotedString(f"file://{Path(config_dir).absolute()}", Quote.single).with_quotes()
        search = [f"hydra.searchpath=[{folder}]"]
    GlobalHydra.instance().clear()
    with stop_deferred(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose("train", overrides=[*overrides, *search])


class _Choices:
    """Hydra's files, but that an experiment's values for a group go with its own choice of that group.

    `experiment=medley_unet model=transformer` would else be a transformer with the UNet's depth and width.
    """

    def __init__(self, files: Any, chosen: dict[str, str]) -> None:
        self.files, self.chosen = files, chosen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    def load_config(self, config_path: str) -> Any:
        """A file's configuration, as Hydra reads it."""
        found = self.files.load_config(config_path=config_path)
        if found is None or not config_path.startswith("experiment/") or not isinstance(found.config, DictConfig):
            return found
        own = {entry.group.lstrip("/"): entry.value for entry in found.defaults_list or [] if entry.is_override()}
        for group in GROUPS:
            choice = self.chosen.get(group)
            if choice is None or choice != f"{group}/{own.get(group, choice.partition('/')[2])}":
                found.config.pop(group, None)
        return found


def _compose_chosen(loader: ConfigLoaderImpl, defaults: Sequence[Any], repo: Any) -> DictConfig:
    chosen = {each.package: each.config_path for each in defaults if each.parent == "train"}
    files = _Choices(repo, chosen)
    anew = set[str]()  # groups for which an experiment names a constructor: what a file says for another is not for it
    for each in defaults:
        if (each.config_path or "").startswith("experiment/"):
            said = files.load_config(each.config_path).config
            anew |= {group for group in GROUPS if "_target_" in (_plain(said.get(group), "", {}) or {})}
    kept = [each for each in defaults if (each.package or "").split(".")[0] not in anew]
    return _compose_all(loader, kept, files)


# Every way into Hydra (its main, its launchers, `compose`, --cfg) goes through this method, and there is no public one.
_compose_all: Any = ConfigLoaderImpl._compose_config_from_defaults_list
setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _compose_chosen)  # noqa: B010


def compose_once(multirun: DictConfig) -> Callable[[Sequence[str], str | Path | None], DictConfig]:
    """`compose` for the override-sets of the multirun that is under way.

    Its check, Hydra's own and its launcher all want every set composed, which takes a tenth of a second: from now on
    Hydra's loader reads files once for each choice of groups, and applies the other overrides to a copy.
    """
    loader: Any = GlobalHydra.instance().config_loader()
    load, chosen = loader.load_sweep_config, dict[tuple[str, ...], bytes]()
    parser, parsed = OverridesParser.create(), dict[str, Override]()

    def load_once(master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        with stop_deferred():
            for text in sweep_overrides:
                if text not in parsed:
                    parsed[text] = parser.parse_override(text)
            given = [parsed[text] for text in sweep_overrides]
            groups = [
                o for o in given if loader.repository.group_exists(o.key_or_group) and not isinstance(o.value(), dict)
            ]
            key = tuple(str(o.input_line) for o in groups)
            if key not in chosen:
                chosen[key] = pickle.dumps(load(master_config, list(key)))
            cfg: DictConfig = pickle.loads(chosen[key])
            ConfigLoaderImpl._apply_overrides_to_config([o for o in given if o not in groups], cfg)
            cfg.hydra.overrides.task = list(sweep_overrides)
            naming = cfg.hydra.job.config.override_dirname
            cfg.hydra.job.override_dirname = get_overrides_dirname(
                overrides=given, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
            )
            OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
            return cfg

    def composed(overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
        try:
            cfg = load_once(multirun, overrides)
        except Exception as error:
            raise ConfigError(explain(overrides, config_dir) or _first_line(error)) from None
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        check(cfg, overrides, config_dir)
        return cfg

    loader.load_sweep_config = load_once
    return composed


# --- Every fault at once -------------------------------------------------------------------------------------


def check(cfg: DictConfig, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> None:
    """Raise one `ConfigError` with every fault of a composed configuration."""
    if found := list(_faults(cfg, overrides, config_dir)):
        raise ConfigError(_listed(found))


def explain(overrides: Sequence[str], config_dir: str | Path | None = None, many: bool = False) -> str | None:
    """What is wrong with overrides that don't compose: each is tried alone on top of those that do. None if they do.

    Args:
        overrides: as they were given to Hydra.
        config_dir: as `compose` takes it.
        many: they are a multirun's, whose keys may have several values.
    """
    parser = OverridesParser.create()
    good: list[str] = []
    found: list[str] = []
    # Groups first: `model.depth=3 model=unet` is legal in either order.
    for override in sorted(overrides, key=lambda text: text.split("=")[0].lstrip("+~") not in GROUPS):
        try:
            parsed = parser.parse_override(override)
        except HydraException as error:
            found.append(_explain_one(override, error, good, config_dir) + _quoted_for_a_shell(override))
            continue
        try:
            trial = [f"{parsed.input_line}"]
            if parsed.is_sweep_override():  # every member must stand on its own
                if not many:
                    found.append(_several(override))
                    continue
                trial = [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
            for one in trial:
                _compose([*good, one], config_dir)
            good.append(trial[0])
        except Exception as error:
            found.append(_explain_one(override, error, good, config_dir))
    try:
        found += _faults(_compose(good, config_dir), good, config_dir)
    except Exception as error:
        found.append(_first_line(error))
    return _listed(found) if found else None


def _quoted_for_a_shell(override: str) -> str:
    """How a shell gives Hydra, as a text, a value with signs of Hydra's grammar in it."""
    key, equals, value = override.partition("=")
    text = QuotedString(value, Quote.single).with_quotes()
    return f"; as a text it is {shlex.quote(key + equals + text)}" if equals else ""


def _several(override: str) -> str:
    key, _, values = override.partition("=")
    return (
        f"{override}: several values are for wavespace train -m, a run for each; "
        f"one list is {key}=[{values}], and one text with a comma in it {key}=\\'{values}\\'"
    )


def _explain_one(override: str, error: Exception, good: Sequence[str], config_dir: str | Path | None) -> str:
    key = override.split("=")[0].lstrip("+~")
    value = override.partition("=")[2].strip("'\"")
    message = _first_line(error)
    if isinstance(error, RecursionError):
        message = "defaults lists of its files lead back to each other"
    odd = not isinstance(error, HydraException | OmegaConfBaseException)  # of YAML, or of what it made
    own = userfiles.files(Path(config_dir)) if config_dir and odd else ()
    if broken := list(filter(None, map(userfiles.unreadable, own))):
        return "\n  ".join(broken)
    if key in GROUPS:
        names = choices(key, config_dir)
        if override.startswith("~") or value == "null":
            return f"{override}: a run needs one {key}; there are: {', '.join(names)}"
        if value not in names:
            return (
                f"{override}: there is no {key} named '{value}'{_nearest(value, names)}; there are: {', '.join(names)}"
            )
        if key in ("experiment", "sweep") and f"Key '{key}' not in" in message:
            message = "its file begins with the line `# @package _global_`; without it, it says nothing of a run"
        return f"{override}: {message}"
    try:
        known = _compose(good, config_dir)
    except Exception:
        return f"{override}: {message}"
    if key.startswith("hydra/"):
        return f"{override}: {' '.join(str(error).split())}"
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(known, parent) if parent else known
    if node is None and parent:
        first, others = parent.split(".")[0], list(known)
        return f"{override}: there is no section '{parent}'{'' if first in others else _nearest(first, others)}"
    if not isinstance(node, DictConfig | ListConfig):
        return f"{override}: {parent} is a value, which has no keys"
    if isinstance(node, DictConfig) and last not in node:
        keys = [str(name) for name in node if name != "_target_"]
        of = f" of {parent}" if parent else ""
        return f"{override}: there is no key '{key}'{_nearest(last, keys)}; keys{of}: {', '.join(keys)}"
    return f"{override}: {message}"


def _faults(
    cfg: DictConfig, overrides: Sequence[str], config_dir: str | Path | None, root: bool = True
) -> Iterator[str]:
    """Everything that is wrong with a composed configuration: its root, its values, and each node with a `_target_`."""
    where = lambda key: _origin(key, overrides, config_dir)  # noqa: E731
    broken: dict[str, str] = {}
    plain = _plain(cfg, "", broken)
    reasons: dict[str, str] = {}  # one that several keys share is one fault
    for key, reason in sorted(broken.items(), key=lambda item: item[0].count(".")):
        if not any(reason.startswith(f"Interpolation key '{name}' not found") for name in ROOT if name not in plain):
            reasons.setdefault(reason, key)
    yield from (f"{key}{where(key)}: {reason}" for reason, key in reasons.items())
    for key, node in targets(plain, ""):
        yield from _faults_of_node(key, node, where)
    if root:
        yield from _faults_of_root(plain, where)


def _plain(node: Any, key: str, broken: dict[str, str]) -> Any:
    """A configuration as plain data; `...` stands for what has no value, which goes to `broken` with the reason."""
    if isinstance(node, ListConfig):
        return [_plain_at(node, i, f"{key}.{i}", broken) for i in range(len(node))]
    if isinstance(node, DictConfig):
        names: Any = list(node.keys())
        return {name: _plain_at(node, name, f"{key}.{name}".lstrip("."), broken) for name in names}
    if isinstance(node, float) and not math.isfinite(node):
        broken[key] = f"{node} is not a number to compute with"
        return ...
    return node


def _plain_at(parent: Any, name: Any, key: str, broken: dict[str, str]) -> Any:
    if OmegaConf.is_missing(parent, name):
        choice = f"; there are: {', '.join(choices(key))}" if key in GROUPS else ""
        broken[key] = f"{key} has no value{choice}"
        return ...
    try:
        return _plain(parent[name], key, broken)
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        unset = re.search(r"Environment variable '(.*?)' not found", str(error))
        cycle = isinstance(error, RecursionError) or str(error).startswith(("Recur", "maximum recursion"))
        broken[key] = (
            f"the environment variable {unset[1]} is not set"
            if unset
            else "its interpolation leads back to itself"
            if cycle
            else _first_line(error)
        )
        return ...


def _faults_of_root(plain: dict[Any, Any], where: Callable[[str], str]) -> Iterator[str]:
    for key in plain:
        if key not in ROOT:
            yield f"{key}{where(str(key))}: there is no such key{_nearest(str(key), ROOT)}; keys: {', '.join(ROOT)}"
    for key in (key for key in ROOT if key not in plain):
        yield f"{key}: was taken out, and a run needs it; give it a value"
    name, runs = plain.get("name"), plain.get("runs")
    if isinstance(name, str) and (not NAME.fullmatch(name) or name.lower() == "launches"):
        yield (
            f"name={name!r}{where('name')}: a name becomes a folder, a W&B run and an artifact, so it has 1 to 50 of "
            "a-z A-Z 0-9 . _ -, begins and ends with a letter, a digit or _, and is not 'launches'"
        )
    if isinstance(runs, str):
        yield from (f"runs={runs}{where('runs')}: {reason}" for reason in _unusable(runs))
    expect = plain.get("expect")
    if expect is not None and expect is not ... and not isinstance(expect, dict):
        yield f"expect = {expect}{where('expect')}: it is null, or claims by the name of a figure"
        expect = None
    try:
        claims(None if expect is ... else expect, {})
    except (ValueError, AttributeError) as error:
        yield f"expect{where('expect')}: {error}"
    if plain.get("resume") not in (None, "last", "best", ...):
        yield f"resume = {plain['resume']}: it is last, best or null"
    if isinstance(seed := plain.get("seed"), int) and not -(2**63) <= seed < 2**63:
        yield f"seed = {seed}: it must lie within 64 bits, from {-(2**63)} to {2**63 - 1}"
    for key, what in (("save_every", "steps"), ("patience", "validations")):
        if isinstance(number := plain.get(key), int) and not 1 <= number <= trainer.MOST:
            yield f"{key} = {number}{where(key)}: it is a number of {what}, 1 or more"
    for key in (*GROUPS[:6], "baseline"):
        section = plain.get(key, ...)
        if key == "baseline" and section is None:
            continue
        if section is not ... and not (isinstance(section, dict) and "_target_" in section):
            yield (
                f"{key}{where(key)}: it has no _target_, the constructor that it is built by; there are: "
                + ", ".join(choices("model" if key == "baseline" else key))
            )
    logger = plain.get("logger")
    for key in logger if isinstance(logger, dict) and "_target_" not in logger else ():
        place = f"logger.{key}"
        yield f"{place}{where(place)}: there is no such key; only a logger that is chosen has keys, as logger=wandb"


def _unusable(folder: str) -> Iterator[str]:
    """Why a folder can't be made."""
    if not folder.strip() or "\0" in folder:
        yield "it must name a folder"
    elif folder.startswith("~"):
        yield f"~ is not your home folder here; write {Path(folder).expanduser()}"
    else:
        path = Path(folder).absolute()
        there = next(each for each in (path, *path.parents) if os.path.lexists(each))
        if not there.is_dir():
            yield f"{there} is in the way; it is not a folder"


def _faults_of_node(key: str, node: dict[str, Any], where: Callable[[str], str]) -> Iterator[str]:
    target = node["_target_"]
    try:
        signature, hints = _constructor(target)
    except Exception as error:  # whatever importing somebody's module may raise
        said = moved(str(target)) or f"can't be imported: {_first_line(_cause(error))}{place_of(error)}"
        yield f"{key}._target_ = {target}{where(f'{key}._target_')}: {said}"
        return
    yield from _faults_of_part(key, node, signature, where)
    parameters = {name: p for name, p in signature.items() if name not in BUILT}
    named = [name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in node.items():
        place = f"{key}.{name}"
        if key in (*GROUPS, "baseline") and name in ("_partial_", "_convert_"):
            yield f"{place}{where(place)}: it has no effect here: a run calls this constructor itself"
        if name in ("_target_", "_partial_", "_convert_", "_recursive_") or value is ...:
            continue
        if key == "trainer" and (name in trainer.OURS or name in trainer.RULES):
            continue
        if name not in parameters:
            if not takes_any:
                hint = f"{_nearest(name, named)}; keys of {key}: {', '.join(named)}"
                yield f"{place}{where(place)}: there is no such key{hint}"
        elif not isinstance(value, dict) and name in hints and (fault := _mistyped(value, hints[name])):
            yield f"{place} = {value}{where(place)}: {fault}"
    for name, p in parameters.items():
        if name in named and p.default is p.empty and name not in node:
            yield f"{key}.{name}: is missing; {target} needs it"


GIVEN = {"frontend": ("in_spec",), "model": ("in_spec", "out_spec"), "task": ("frontend",)}
"""What the builder gives to each part, which its constructor must take."""


def _faults_of_part(
    key: str, node: dict[str, Any], signature: dict[str, inspect.Parameter], where: Callable[[str], str]
) -> Iterator[str]:
    """What a section's place in a run asks of it, beside its constructor."""
    given = GIVEN.get("model" if key == "baseline" else key, ())
    absent = [name for name in given if name not in signature]
    if absent and not any(p.kind is p.VAR_KEYWORD for p in signature.values()):
        target = str(node["_target_"])
        yield (
            f"{key}._target_ = {target}{where(f'{key}._target_')}: it does not take {' and '.join(absent)}; "
            f"a {key} is built as {target.rpartition('.')[2]}({', '.join(given)}, *, …), as CONTRIBUTING.md says"
        )
    if key == "trainer":
        for name, said in trainer.faults(node):
            value = f" = {node[name]}" if name in node else ""
            yield f"trainer.{name}{value}{where(f'trainer.{name}')}: {said}"


def _cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _cause(error.__cause__)


BUILT = frozenset({"self", "in_spec", "out_spec", "frontend", "callbacks"})
"""Constructor arguments that the builder gives: sizes follow from the parts, so they never stand in YAML."""


def targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each mapping with a `_target_` in plain data, at any depth, with its dotted key."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield key, node
    for name, child in children:
        yield from targets(child, f"{key}.{name}".lstrip("."))


@cache
def _constructor(target: str) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    from hydra.utils import get_object

    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what it raises
    found = get_object(target)
    function: Any = getattr(found, "__init__") if isinstance(found, type) else found  # noqa: B009
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # annotations that only a type checker can resolve
        hints = {}
    return dict(inspect.signature(function).parameters), hints


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def _mistyped(value: Any, annotation: Any) -> str | None:
    """Why a value from YAML does not fit an annotation; None if it does.

    The value goes through JSON, whose strict mode takes a list for a tuple and an int for a float, but no text for
    a number.
    """
    from pydantic import PydanticSchemaGenerationError, ValidationError

    try:
        adapter = (_adapter if isinstance(annotation, Hashable) else _adapter.__wrapped__)(annotation)
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return " or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors()))
    except (PydanticSchemaGenerationError, NameError, TypeError, ValueError):
        return None  # not an annotation that data can be held against
    return None


def _origin(key: str, overrides: Sequence[str], config_dir: str | Path | None) -> str:
    """Where a key was set, as ` (in …)`: the command line, the experiment, or the group's own file."""
    if any(f"{key}.".startswith(f"{text.split('=')[0].lstrip('+')}.") for text in overrides):
        return " (on the command line)"
    chosen = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    group, _, rest = key.partition(".")
    places = [("experiment", chosen.get("experiment"), key), (group, chosen.get(group), rest)]
    for folder in (f for f in (config_dir, conf_dir()) if f):
        for name, choice, path in places:
            if choice and path and _says(file := Path(folder) / name / f"{choice}.yaml", path):
                return f" (in {file})"
        for file in sorted((Path(folder) / group).glob("*.yaml")) if rest and not chosen.get(group) else ():
            if _says(file, rest):
                return f" (in {file})"
    return ""


def _says(file: Path, key: str) -> bool:
    """Whether a file of configuration sets a key."""
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(file))
    except Exception:  # it is not there, or can't be read, which is told elsewhere
        return False
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


def choices(group: str, config_dir: str | Path | None = None) -> list[str]:
    """Names that a group can take."""
    folders = [Path(folder) / group for folder in (config_dir, conf_dir()) if folder]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def _nearest(name: object, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type="))]
    if error.__cause__ is not None and (not lines or lines[0].startswith("Error merging override")):
        return _first_line(error.__cause__)  # the error around it says less
    return " ".join(lines[:2]) if lines else type(error).__name__


def _listed(found: Sequence[str]) -> str:
    unique = list(dict.fromkeys(found))
    head = "The configuration has a fault:" if len(unique) == 1 else f"The configuration has {len(unique)} faults:"
    return "\n".join([head, *(f"  {line}" for line in unique)])


# --- Identity ------------------------------------------------------------------------------------------------


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, with every interpolation resolved."""
    return typing.cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))


def signature(cfg: DictConfig) -> str:
    """Twelve hex digits that name what a configuration computes, with whatever files it is given.

    The whole resolved configuration is hashed, without what can't change the result (paths, logger, workers,
    device): single runs, members of a multirun and remote jobs of one configuration share it. The run folder's name
    has the digest of what its files hold, too (`wavespace.runfolder.RunFolder.of`).
    """
    return hashlib.sha256(json.dumps(identity(cfg), sort_keys=True).encode()).hexdigest()[:12]


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration without what can't change the result of a run.

    Paths are left out, too: what their files hold is `wavespace.inputs`.
    """
    plain = {key: value for key, value in resolved(cfg).items() if key not in RUNTIME[""]}
    for section, keys in RUNTIME.items():
        if section in plain:
            plain[section] = _without(plain[section], keys)
    return plain


def _without(node: Any, keys: set[str]) -> Any:
    """A section without some keys of its constructors, at any depth: its parts may be sections of the same group.

    What settings of other packages' constructors mean is not known, so their paths stay.
    """
    if not isinstance(node, dict):
        return node
    left = keys if is_own(target := str(node.get("_target_", ""))) else keys - PLACES
    kept = {key: _without(value, keys) for key, value in node.items() if key not in left or not target}
    if is_own(target):
        kept |= {key: "a file" for key in FILES if kept.get(key) is not None}
    return kept


def is_own(target: str) -> bool:
    """Whether a `_target_` is one of Wavespace's own."""
    return target.startswith("wavespace.")


def command_line(hydra: DictConfig | None = None) -> tuple[list[str], str | None]:
    """Overrides and `--config-dir` of the Hydra run that is under way, for messages that name a key's origin."""
    if hydra is None:
        if not HydraConfig.initialized():
            return [], None
        hydra = typing.cast(DictConfig, HydraConfig.get())
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return list(hydra.overrides.task), own[0] if own else None


def amend(cfg: DictConfig, overrides: Sequence[str], sample_rate: int) -> DictConfig:
    """A checkpoint's configuration with overrides of its data on top; data that is chosen anew replaces its section.

    New data is read at the checkpoint's `sample_rate` unless an override says otherwise.

    Raises:
        ConfigError: an override names what isn't there, doesn't fit, or is not of the data.
    """
    changed = OmegaConf.create(resolved(cfg))
    try:
        chosen = any(override.startswith("data=") for override in overrides)
        parsed = OverridesParser.create().parse_overrides(
            as_text(overrides, _text_keys(overrides, None, None if chosen else changed))
        )
    except HydraException as error:
        raise ConfigError(explain(overrides) or _first_line(error)) from None
    for override in parsed:
        if override.key_or_group.partition(".")[0] != "data":
            raise ConfigError(
                f"{override.input_line}: front-end, model and settings are the checkpoint's; "
                "overrides change its data alone, as data=rendered or data.midi=scores/"
            )
    for choice in (f"data={o.value()}" for o in parsed if o.key_or_group == "data"):
        try:
            changed.data = resolved(_compose([choice, f"seed={cfg.seed}"]))["data"]
        except Exception:
            raise ConfigError(explain([choice])) from None
        if "sample_rate" in changed.data:
            changed.data.sample_rate = sample_rate
    for single in (o for o in parsed if o.key_or_group != "data"):
        key = single.key_or_group
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(changed, parent)
        if not isinstance(node, DictConfig) or last not in node:
            names = [str(name) for name in node if name != "_target_"] if isinstance(node, DictConfig) else []
            raise ConfigError(
                f"{single.input_line}: there is no key '{key}'{_nearest(last, names)}; keys: {', '.join(names)}"
            )
        OmegaConf.update(changed, key, single.value())
    if found := list(_faults(OmegaConf.create({"data": changed.data}), overrides, None, root=False)):
        raise ConfigError(_listed(found))
    return changed

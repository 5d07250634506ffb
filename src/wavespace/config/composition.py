"""Compose a configuration from overrides and files, with Hydra."""

from __future__ import annotations

import pickle
import shlex
import typing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wavespace.config import userfiles
from wavespace.config.experiments import experiment_values
from wavespace.config.identity import resolved
from wavespace.config.overrides import IsText, as_text, started_anew
from wavespace.config.schema import GROUPS, TEXT, choices, conf_dir
from wavespace.config.validation import (
    check,
    constructor,
    fault_list,
    faults,
    first_line,
    type_fault,
)
from wavespace.errors import ConfigError
from wavespace.settings import annotations_of
from wavespace.signals import stop_deferred
from wavespace.text import nearest


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Compose and validate a configuration from overrides, as `wavespace train` does; for notebooks and tests.

    Args:
        overrides: as on the command line, e.g. `["experiment=demo", "optim.lr=1e-3"]`.
        config_dir: a folder with a user's own groups, as `--config-dir`.

    Raises:
        ConfigError: listing every fault with its key, its file and the nearest valid name.
    """
    return compose_rewritten(rewrite(overrides, config_dir), config_dir)


def compose_rewritten(overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    """Compose and validate overrides that `rewrite` returned, or that Hydra's sweeper made of those."""
    try:
        cfg = compose_unchecked(overrides, config_dir)
    except Exception as error:  # of Hydra, OmegaConf or YAML: a user's files may hold anything
        raise ConfigError(explain(overrides, config_dir) or first_line(error)) from None
    check(cfg, overrides, config_dir)
    return cfg


def rewrite(overrides: Sequence[str], config_dir: str | Path | None = None) -> list[str]:
    """Rewrite overrides as Hydra should read them (`wavespace.config.overrides`).

    Raises:
        ConfigError: there is no such folder of configuration files, or + adds a key that Hydra has not got.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"{overrides}: overrides are a list, as in [{overrides!r}]")
    if not isinstance(overrides, Sequence) or not all(isinstance(each, str) for each in overrides):
        raise TypeError(f"{overrides!r}: overrides are a list of texts, as in ['experiment=demo', 'seed=3']")
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
    texts = as_text(overrides, _text_keys(overrides, config_dir))
    if unknown := list(_unknown_to_hydra(texts)):
        raise ConfigError(fault_list(unknown))
    keys = {text.partition("=")[0] for text in texts}
    typed = {key.lstrip("+~") for key in keys}
    for group, values in experiment_values(texts, config_dir).items():
        if f"{group}._target_" in typed:  # its values are for another constructor
            others = [f"~{group}.{key}" for key in values if key != "_target_"]
            texts = [*(text for text in others if text not in keys), *texts]
        elif "_target_" in values and group not in typed:  # nor is the default choice for this one
            texts = [f"~{group}", *texts]
    return started_anew(texts, GROUPS)


def _unknown_to_hydra(overrides: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each override that adds to Hydra's section, by + or ++, what its schema has not got."""
    parser = OverridesParser.create()
    for text in (text for text in overrides if text.lstrip("+").startswith("hydra.") and text.startswith("+")):
        known = OmegaConf.create({"hydra": HydraConf(hydra_logging={}, job_logging={})})
        try:
            each = parser.parse_override(text)
            OmegaConf.update(known, each.key_or_group, each.value())
        except HydraException:  # composing will say it
            continue
        except OmegaConfBaseException as error:
            names = list(error.parent_node) if isinstance(error.parent_node, DictConfig) else []
            yield f"{text}: {str(error).splitlines()[0]}{nearest(error.key, names)}; keys: {', '.join(map(str, names))}"


def _text_keys(overrides: Sequence[str], config_dir: str | Path | None, on: DictConfig | None = None) -> IsText:
    """Return a function that says whether a key holds text, by the root's schema and the constructors' annotations.

    The overrides change the configuration `on`; with None, the one that they compose.
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
            hints = _launcher_annotations() if parent == "hydra.launcher" else {}
            return last in hints and bool(type_fault(value, hints[last])) and not type_fault(typed, hints[last])
        if not known:
            chosen = [text for text in overrides if text.split("=")[0] in GROUPS and "," not in text]
            try:
                known["cfg"] = compose_unchecked(chosen, config_dir)
            except Exception:  # composing all of them will say it
                known["cfg"] = OmegaConf.create()
        node = OmegaConf.select(known["cfg"], parent)
        stands = node._get_node(last) if isinstance(node, DictConfig) and last in node else None
        stands = stands._value() if isinstance(stands, AnyNode) else stands
        if stands is not None:
            return isinstance(stands, str) and not stands.startswith("${")
        targets = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith(f"{parent}._target_=")]
        target = targets[-1] if targets else node.get("_target_") if isinstance(node, DictConfig) else None
        try:
            hint = constructor(str(target))[1][last]
        except Exception:
            return False
        return (isinstance(value, str) or bool(type_fault(value, hint))) and not type_fault(typed, hint)

    return is_text


@cache
def _launcher_annotations() -> dict[str, Any]:
    """Return the annotations of what the launchers of conf/hydra/launcher take, by key."""
    files = sorted((conf_dir() / "hydra" / "launcher").glob("*.yaml"))
    launchers: list[Any] = [get_class(OmegaConf.load(file)._target_) for file in files]
    return {key: hint for each in launchers for key, hint in annotations_of(get_class(each.settings_class)).items()}


def compose_unchecked(overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    """Compose a configuration as Hydra does, but read files once for each combination of choices.

    Hydra takes a tenth of a second for a configuration; here values are set on a copy of what it has composed.
    """
    with suppress(Exception), stop_deferred():  # Hydra itself says what is wrong
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        values = [each for each in parsed if _is_value(each, parsed)]
        files = [*conf_dir().rglob("*.yaml"), *(userfiles.files(Path(config_dir)) if config_dir else ())]
        times = tuple((file, file.stat().st_mtime_ns) for file in sorted(files))
        folder = Path(config_dir).absolute() if config_dir else None
        chosen = tuple(str(each.input_line) for each in parsed if each not in values)
        cfg: DictConfig = pickle.loads(_pickled(chosen, folder, times))  # in a third of deepcopy's time
        for each in values:
            OmegaConf.update(cfg, each.key_or_group, each.value(), merge=True)
        return cfg
    return compose_by_hydra(overrides, config_dir)


def _is_value(override: Override, among: Sequence[Override]) -> bool:
    """Return whether an override sets a value independently of the overrides that choose, add or remove."""
    key = override.key_or_group
    if override.type is not OverrideType.CHANGE or override.is_sweep_override() or "/" in key or key in GROUPS:
        return False
    return not key.startswith("hydra.") and not any(
        f"{key}.".startswith(f"{other.key_or_group}.") or f"{other.key_or_group}.".startswith(f"{key}.")
        for other in among
        if other.type is not OverrideType.CHANGE or isinstance(other.value(), dict)
    )


@cache
def _pickled(chosen: tuple[str, ...], config_dir: Path | None, _times: tuple[tuple[Path, int], ...]) -> bytes:
    return pickle.dumps(compose_by_hydra(chosen, config_dir))


def compose_by_hydra(
    overrides: Sequence[str], config_dir: str | Path | None = None, with_hydra: bool = False
) -> DictConfig:
    """Compose a configuration from its files, also during a multirun of Hydra's."""
    search = []
    if config_dir:
        folder = QuotedString(f"file://{Path(config_dir).absolute()}", Quote.single).with_quotes()
        search = [f"hydra.searchpath=[{folder}]"]
    under_way = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with stop_deferred(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose("train", overrides=[*overrides, *search], return_hydra_config=with_hydra)
    finally:
        GlobalHydra.instance().hydra = under_way


def explain(overrides: Sequence[str], config_dir: str | Path | None = None, many: bool = False) -> str | None:
    """Say which overrides don't compose, and why; None if all do. Each is tried on top of those that do.

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
                compose_unchecked([*good, one], config_dir)
            good.append(trial[0])
        except Exception as error:
            found.append(_explain_one(override, error, good, config_dir))
    try:
        found += faults(compose_unchecked(good, config_dir), good, config_dir)
        if many:
            hydra = compose_by_hydra(good, config_dir, with_hydra=True).hydra
            for part in ("sweeper", "launcher"):
                found += faults(hydra[part], good, config_dir, f"hydra.{part}")
    except Exception as error:
        found.append(first_line(error))
    return fault_list(found) if found else None


def _quoted_for_a_shell(override: str) -> str:
    """Show the shell form that passes a value with characters of Hydra's grammar as text."""
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
    message = first_line(error)
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
                f"{override}: there is no {key} named '{value}'{nearest(value, names)}; there are: {', '.join(names)}"
            )
        if key in ("experiment", "sweep") and f"Key '{key}' not in" in message:
            message = "its file begins with the line `# @package _global_`; without it, it says nothing of a run"
        return f"{override}: {message}"
    try:
        known = compose_by_hydra(good, config_dir, with_hydra=key.startswith("hydra."))
    except Exception:
        return f"{override}: {message}"
    if key.startswith("hydra/"):
        return f"{override}: {' '.join(str(error).split())}"
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(known, parent) if parent else known
    if node is None and parent:
        first, others = parent.split(".")[0], list(known)
        return f"{override}: there is no section '{parent}'{'' if first in others else nearest(first, others)}"
    if not isinstance(node, DictConfig | ListConfig):
        return f"{override}: {parent} is a value, which has no keys"
    if isinstance(node, DictConfig) and last not in node:
        keys = [str(name) for name in node if name != "_target_"]
        of = f" of {parent}" if parent else ""
        return f"{override}: there is no key '{key}'{nearest(last, keys, parent)}; keys{of}: {', '.join(keys)}"
    return f"{override}: {message}"


def command_line(hydra: DictConfig | None = None) -> tuple[list[str], str | None]:
    """Return the overrides and the `--config-dir` of the current Hydra run."""
    if hydra is None:
        if not HydraConfig.initialized():
            return [], None
        hydra = typing.cast(DictConfig, HydraConfig.get())
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return list(hydra.overrides.task), own[0] if own else None


def amend(cfg: DictConfig, overrides: Sequence[str], sample_rate: int) -> DictConfig:
    """Apply overrides of the data to a checkpoint's configuration; `data=…` replaces the section.

    New data is read at the checkpoint's `sample_rate`, unless an override sets another.

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
        raise ConfigError(explain(overrides) or first_line(error)) from None
    for override in parsed:
        if override.key_or_group.partition(".")[0] != "data":
            raise ConfigError(
                f"{override.input_line}: front-end, model and settings are the checkpoint's; "
                "overrides change its data alone, as data=rendered or data.midi=scores/"
            )
    for choice in (f"data={o.value()}" for o in parsed if o.key_or_group == "data"):
        try:
            changed.data = resolved(compose_unchecked([choice, f"seed={cfg.seed}"]))["data"]
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
                f"{single.input_line}: there is no key '{key}'{nearest(last, names, parent)}; keys: {', '.join(names)}"
            )
        OmegaConf.update(changed, key, single.value())
    if found := list(faults(changed.data, overrides, None, "data")):
        raise ConfigError(fault_list(found))
    return changed

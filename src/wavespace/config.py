"""Configuration: where it lives, how it is composed, how it is held against the code, and its identity.

Nothing here imports torch: `wavespace train --cfg job` and the return of a finished run must stay quick.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from wavespace.claims import claims
from wavespace.errors import ConfigError, place_of
from wavespace.terminal import held

GROUPS = ("data", "frontend", "model", "task", "optim", "trainer", "logger", "experiment", "sweep")

CompositionErrors = (HydraException, OmegaConfBaseException)


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

RUNTIME = {
    "": {"name", "fresh", "resume", "runs", "logger", "compile", "save_every", "expect", "search"},
    "data": {"workers", "root", "stores", "url"},
    "frontend": {"weights"},
    "trainer": {
        "accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "enable_model_summary",
        "log_every_n_steps", "detect_anomaly", "profiler", "barebones",
    },
}  # fmt: skip
"""What can't change the result of a run, by section: left out of its identity."""

PLACES = {"root", "stores", "url", "weights"}
"""Those of them that say where files are, in our own constructors."""

FILES = ("folder", "midi", "test_midi", "soundfont")
"""Settings that say where files are, and null that there are none: that they are set is part of the identity."""


def conf_dir() -> Path:
    """The folder of configuration files: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent
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
    try:
        cfg = _compose(overrides, config_dir)
    except CompositionErrors as error:
        raise ConfigError(explain(overrides, config_dir) or _first_line(error)) from None
    check(cfg, overrides, config_dir)
    return cfg


def _compose(overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    search = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    with held(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
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
        for entry in (found.defaults_list or []) if found and config_path.startswith("experiment/") else []:
            group = entry.group.lstrip("/")
            if entry.is_override() and self.chosen.get(group) != f"{group}/{entry.value}":
                found.config.pop(group, None)
        return found


def _compose_chosen(loader: ConfigLoaderImpl, defaults: Sequence[Any], repo: Any) -> DictConfig:
    chosen = {each.package: each.config_path for each in defaults if each.parent == "train"}
    return _compose_all(loader, defaults, _Choices(repo, chosen))


# Every way into Hydra (its main, its launchers, `compose`, --cfg) goes through this method, and there is no public one.
_compose_all: Any = ConfigLoaderImpl._compose_config_from_defaults_list
setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _compose_chosen)  # noqa: B010


def compose_once(multirun: DictConfig) -> Callable[[Sequence[str], str | Path | None], DictConfig]:
    """`compose` for the override-sets of the multirun that is under way.

    Its check, Hydra's own and its launcher all want every set composed, which takes a tenth of a second: from now on
    Hydra's loader does it once a set, and gives copies.
    """
    loader: Any = GlobalHydra.instance().config_loader()
    load, known = loader.load_sweep_config, dict[tuple[str, ...], DictConfig]()

    def load_once(master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        chosen = tuple(sweep_overrides)
        if chosen not in known:
            with held():
                known[chosen] = load(master_config, list(chosen))
        return copy.deepcopy(known[chosen])

    def composed(overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
        try:
            cfg = load_once(multirun, overrides)
        except CompositionErrors as error:
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


def explain(overrides: Sequence[str], config_dir: str | Path | None = None) -> str | None:
    """What is wrong with overrides that don't compose: each is tried alone on top of those that do. None if they do."""
    parser = OverridesParser.create()
    good: list[str] = []
    found: list[str] = []
    # Groups first: `model.depth=3 model=unet` is legal in either order.
    for override in sorted(overrides, key=lambda text: text.split("=")[0].lstrip("+~") not in GROUPS):
        try:
            parsed = parser.parse_override(override)
            trial = [f"{parsed.input_line}"]
            if parsed.is_sweep_override():  # a sweep: every member must stand on its own
                trial = [f"{parsed.key_or_group}={value}" for value in parsed.sweep_string_iterator()]
            for one in trial:
                _compose([*good, one], config_dir)
            good.append(trial[0])
        except CompositionErrors as error:
            found.append(_explain_one(override, error, good, config_dir))
    try:
        found += _faults(_compose(good, config_dir), good, config_dir)
    except CompositionErrors as error:
        found.append(_first_line(error))
    return _listed(found) if found else None


def _explain_one(override: str, error: Exception, good: Sequence[str], config_dir: str | Path | None) -> str:
    key = override.split("=")[0].lstrip("+~")
    value = override.partition("=")[2]
    message = _first_line(error)
    if key in GROUPS:
        names = choices(key, config_dir)
        if value not in names:
            return (
                f"{override}: there is no {key} named '{value}'{_nearest(value, names)}; there are: {', '.join(names)}"
            )
        return f"{override}: {message}"
    try:
        known = _compose(good, config_dir)
    except CompositionErrors:
        return f"{override}: {message}"
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(known, parent) if parent else known
    if node is None and parent:
        return f"{override}: there is no section '{parent}'{_nearest(parent.split('.')[0], list(known))}"
    if isinstance(node, DictConfig) and last not in node:
        keys = [str(name) for name in node if name != "_target_"]
        of = f" of {parent}" if parent else ""
        return f"{override}: there is no key '{key}'{_nearest(last, keys)}; keys{of}: {', '.join(keys)}"
    return f"{override}: {message}"


def _faults(cfg: DictConfig, overrides: Sequence[str], config_dir: str | Path | None) -> Iterator[str]:
    """Claims that can't be read, and every node with a `_target_`, held against that constructor's signature."""
    try:
        claims(cfg.get("expect"), {})
    except (ValueError, AttributeError) as error:
        yield f"expect{_origin('expect', overrides, config_dir)}: {error}"
    if cfg.get("resume") not in (None, "last", "best"):
        yield f"resume = {cfg.resume}: it is last, best or null"
    if not -(2**63) <= cfg.get("seed", 0) < 2**63:
        yield f"seed = {cfg.seed}: it must lie within 64 bits, from {-(2**63)} to {2**63 - 1}"
    if (precision := cfg.trainer.get("precision")) is not None and str(precision) not in PRECISIONS:
        where_set = _origin("trainer.precision", overrides, config_dir)
        yield f"trainer.precision = {precision}{where_set}: it is null, {', '.join(PRECISIONS[:3])}"
    for key, node in _targets(cfg, ""):
        where = lambda name, key=key: _origin(f"{key}.{name}", overrides, config_dir)  # noqa: E731
        try:
            signature, hints = _constructor(node["_target_"])
        except Exception as error:  # whatever importing somebody's module may raise
            said = f"{_first_line(error)}{place_of(error)}"
            yield f"{key}._target_ = {node['_target_']}{where('_target_')}: can't be imported: {said}"
            continue
        parameters = {name: p for name, p in signature.items() if name not in BUILT}
        named = [name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, value in node.items():
            if name in ("_target_", "_partial_", "_convert_", "_recursive_"):
                continue
            if name not in parameters:
                if not takes_any:
                    hint = f"{_nearest(name, named)}; keys of {key}: {', '.join(named)}"
                    yield f"{key}.{name}{where(name)}: there is no such key{hint}"
            elif (
                not isinstance(value, dict | DictConfig) and name in hints and (fault := _mistyped(value, hints[name]))
            ):
                yield f"{key}.{name} = {value}{where(name)}: {fault}"
        for name, p in parameters.items():
            if name in named and p.default is p.empty and name not in node:
                yield f"{key}.{name}: is missing; {node['_target_']} needs it"


BUILT = frozenset({"self", "in_spec", "out_spec", "frontend", "callbacks"})
"""Constructor arguments that the builder gives: sizes follow from the parts, so they never stand in YAML."""


PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16")
"""What a run can be trained in; front-ends and losses are in float32 in all of them."""


def _targets(cfg: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    node: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True) if OmegaConf.is_config(cfg) else cfg
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}".lstrip("."))


def _constructor(target: str) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    from hydra.utils import get_object

    found = get_object(target)
    function: Any = getattr(found, "__init__") if isinstance(found, type) else found  # noqa: B009
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # annotations that only a type checker can resolve
        hints = {}
    return dict(inspect.signature(function).parameters), hints


def _mistyped(value: Any, annotation: Any) -> str | None:
    """Why a value from YAML does not fit an annotation; None if it does.

    The value goes through JSON, whose strict mode takes a list for a tuple and an int for a float, but no text for
    a number.
    """
    from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return " or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors()))
    except (PydanticSchemaGenerationError, NameError, TypeError, ValueError):
        return None  # not an annotation that data can be held against
    return None


def _origin(key: str, overrides: Sequence[str], config_dir: str | Path | None) -> str:
    """Where a key was set, as ` (in …)`: the command line, the experiment, or the group's own file."""
    if any(text.split("=")[0].lstrip("+") == key for text in overrides):
        return " (on the command line)"
    chosen = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    group, _, rest = key.partition(".")
    places = [("experiment", chosen.get("experiment"), key), (group, chosen.get(group), rest)]
    for folder in (f for f in (config_dir, conf_dir()) if f):
        for name, choice, path in places:
            file = Path(folder) / name / f"{choice}.yaml"
            if choice and file.is_file() and OmegaConf.select(OmegaConf.load(file), path) is not None:
                return f" (in {file})"
        for file in (Path(folder) / group).glob("*.yaml"):
            if not chosen.get(group) and OmegaConf.select(OmegaConf.load(file), rest) is not None:
                return f" (in {file})"
    return ""


def choices(group: str, config_dir: str | Path | None = None) -> list[str]:
    """Names that a group can take."""
    folders = [Path(folder) / group for folder in (config_dir, conf_dir()) if folder]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
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
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except CompositionErrors as error:
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
        except CompositionErrors:
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
    check(OmegaConf.create({"data": resolved(changed)["data"]}), overrides)  # nothing else is built of it
    return changed

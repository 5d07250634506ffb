"""Call the constructors that a configuration names; nothing else does."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from wavespace.config.schema import GROUPS, choices, conf_dir
from wavespace.errors import ConfigError, UserError, place_of
from wavespace.signals import stop_deferred


def make(node: DictConfig, key: str, **built: Any) -> Any:
    """Call the constructor that a section names, with its settings and what was built before it.

    Raises:
        ConfigError: the constructor refused a value.
    """
    try:
        # A partial, because Hydra would turn the specs among `built` into configurations.
        with stop_deferred():  # or a signal comes out of OmegaConf as another error
            constructor = instantiate(OmegaConf.to_container(node, resolve=True), _partial_=True, _convert_="all")
        return constructor(**built)
    except UserError:
        raise
    except InstantiationException as error:  # of a part within the section
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        if error.__cause__ is not None:
            said = f"{error.__cause__}{place_of(error.__cause__)}"
            raise ConfigError(f"{key}={choice_of(node)} refuses its settings: {said}") from None
        raise
    except ImportError as error:
        package = f"; pip install {error.name}" if error.name else ""
        raise ConfigError(f"{key}={choice_of(node)} needs what is not installed: {error}{package}") from error
    except Exception as error:  # a number that is too large is one of many kinds of error
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"{key}={choice_of(node)} refuses its settings: {kind}{error}{place_of(error)}") from error


def choice_of(node: DictConfig) -> str:
    """Return the choice whose file is most like a section, such as maestro; its `_target_` where there is none."""
    target = str(node.get("_target_"))
    alike = {
        choice: sum(node.get(str(key)) == value for key, value in stored.items())
        for choice, stored in _shipped()
        if stored.get("_target_") == target
    }
    return max(alike, key=lambda choice: alike[choice]) if alike else target


@lru_cache
def _shipped() -> list[tuple[str, dict[Any, Any]]]:
    """Each choice of each group, and what its file says."""
    files = [conf_dir() / group / f"{choice}.yaml" for group in GROUPS for choice in choices(group)]
    stored = [(file.stem, OmegaConf.to_container(OmegaConf.load(file))) for file in files]
    return [(choice, section) for choice, section in stored if isinstance(section, dict)]

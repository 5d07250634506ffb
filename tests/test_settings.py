"""Settings from Python meet the same bounds as those from YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import Field, PositiveInt

from wavespace.config import compose
from wavespace.config.schema import GROUPS, choices, conf_dir
from wavespace.config.validation import constructor, targets
from wavespace.errors import ConfigError
from wavespace.settings import validate_settings


@dataclass(kw_only=True)
class Base:
    width: PositiveInt = 1


@validate_settings
@dataclass(kw_only=True)
class Derived(Base):
    odds: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()


@validate_settings
class Plain:
    def __init__(self, in_spec: object, *, width: PositiveInt | None, kind: Literal["a", "b"] = "a") -> None:
        self.width, self.kind = width, kind


class Subclass(Plain):
    """Somebody's own, whose constructor takes other settings."""

    def __init__(self, *, odds: Annotated[float, Field(lt=1)] = 0.5) -> None:
        super().__init__(object(), width=1)


@pytest.mark.parametrize("make", [Derived, Plain, Subclass])
def test_the_decorator_leaves_signature_and_annotations_to_the_check_of_yaml(make: type) -> None:
    parameters, hints = constructor(f"{__name__}.{make.__name__}")
    assert {name for name in parameters if name != "self"} == {name for name in hints if name != "return"}


SHIPPED = sorted(
    {(group, choice) for group in GROUPS for choice in choices(group) if group not in ("experiment", "sweep")}
)


@pytest.mark.parametrize(("group", "choice"), SHIPPED)
def test_every_setting_of_a_choice_has_an_annotation_that_can_be_read(group: str, choice: str) -> None:
    for _, node in targets(OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{choice}.yaml")), ""):
        if str(node["_target_"]).startswith("wavespace."):
            parameters, hints = constructor(node["_target_"])
            assert set(parameters) - {"self"} <= set(hints)


def test_a_key_of_an_earlier_version_is_told_its_new_name() -> None:
    with pytest.raises(ConfigError, match=r"data\.only.*earlier version of Wavespace, and is called splits now"):
        compose(["data=maestro", "+data.only=[test]"])


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (Derived, {"width": 0, "odds": [0.5, 2]}, r"width = 0: .* greater than 0; odds = \[0.5, 2\]: .* equal to 1$"),
        (Plain, {"in_spec": object(), "width": 0}, "width = 0: input should be greater than 0"),
        (Plain, {"in_spec": object(), "width": None, "kind": "c"}, "kind = c: input should be 'a' or 'b'"),
    ],
)
def test_what_lies_beyond_a_bound_is_refused(make: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**settings)


def test_settings_within_their_bounds_stay_as_they_are() -> None:
    assert Derived(odds=(0.5, 1), width=2).odds == (0.5, 1)
    assert Plain(object(), width=None).width is None
    assert Subclass().width == 1

"""Check settings, from YAML and from Python alike, against the annotations of the constructor that takes them."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Hashable
from functools import cache, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Class = TypeVar("Class", bound=type)


def validate_settings(cls: Class) -> Class:
    """Make a class refuse settings that don't fit the annotations of its constructor.

    A bound stands in the annotation, as in `width: PositiveInt` or `dropout: Annotated[float, Field(ge=0, lt=1)]`
    with `from pydantic import Field, PositiveInt`, and a default is not checked. YAML is checked against
    the same annotations before anything is built; what depends on several settings is the constructor's own to check.

    Raises:
        ValueError: by the constructor; names each such setting, its value, and what is allowed.
    """
    initialize = cls.__init__  # type: ignore[misc]
    names = list(signature(initialize).parameters)[1:]

    @wraps(initialize)
    def initialize_checked(self: Any, *args: Any, **settings: Any) -> None:
        hints = annotations_of(cls)
        given = dict(zip(names, args)) | settings
        faults = {name: type_fault(value, hints[name]) for name, value in given.items() if name in hints}
        if said := [f"{name} = {given[name]}: {fault}" for name, fault in faults.items() if fault]:
            raise ValueError("; ".join(said))
        initialize(self, *args, **settings)

    cls.__init__ = initialize_checked  # type: ignore[misc]
    return cls


@cache
def annotations_of(constructor: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of what a class or a function takes; none where only a type checker can resolve them."""
    source: Any = constructor
    if isinstance(constructor, type):
        owner = next(base for base in constructor.__mro__ if "__init__" in vars(base))
        # Fields that a dataclass inherits are to be resolved where they were written.
        source = owner if "__dataclass_fields__" in vars(owner) else vars(owner)["__init__"]
    try:
        return typing.get_type_hints(source, include_extras=True)
    except Exception:
        return {}


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def _python_number(value: Any) -> Any:
    """Convert a NumPy scalar for JSON; raise TypeError for what JSON can't write."""
    if getattr(value, "shape", None) != ():
        raise TypeError
    return value.item()


def type_fault(value: Any, annotation: Any) -> str | None:
    """Say why a value does not fit an annotation; None if it does.

    The value goes through JSON, whose strict mode takes a list for a tuple and an int for a float, but no text for
    a number. What JSON can't write is not looked at.
    """
    from pydantic import PydanticSchemaGenerationError, ValidationError

    try:
        written = json.dumps(value, default=_python_number)
        adapter = (_adapter if isinstance(annotation, Hashable) else _adapter.__wrapped__)(annotation)
        adapter.validate_json(written, strict=True)
    except ValidationError as error:
        return " or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors()))
    except (PydanticSchemaGenerationError, NameError, TypeError, ValueError):
        return None  # not an annotation that data can be checked against
    return None

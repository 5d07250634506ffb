"""Overrides as a person types them, rewritten before Hydra parses them.

Hydra reads `name=2024_05_01` as a number, and `model._target_=mine.Net` as one more key of the model that was chosen
before. Here a key that holds text keeps what was typed, and a new `_target_` starts from its constructor's defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString
from hydra.errors import HydraException

IsText = Callable[[str, Any, str], bool]
"""Whether a key holds text where a value was parsed as something else: `(key, value, typed) -> bool`."""


NONE = {"experiment=null": "~experiment", "sweep=null": "~sweep", "logger=null": "~logger"}
"""Hydra takes no null for a choice of a group."""


def as_text(overrides: Sequence[str], is_text: IsText) -> list[str]:
    """Return overrides with quotes around each value that is text, and that Hydra would read as something else."""
    parser = OverridesParser.create()
    return [_as_text(NONE.get(override, override), is_text, parser) for override in overrides]


def started_anew(overrides: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Return overrides whose new `_target_` is not merged with what its section held before."""
    found = list(overrides)
    for key in map(_key, overrides):
        section, _, last = key.rpartition(".")
        if section and last == "_target_" and not section.startswith("hydra"):
            found = _anew(found, section, section in groups)
    return found


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _anew(overrides: list[str], section: str, is_group: bool) -> list[str]:
    """Clear a section, its file or what stands in its place, before its new `_target_` is set."""
    cleared = f"~{section}" if is_group else f"{section}=null"
    kept = [override for override in overrides if _key(override) != section]
    own = [f"++{o.lstrip('+')}" if _key(o).startswith(f"{section}.") and o[0] != "~" else o for o in kept]
    return [cleared, *own]


def _as_text(override: str, is_text: IsText, parser: OverridesParser) -> str:
    start, equals, typed = override.partition("=")
    if not equals or not typed or start.startswith("~"):
        return override
    key = start.lstrip("+")
    try:
        value = parser.parse_override(override).value()
    except HydraException:  # for Hydra, a character such as é or ( needs quotes
        return f"{start}={_quoted(typed)}" if is_text(key, typed, typed) else override
    if isinstance(value, ChoiceSweep):
        choice = typed.startswith("choice(")
        texts = (typed[len("choice(") : -1] if choice else typed).split(",")
        if len(texts) != len(value.list):  # a comma within quotes or brackets
            return override
        pairs = zip(value.list, (text.strip() for text in texts))
        kept = ",".join(_quoted(text) if _differs(each) and is_text(key, each, text) else text for each, text in pairs)
        return f"{start}=choice({kept})" if choice else f"{start}={kept}"
    return f"{start}={_quoted(typed)}" if _differs(value) and is_text(key, value, typed) else override


def _differs(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()

"""Claims of an experiment on its metrics, as in `expect: {test/note_f1_onset: ">= 0.80"}`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
FORM = re.compile(r"(<=?|>=?)\s*(?:([\d.]+)\s*\*\s*)?(-?[\d.]+(?:e-?\d+)?|[a-z]+/\w+)")


class Claim(NamedTuple):
    """A metric and its bound, as text; `met` is None where the run lacks one of the two."""

    text: str
    met: bool | None


def claims(expect: Mapping[str, str] | None, metrics: Mapping[str, float]) -> list[Claim]:
    """Compare each claim with the metrics of a run.

    Args:
        expect: by metric, a relation (`<`, `<=`, `>`, `>=`) and a number, another metric, or a multiple of one, as in
            `"< 0.5 * baseline/l1_db"`.
        metrics: of the run, by name.

    Raises:
        ValueError: a claim is of another form.
    """
    found = []
    for name, text in (expect or {}).items():
        if not (match := FORM.fullmatch(str(text).strip())):
            raise ValueError(f"{text!r} is no claim on {name}; write it as '>= 0.8' or '< 0.5 * baseline/l1_db'")
        relation, factor, bound = match.groups()
        value, other = metrics.get(name), metrics.get(bound) if "/" in bound else float(bound)
        met = None
        if value is not None and other is not None:
            met = RELATIONS[relation](value, float(factor or 1) * other)
        shown = "?" if value is None else f"{value:.3f}"
        against = f" ({other:.3f})" if "/" in bound and other is not None else ""
        found.append(Claim(f"{name} {shown}, claimed {text}{against}", met))
    return found

"""Where the weights of pretrained front-ends lie. Imports no torch."""

from __future__ import annotations

from pathlib import Path

ENCODEC = "encodec_24khz-d7cc33bc.th"
"""The official weights."""


def encodec_weights(weights: str | None) -> Path:
    """The file of EnCodec's weights: one that is named, or the official one in a folder; by default in data/encodec."""
    place = Path(weights or "data/encodec").expanduser()
    is_folder = place.is_dir() or not (place.suffix or place.exists())
    return place / ENCODEC if is_folder else place

"""Names that earlier versions used, for one sentence about an old configuration or checkpoint."""

from __future__ import annotations

_NEW_HOMES = {
    "wavespace.data.": {
        "sources": ("audio_folder", "maestro", "medley_solos", "mixture"),
        "synthesis": ("rendered", "synthetic"),
    },
}


_MERGED = {
    "wavespace.models.conv1d.Conv1D": "wavespace.models.autoencoder.ConvAutoencoder with kernel: 5 and max_width: 256",
    "wavespace.models.conv2d.Conv2D": "wavespace.models.autoencoder.ConvAutoencoder",
}


def moved(target: str) -> str | None:
    """Return the sentence about a `_target_` that an earlier version had elsewhere; None for any other."""
    if target in _MERGED:
        return f"is of an earlier version of Wavespace, and is {_MERGED[target]} now"
    for prefix, homes in _NEW_HOMES.items():
        for home, modules in homes.items():
            if target.startswith(prefix) and (rest := target.removeprefix(prefix)).partition(".")[0] in modules:
                return f"is of an earlier version of Wavespace, and is {prefix}{home}.{rest} now"
    return None


_NEW_KEYS = {
    "wavespace.data.sources.maestro.Maestro": {"only": "splits", "share": "fraction"},
    "wavespace.tasks.reconstruction.Reconstruction": {"heard": "multi_scale_items"},
}


def renamed(target: str, key: str) -> str | None:
    """Return the sentence about a constructor's key that an earlier version had; None for any other."""
    new = _NEW_KEYS.get(target, {}).get(key)
    return new and f"is of an earlier version of Wavespace, and is called {new} now"

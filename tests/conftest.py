"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tests run side by side


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips and MIDI that may lie beside a checkout; tests that want them skip where they are missing."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the sample data folder {folder}, which is not part of the project")
    return folder

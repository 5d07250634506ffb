"""Shared fixtures, and the environment of every process that tests start."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

# Without bytecode each process compiles torch and Lightning anew, which takes ten seconds of a core.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side, and sums of two threads are other bits
os.environ.pop("WAVESPACE_RUNS", None)  # runs go where a test says
# A shell's background job, or nohup, starts with these ignored, and so would the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import hypothesis  # noqa: E402
import torch  # noqa: E402

hypothesis.settings.register_profile("busy", deadline=None)  # the processor is shared
hypothesis.settings.load_profile("busy")
torch.set_num_threads(1)  # tests run side by side


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of the files without a test that compares times none is imported where no other test is asked for."""
    if config.option.markexpr == "timing" and collection_path.suffix == ".py":
        return "pytest.mark.timing" not in collection_path.read_text("utf-8") or None
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips and MIDI that may lie beside a checkout; tests that want them skip where they are missing."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the sample data folder {folder}, which is not part of the project")
    return folder

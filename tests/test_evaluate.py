"""`wavespace evaluate`: the figures of the run itself, and those on other data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training import RENDERED, TRAINER, make_medley
from wavespace import evaluate
from wavespace.config import compose
from wavespace.errors import ConfigError, Incompatible
from wavespace.runfolder import RunFolder
from wavespace.train import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    cfg = compose([*RENDERED, *TRAINER, f"runs={tmp_path_factory.mktemp('runs')}"])
    run(cfg)
    return RunFolder.of(cfg)


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    evaluate.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_figures_equal_those_of_the_run(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, str(finished.path))
    kept = {key.removeprefix("test/"): value for key, value in finished.status()["metrics"].items() if "test/" in key}
    assert found == pytest.approx(kept, abs=1e-9)
    assert figures(capsys, str(finished.best)) == found


def test_other_data_give_other_figures(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    own = figures(capsys, str(finished.path))
    assert figures(capsys, str(finished.path), "data.piece_seconds=3.0")["loss"] != own["loss"]
    assert figures(capsys, str(finished.path), "--split", "val")["loss"] != own["loss"]


def test_data_without_the_labels_is_refused(finished: RunFolder, tmp_path: Path) -> None:
    make_medley(tmp_path)
    with pytest.raises(Incompatible, match="notes"):
        evaluate.main([str(finished.path), "data=medley_solos", f"data.root={tmp_path}"])


def test_a_rate_that_the_checkpoint_does_not_hear_is_refused(finished: RunFolder) -> None:
    with pytest.raises(Incompatible, match="22050"):
        evaluate.main([str(finished.path), "data.sample_rate=16000"])


def test_a_typo_is_refused(finished: RunFolder) -> None:
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        evaluate.main([str(finished.path), "data.sede=3"])

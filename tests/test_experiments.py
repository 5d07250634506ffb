"""Every experiment runs from its file, cut to seconds, and prints whether its claims are met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from tests.datasets import record
from tests.training import TRAINER, make_medley

from wavespace import config
from wavespace.config.claims import claims
from wavespace.data.files.midi import write_midi
from wavespace.errors import ConfigError
from wavespace.training.run import run

STUDIES = sorted((Path(__file__).parents[1] / "benchmarks" / "studies").glob("*.yaml"))


def cut(cfg: dict, folder: Path) -> list[str]:
    """Overrides that leave an experiment its parts, and take its length."""
    overrides = [*TRAINER, "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.max_time=null"]
    kind = cfg["data"]["_target_"].rsplit(".", 1)[1]
    if kind in ("Rendered", "Mixture"):
        pytest.importorskip("tinysoundfont", reason="needs tinysoundfont: pip install --no-deps tinysoundfont")
        part = "data" if kind == "Rendered" else "data.parts.rendered"
        overrides += ["data.workers=0", f"{part}.val_pieces=1", f"{part}.test_pieces=1", f"{part}.piece_seconds=2.0"]
        overrides += ["data.batch_size=2", f"{part}.seconds=1.0"]
        if kind == "Mixture" or cfg["data"]["midi"]:
            for i in range(4):
                onset = 0.25 * np.arange(40)
                write_midi(folder / f"{i}.mid", np.column_stack([onset, onset + 0.2, 50 + onset, 0 * onset + 80]))
            overrides.append(f"{part}.midi={folder}")
        if kind == "Mixture":
            record(folder / "recordings" / "a.wav", onset=0.2)
            overrides += [f"data.parts.recordings.folder={folder / 'recordings'}", "data.parts.recordings.seconds=1.0"]
            overrides += [f"data.parts.recordings.stores={folder / 'stores'}"]
    elif kind == "Synthetic":
        overrides += ["data.workers=0", "data.val_items=2", "data.test_items=2", "data.batch_size=2"]
    elif kind == "MedleySolos":
        made = [o for o in make_medley(folder) if o.startswith(("data.root", "data.stores"))]
        overrides += [*made, "data.splits=official", "data.batch_size=2", "data.seconds=0.5"]
        overrides += ["data.sample_rate=22050", "frontend.bins=64", "frontend.n_fft=1024", "task.multi_scale_items=1"]
    return overrides


@pytest.mark.parametrize("name", config.choices("experiment"))
def test_every_experiment_runs_and_measures_what_it_claims(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = OmegaConf.to_container(config.compose([f"experiment={name}"]))
    assert isinstance(whole, dict)
    assert whole["expect"], f"{name} claims nothing"
    cfg = config.compose([f"experiment={name}", *cut(whole, tmp_path), f"runs={tmp_path / 'runs'}"])
    run(cfg)
    told = [line for line in capsys.readouterr().out.splitlines() if "claimed" in line]
    assert len(told) == len(whole["expect"])
    assert not [line for line in told if "not measured" in line]


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        (">= 0.8", 0.8, True), ("> 0.8", 0.8, False), ("< 2", 1.5, True), ("<= 1e-3", 2e-3, False),
        ("< 0.5 * baseline/x", 1.1, False), ("<0.6*baseline/x", 1.1, True), ("< baseline/x", 1.9, True),
        ("< baseline/y", 1.9, None),
    ],
)  # fmt: skip
def test_a_claim_holds_a_figure_against_a_number_or_a_share_of_another(text: str, value: float, met: bool) -> None:
    assert [claim.met for claim in claims({"test/x": text}, {"test/x": value, "baseline/x": 2.0})] == [met]


def test_a_figure_that_a_run_lacks_is_not_measured() -> None:
    assert claims({"test/x": "> 1"}, {})[0].met is None
    assert claims(None, {}) == []


@pytest.mark.parametrize("text", ["0.8", "= 0.8", "about 1", ">= 0.8 dB", "> 2 x baseline/x"])
def test_what_is_no_claim_is_refused_with_the_configuration(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as '>= 0\.8'"):
        config.compose([f"+expect={{test/x: '{text}'}}"])


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_row_of_a_study_composes_to_a_run_of_its_own(file: Path) -> None:
    study = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(study, dict)
    found = [config.signature(config.compose([*study["base"], *row])) for row in study["rows"].values()]
    assert len({*found}) == len(found), "two rows are the same run"
    place = f"<!-- study: {file.stem} -->"
    assert (file.parents[2] / "docs" / "findings.md").read_text().count(place) == 1, f"the table of {file} has no place"

"""Every fault of a configuration at once, each with its key, its file and the nearest valid name; and identity."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from parts import parts_of
from wavespace import config
from wavespace.config import composition
from wavespace.config.composition import compose_by_hydra, compose_unchecked
from wavespace.errors import ConfigError, Incompatible


def faults(*overrides: str, folder: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        config.compose(overrides, folder)
    return str(caught.value)


def test_a_typo_on_the_command_line_names_the_nearest_key() -> None:
    assert "did you mean 'seed'" in faults("sed=3")
    assert "did you mean 'trainer.max_steps'" in faults("trainer.max_stepz=3")
    assert "did you mean 'model.width'" in faults("model.widht=3")


def test_the_readme_names_every_choice() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    rows = {row.split("`")[1]: set(re.findall(r"`(\w+)`", row)) for row in readme.splitlines() if row.startswith("| `")}
    for group, named in rows.items():
        assert set(config.choices(group) if group in ("experiment", "sweep") else parts_of(group)) <= named


def test_one_text_for_a_list_of_overrides_is_told() -> None:
    with pytest.raises(ConfigError, match="overrides are a list"):
        config.compose("experiment=demo")


def test_a_group_that_does_not_exist_lists_the_choices() -> None:
    text = faults("model=unett")
    assert "did you mean 'unet'" in text
    assert "conv2d" in text


def test_all_faults_come_in_one_message() -> None:
    text = faults("sed=3", "model=unet", "model.widht=3", "optim.lr=fast", "frontend=mell")
    for fragment in ("sed", "'model.width'", "optim.lr = fast", "'mel'"):
        assert fragment in text
    assert "4 faults" in text


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("optim.lr=fast", "number"),
        ("model.width=3.5", "integer"),
        ("seed=abc", "seed"),
        ("trainer.max_steps=many", "a number of steps, 1 or more"),
        ("optim.betas=[0.9]", "betas"),
    ],
)
def test_a_wrong_type_is_told_with_its_key(override: str, fragment: str) -> None:
    text = faults(override)
    assert override.split("=")[0] in text
    assert fragment in text


def test_a_typo_in_an_experiment_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\nmodel:\n  widht: 7\noptim:\n  lr: quick\n")
    text = faults("experiment=mine", folder=tmp_path)
    assert text.count(str(file)) == 2
    assert "did you mean 'model.width'" in text


def test_a_typo_at_the_root_of_an_experiment_file_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\nsed: 7\n")
    assert "sed" in faults("experiment=mine", folder=tmp_path)


def test_a_typo_at_depth_three_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "deep.yaml").write_text(
        "# @package _global_\nbaseline:\n  _target_: wavespace.models.peaks.Peaks\n"
        "  inner:\n    _target_: wavespace.optim.AdamW\n    lrr: 1\n"
    )
    text = faults("experiment=deep", folder=tmp_path)
    assert "baseline.inner.lrr" in text
    assert "did you mean 'baseline.inner.lr'" in text


def test_a_fault_in_a_file_of_the_user_s_own_names_that_file(tmp_path: Path) -> None:
    """Not the command line, which only chose it."""
    (tmp_path / "model").mkdir()
    mine = tmp_path / "model" / "mine.yaml"
    mine.write_text("_target_: wavespace.models.unet.UNet\nwidht: 4\n")
    assert f"model.widht (in {mine})" in faults("model=mine", folder=tmp_path)
    assert "model.depht (on the command line)" in faults("model=mine", "+model.depht=4", folder=tmp_path)


def test_a_class_that_cannot_be_imported_is_a_fault() -> None:
    assert "can't be imported" in faults("model._target_=nowhere.Net")


def test_zero_is_a_seed_and_changes_the_signature() -> None:
    assert config.compose([]).seed == 0
    assert config.signature(config.compose(["seed=0"])) == config.signature(config.compose([]))
    assert config.signature(config.compose(["seed=1"])) != config.signature(config.compose([]))


@pytest.mark.parametrize(
    "override", ["name=other", "fresh=true", "trainer.accelerator=cpu", "data.workers=0", "logger=wandb"]
)
def test_what_cannot_change_the_result_is_not_in_the_signature(override: str) -> None:
    assert config.signature(config.compose([override])) == config.signature(config.compose([]))


@pytest.mark.parametrize("override", ["optim.lr=2e-3", "model.width=8", "data.batch_size=3", "trainer.max_steps=7"])
def test_what_can_change_the_result_is_in_the_signature(override: str) -> None:
    assert config.signature(config.compose([override])) != config.signature(config.compose([]))


def test_a_choice_and_its_written_out_values_are_one_identity() -> None:
    width = config.compose([]).model.width
    assert config.signature(config.compose([f"model.width={width}"])) == config.signature(config.compose([]))


def test_an_experiments_values_for_a_group_go_with_its_own_choice() -> None:
    own = config.compose(["experiment=medley_unet"])
    other = config.compose(["experiment=medley_unet", "model=original_v0", "model.norm=group"])
    assert other.model == config.compose(["model=original_v0", "model.norm=group"]).model
    assert own.model.depth == 1 != other.model.depth
    assert (other.data, other.optim, other.trainer) == (own.data, own.optim, own.trainer)
    assert config.compose(["experiment=medley_unet", "model=medley_unet"]) == own
    # This did not even compose: data.midi is no key of MAESTRO.
    assert config.compose(["experiment=piano_roll", "data=maestro"]).data == config.compose(["data=maestro"]).data
    shown = [sys.executable, "-m", "wavespace", "train", "experiment=medley_unet", "model=original_v0", "--cfg", "job"]
    assert OmegaConf.create(subprocess.run(shown, capture_output=True, text=True).stdout).model.depth == 3


def test_amending_a_stored_configuration_changes_its_data_alone() -> None:
    stored = config.compose(["model.width=8", "optim.lr=5e-4"])
    changed = config.amend(stored, ["data=medley_solos", "data.splits=songs"], 22_050)
    assert changed.data.splits == "songs"
    assert changed.data.sample_rate == 22_050
    assert (changed.model.width, changed.optim.lr) == (8, 5e-4)
    with pytest.raises(ConfigError, match=r"did you mean 'data\.splits'"):
        config.amend(stored, ["data=medley_solos", "data.splitz=songs"], 22_050)
    for other in ("model.width=9", "model=unet", "task.margin=1"):
        with pytest.raises(ConfigError, match=f"{other}: .* are the checkpoint's"):
            config.amend(stored, ["data.batch_size=2", other], 22_050)


def test_what_is_composed_of_files_that_were_read_before_is_what_hydra_composes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups, values, additions and removals, in an order that matters, too."""
    for chosen in (
        ["experiment=medley_unet", "optim.lr=0.01", "seed=3"],
        ["model=transformer", "experiment=medley_unet", "seed=4", "trainer.max_steps=7"],
        ["data=medley_solos", "task=reconstruction", "+expect={test/l1_db: '< 3'}", "~trainer.deterministic", "seed=5"],
        ["data.midi=null", "optim.lr=0.1", "++optim.lr=0.2", "model.width=3", "model={_target_: a, width: 4}"],
        ["logger=wandb", "logger.offline=true", "~optim.lr", "++optim.lr=0.3", "optim.lr=0.4"],
    ):
        for seed in (6, 7):
            given = [*chosen, f"seed={seed}"]
            assert OmegaConf.to_yaml(compose_unchecked(given)) == OmegaConf.to_yaml(compose_by_hydra(given))
        with pytest.raises(ConfigError, match="there is no key 'optim\\.nothing'"):
            config.compose_rewritten([*chosen, "optim.nothing=1"])
    folder = shutil.copytree(config.conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(composition, "conf_dir", lambda: folder)
    before = config.compose(["model=unet"]).model.width
    file = folder / "model" / "unet.yaml"
    file.write_text(file.read_text().replace(f"width: {before}", f"width: {before + 1}"))
    assert config.compose(["model=unet"]).model.width == before + 1, "a file that was edited meanwhile"


def test_members_that_share_their_parts_are_probed_once_and_none_is_let_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wavespace import build
    from wavespace.training.multirun import CheckMembers

    checked: list[int] = []
    whole = build.check_shapes
    monkeypatch.setattr(build, "check_shapes", lambda cfg, audio: checked.append(cfg.model.width) or whole(cfg, audio))
    common = ["data=medley_solos", "task=reconstruction", "model=unet"]
    sweep = CheckMembers()
    sweep._check_members([*common, "model.width=2,3", "optim.lr=0.1,0.2", "seed=0,1"], None, {})
    assert (len(sweep.members), checked) == (8, [2, 3])
    for wrong, fault in (
        ("optim.lr=0.1,-1", "lr"),
        ("data.seconds=1,0", "seconds"),
        ("task=reconstruction,piano_roll", "needs notes"),
    ):
        with pytest.raises((ConfigError, Incompatible), match=fault):
            sweep._check_members([*common, "model.width=2", wrong], None, {})


@pytest.mark.parametrize("overrides", [["seed=3", 3], 3, {"seed": 3}])
def test_overrides_that_are_no_texts_are_a_sentence(overrides: object) -> None:
    with pytest.raises(TypeError, match="overrides are a list of texts, as in"):
        config.compose(overrides)

"""What a person types is what a run gets: text stays text, a new `_target_` starts anew, and nothing is swallowed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from wavespace import config
from wavespace.commands import train
from wavespace.config.composition import compose_unchecked
from wavespace.errors import ConfigError
from wavespace.runfolder import RunFolder

NUMBERLIKE = [
    "2024_05_01",
    "12e4567",
    "007",
    "null",
    "true",
    "1e5",
    "0x10",
    "on",
    "off",
    "1.0",
    "1_0",
    "nan",
    "+5",
    "0o7",
]


def faults(*overrides: str, folder: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        config.compose(overrides, folder)
    return str(caught.value)


# --- Text is text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NUMBERLIKE)
def test_a_name_is_the_text_that_was_typed(name: str) -> None:
    if name == "+5":
        assert "name='+5'" in faults(f"name={name}")
        return
    cfg = config.compose([f"name={name}", f"runs={name}"])
    assert (cfg.name, cfg.runs) == (name, name)
    assert RunFolder.of(cfg).path.parts[:2] == (name, name)
    assert config.rewrite(config.rewrite([f"name={name}"])) == config.rewrite([f"name={name}"])


@pytest.mark.parametrize(
    "key",
    [
        "data=maestro data.root",
        "data=audio_folder data.folder",
        "data.midi",
        "data.soundfont",
        "logger=wandb logger.project",
    ],
)
def test_other_keys_that_hold_text_are_not_read_as_numbers(key: str) -> None:
    *choice, key = key.split()
    for text in ("2024_05_01", "1e5", "007", "true", "7", "a b(1)", "é"):
        assert OmegaConf.select(config.compose([*choice, f"{key}={text}"]), key) == text


def test_keys_that_hold_numbers_are_read_as_numbers() -> None:
    cfg = config.compose(["data.seconds=1e0", "trainer.max_steps=1_000", "model=unet", "model.latent=8", "patience=3"])
    assert (cfg.data.seconds, cfg.trainer.max_steps, cfg.model.latent, cfg.patience) == (1.0, 1000, 8, 3)
    assert config.compose(["data=maestro", "data.val_windows=7"]).data.val_windows == 7
    assert config.compose(["data.midi=null"]).data.midi is None


def test_names_of_a_sweep_and_of_the_launcher_are_text() -> None:
    assert config.rewrite(["name=2024_05_01,a,1e5"]) == ["name='2024_05_01',a,'1e5'"]
    assert config.rewrite(["name=choice(1_0,a)"]) == ["name=choice('1_0',a)"]
    launcher = ["hydra/launcher=runpod", "hydra.launcher.project=1e5", "hydra.launcher.env.X=1"]
    assert config.rewrite(launcher)[1:] == ["hydra.launcher.project='1e5'", "hydra.launcher.env.X='1'"]
    assert config.rewrite(["hydra/launcher=runpod", "hydra.launcher.max_pods=3"])[1] == "hydra.launcher.max_pods=3"


@pytest.mark.parametrize(("key", "said"), [("name", "2024_05_01"), ("name", "on"), ("runs", "1e3")])
def test_a_text_of_an_experiment_that_yaml_reads_as_something_else_is_a_fault(
    key: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text(f"# @package _global_\n{key}: {said}\n")
    assert f"(in {file}): it holds text" in faults("experiment=mine", folder=tmp_path)
    file.write_text(f"# @package _global_\n{key}: '{said}'\n")
    assert config.compose(["experiment=mine"], tmp_path)[key] == said


def test_a_choice_of_a_group_may_look_like_a_number(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "2024_05_01.yaml").write_text("# @package _global_\nname: mine\n")
    assert config.compose(["experiment=2024_05_01"], tmp_path).name == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/x",
        "a/b",
        "étude (1)",
        "日本",
        "a b",
        "",
        ".",
        "..",
        "a.",
        ".a",
        "-a",
        "a\tb",
        "x" * 51,
        "launches",
        "a:b",
        "~",
    ],
)
def test_a_name_that_cannot_become_folder_run_and_artifact_is_refused(name: str) -> None:
    assert "a name becomes a folder" in faults(f"name='{name}'")


def test_runs_must_be_a_folder_that_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is in the way" in faults(f"runs={tmp_path}/file")
    assert "is in the way" in faults(f"runs={tmp_path}/file/below")
    assert "name a folder" in faults("runs=")


# --- A new target starts anew --------------------------------------------------------------------------------

PEAKS = "wavespace.models.peaks.Peaks"


@pytest.mark.parametrize("others", [[], ["experiment=demo"], ["experiment=medley_unet"], ["model=unet"]])
def test_a_new_target_drops_what_was_chosen_before(others: list[str]) -> None:
    cfg = config.compose([*others, f"model._target_={PEAKS}"])
    assert dict(cfg.model) == {"_target_": PEAKS}
    unet = config.compose([*others, "model._target_=wavespace.models.unet.UNet", "model.depth=2"])
    assert dict(unet.model) == {"_target_": "wavespace.models.unet.UNet", "depth": 2}
    once = config.rewrite([*others, f"model._target_={PEAKS}"])
    again = [f"{text}=null" if text.startswith("~") else text for text in once]  # as Hydra's sweeper gives a job
    assert config.compose(again) == cfg


@pytest.mark.parametrize(
    ("section", "target"),
    [
        ("data", "wavespace.data.synthesis.synthetic.Synthetic"),
        ("frontend", "wavespace.frontends.mel.Mel"),
        ("task", "wavespace.tasks.reconstruction.Reconstruction"),
        ("optim", "wavespace.optim.AdamW"),
        ("baseline", PEAKS),
        ("data.parts.rendered", "wavespace.data.synthesis.synthetic.Synthetic"),
    ],
)
def test_a_new_target_of_any_section_starts_from_its_constructors_defaults(section: str, target: str) -> None:
    other = "data=mixture" if section.startswith("data.parts") else "experiment=medley_dense"
    cfg = compose_unchecked(config.rewrite([other, f"{section}._target_={target}"]))
    assert dict(OmegaConf.select(cfg, section)) == {"_target_": target}


@pytest.mark.parametrize("above", ["", "defaults:\n  - override /model: unet\n"])
def test_a_new_target_of_an_experiment_starts_from_its_constructors_defaults(above: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    said = "model:\n  _target_: wavespace.models.tcn.TCN\n  layers: 2\noptim:\n  lr: 0.5\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{above}{said}")
    cfg = config.compose(["experiment=mine"], tmp_path)
    assert dict(cfg.model) == {"_target_": "wavespace.models.tcn.TCN", "layers": 2}
    assert (cfg.optim.lr, cfg.optim.warmup) == (0.5, config.compose().optim.warmup)
    assert config.compose(["experiment=mine", "model.layers=3"], tmp_path).model.layers == 3
    other = config.compose(["experiment=mine", f"model._target_={PEAKS}"], tmp_path)
    assert dict(other.model) == {"_target_": PEAKS}

    (tmp_path / "experiment" / "other.yaml").write_text(f"# @package _global_\nmodel:\n  _target_: {PEAKS}\n")
    assert config.rewrite(["experiment=mine,other"], tmp_path) == ["~model", "experiment=mine,other"]
    assert config.rewrite(["experiment=mine,demo"], tmp_path) == ["experiment=mine,demo"]


def test_a_sweep_over_targets_starts_each_from_its_own_defaults() -> None:
    swept = config.rewrite([f"model._target_={PEAKS},wavespace.models.unet.UNet", "seed=1"])
    assert swept == ["~model", f"++model._target_={PEAKS},wavespace.models.unet.UNet", "seed=1"]


def test_a_target_that_cannot_be_imported_says_where_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_net.py").write_text("import os\nx = 1\nraise RuntimeError('no licence')\n")
    (tmp_path / "odd_net.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = faults("model._target_=broken_net.Net")
    assert "no licence" in told
    assert f"{tmp_path / 'broken_net.py'}, line 3" in told
    assert "odd_net.py, line 1" in faults("model._target_=odd_net.Net")


# --- Nothing is swallowed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override", ["+foo=3", "++foo=3", "+callbacks.es=3", "foo=3", "+data.foo=3", "++model.foo.bar=3", "+logger.foo=3"]
)
def test_a_setting_that_nothing_reads_is_a_fault(override: str) -> None:
    assert "there is no" in faults(override)


@pytest.mark.parametrize("key", [*config.ROOT])
def test_a_root_key_that_is_taken_out_is_a_fault_or_has_no_part_in_a_run(key: str) -> None:
    if key == "logger":
        assert config.compose(["~logger"]).logger is None
        return
    assert key in faults(f"~{key}")


def test_an_experiment_without_its_package_line_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("seed: 3\n")
    assert "# @package _global_" in faults("experiment=mine", folder=tmp_path)


# --- One fault is told once, with what works -----------------------------------------------------------------


def test_several_values_without_m_say_so() -> None:
    told = faults("model.width=4,8", "seed=range(3)")
    assert told.count("train -m") == 2
    assert "model.width=[4,8]" in told


@pytest.mark.parametrize("override", ["seed=${oc.env:NOT_SET}", "data=maestro data.root=${oc.env:NOT_SET}"])
def test_an_unset_variable_is_one_fault(override: str) -> None:
    told = faults(*override.split())
    assert "a fault:" in told
    assert "variable NOT_SET is not set" in told


@pytest.mark.parametrize("group", ["data", "frontend", "model", "task", "optim", "trainer"])
@pytest.mark.parametrize("form", ["{}=null", "~{}"])
def test_a_group_without_a_choice_lists_its_choices(group: str, form: str) -> None:
    told = faults(form.format(group))
    assert "there are: " in told
    assert config.choices(group)[0] in told


def test_groups_that_a_run_does_without_take_null() -> None:
    cfg = config.compose(["experiment=null", "sweep=null", "logger=null"])
    assert cfg == config.compose(["~logger"])


@pytest.mark.parametrize(
    "override", ["data.seconds=nan", "optim.lr=inf", "optim.betas=[0.9,nan]", "frontend.floor_db=-inf"]
)
def test_numbers_are_finite(override: str) -> None:
    told = faults(override)
    assert override.partition("=")[0] in told
    assert "a fault:" in told


def test_a_folder_of_configuration_with_odd_characters_works(tmp_path: Path) -> None:
    folder = tmp_path / "a=b, 'c' (d) é"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text(f"_target_: {PEAKS}\n")
    assert config.compose(["model=mine"], folder).model._target_ == PEAKS
    assert "no such folder" in faults(folder=tmp_path / "nowhere")


def test_the_command_reads_its_arguments_as_compose_does(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["wavespace train", "-m", "name=1e5", "--config-dir", str(config.conf_dir()), f"model._target_={PEAKS}"]
    monkeypatch.setattr(sys, "argv", given)
    train._rewrite_arguments()
    assert sys.argv[1:] == [
        "-m",
        f"--config-dir={config.conf_dir()}",
        "~model",
        "name='1e5'",
        f"++model._target_={PEAKS}",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+model._partial_=true", "model._partial_ .*no effect here"),
        ("+data._convert_=all", "data._convert_ .*no effect here"),
        ("+logger.foo=1", "logger.foo .*no such key"),
        ("baseline=3", "baseline .*it has no _target_.* peaks"),
        ("seed=null", "seed=null: field 'seed' is not Optional$"),
        ("compile=maybe", "compile=maybe: Value 'maybe' is not a valid bool"),
        ("data.seconds.x=3", "data.seconds is a value, which has no keys"),
        ("hydra/launcher=nope", "Could not find 'hydra/launcher/nope'.*local"),
        ("save_every=${save_every}", "save_every .*leads back to itself"),
        ("hydra.foo=1", "no key 'hydra.foo'; keys of hydra: run, "),
    ],
)
def test_an_override_that_does_nothing_or_does_not_fit_says_why(override: str, said: str) -> None:
    found = faults(override)
    assert re.search(said, found, re.MULTILINE), found
    assert "Hydra" not in found
    assert "a fault:" in found


def test_keys_added_to_hydras_own_section_are_those_that_it_has() -> None:
    keys = ["job.env_set.A", "launcher.env.A", "callbacks.mine.x", "hydra_logging.loggers.x", "job_logging.loggers.x"]
    config.compose([*(f"+hydra.{key}=1" for key in keys), "hydra.verbose=true", "++hydra.job.name=x"])
    for wrong in (
        "+hydra.foo=1",
        "++hydra.jobb.name=x",
        "++hydra.run.dirr=x",
        "++hydra.run={dirr:x}",
        "+hydra.run.a.b=1",
    ):
        assert re.search(rf"{re.escape(wrong)}: Key '.*' not in '.*; keys: .*dir", faults(wrong)), faults(wrong)


def test_an_experiments_values_for_another_choice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "model").mkdir()
    defaults = "# @package _global_\ndefaults:\n  - override /model: unet\nmodel:\n  width: 5\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(defaults)
    assert config.compose(["experiment=mine", "model.depth=2"], tmp_path).model.width == 5
    assert config.compose(["experiment=mine", "model=unet"], tmp_path).model.width == 5
    with pytest.raises(ConfigError, match=r"sets model.width for another choice; move its values") as told:
        config.compose(["experiment=mine", "model=transformer"], tmp_path)
    assert "`defaults: [unet]`" in str(told.value)
    # What the sentence says, done:
    (tmp_path / "model" / "small.yaml").write_text("defaults: [unet]\nwidth: 5\n")
    (tmp_path / "experiment" / "mine.yaml").write_text(defaults.split("model:\n")[0].replace("unet", "small"))
    assert config.compose(["experiment=mine"], tmp_path).model.width == 5
    others = config.compose(["model=transformer"]).model
    assert config.compose(["experiment=mine", "model=transformer"], tmp_path).model == others

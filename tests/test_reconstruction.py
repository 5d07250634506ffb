"""Reconstruction as studied: the distance of sounds, nets that begin as a PCA, the probe, experiments and sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from parts import small_task
from training import TRAINER, make_medley
from wavespace.analysis.probes import instrument_probe
from wavespace.build import build
from wavespace.config import choices, compose, conf_dir
from wavespace.data.base import Batch
from wavespace.metrics.probes import balanced_accuracy
from wavespace.models.autoencoder import ConvAutoencoder
from wavespace.models.dense import Dense
from wavespace.models.pca import PCA
from wavespace.runfolder import RunFolder
from wavespace.spec import FeatureSpec
from wavespace.tasks.reconstruction import Reconstruction
from wavespace.training.fit import fit
from wavespace.training.multirun import CheckMembers

SPEC = FeatureSpec(1, tuple(np.geomspace(50, 5000, 24).tolist()), 40.0, "dB", -80.0, 0.0)
SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2"]


@pytest.fixture(autouse=True)
def a_few_windows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """To fit a PCA and to teach a probe on data of three tones."""
    monkeypatch.setattr("wavespace.training.baseline.WINDOWS", 16)
    monkeypatch.setattr("wavespace.analysis.probes.WINDOWS", 16)


def features(items: int = 6, frames: int = 32) -> torch.Tensor:
    """Features `(B, 1, 24, T)` whose bins depend on each other, as those of sound do."""
    mixture = torch.randn(24, 24, generator=torch.Generator().manual_seed(1)) * torch.logspace(1, -1, 24)
    values = torch.randn(items, frames, 24, generator=torch.Generator().manual_seed(0)) @ mixture.T - 40
    return values.transpose(1, 2)[:, None]


# --- The distance of sounds ------------------------------------------------------------------------------


def test_a_bounded_number_of_test_items_is_resynthesised_and_none_in_training(tmp_path: Path) -> None:
    cfg = compose([*make_medley(tmp_path / "medley"), *TRAINER, *SHORT, "task.multi_scale_items=2"])
    run = RunFolder(tmp_path / "run")
    parts = build(cfg)
    task = parts.task
    found: list[float] = []
    distance = task._distance  # type: ignore[attr-defined]
    task._distance = lambda *given: found.append(distance(*given)) or found[-1]  # type: ignore[attr-defined,func-returns-value]
    fit(cfg, parts, run)
    assert len(found) == 2
    assert run.status()["metrics"]["test/multi_scale"] == pytest.approx(np.mean(found))
    assert "val/multi_scale" not in run.status()["metrics"]


# --- Windows that are moved ------------------------------------------------------------------------------


def test_training_windows_are_moved_along_frequency_and_others_are_not() -> None:
    task = small_task("log_frequency", "conv2d", "reconstruction", "task.shift=5")
    audio = 0.3 * torch.randn(64, 1, 1000, generator=torch.Generator().manual_seed(0))
    batch = Batch(audio, torch.full((64,), 1000), torch.zeros(0, 5), {}, [""] * 64)
    still = task.example(batch).features
    assert torch.equal(still, task.frontend(audio))
    moved = task.training_example(batch).features
    assert moved.shape == still.shape
    padded = torch.nn.functional.pad(still, (0, 0, 5, 5), value=task.out_spec.low)
    shifts = []
    for one, wide in zip(moved, padded):
        shifts += [start for start in range(11) if torch.equal(one, wide[:, start : start + still.shape[2]])]
    assert len(shifts) == 64
    assert set(shifts) == set(range(11))
    with pytest.raises(ValueError, match="shift is 48; it must be 0 to 47 bins"):
        Reconstruction(task.frontend, shift=48)
    with pytest.raises(ValueError, match="multi_scale_items = -1"):
        Reconstruction(task.frontend, multi_scale_items=-1)


# --- Nets that begin as a PCA ----------------------------------------------------------------------------

NETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "conv1d": (ConvAutoencoder, {"kernel": 5}),
    "conv2d": (ConvAutoencoder, {"stride": 4, "depth": 1, "kernel": (3, 1)}),
    "conv2d pooled": (ConvAutoencoder, {"pool_time": True}),
    "dense": (Dense, {"hidden": 16}),
    "dense, codes of 4 frames": (Dense, {"hidden": 16, "frames": 4, "reach": 0}),
}


def linear_net(name: str, latent: int = 5) -> Any:
    kind, settings = NETS[name]
    torch.manual_seed(0)
    if kind is Dense:
        return Dense(SPEC, SPEC, latent=latent, **settings)
    return kind(SPEC, SPEC, **{"width": 4, "depth": 2, "latent": latent, "linear": True} | settings)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_a_net_with_a_linear_path_begins_as_the_pca(name: str) -> None:
    x = features()
    net = linear_net(name).eval()
    pca = PCA(SPEC, SPEC, latent=5, frames=net.step)
    net.fit(x.split(2))
    pca.fit(x.split(2))
    expected = pca(x)
    torch.testing.assert_close(net(x), expected, atol=1e-3, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):  # eight bits of a code would be decibels
        torch.testing.assert_close(net(x), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_all_that_a_linear_path_knows_of_a_frame_is_in_the_code(name: str) -> None:
    net = linear_net(name).double().eval()
    for parameter in net.parameters():  # the net's own part begins at nothing
        torch.nn.init.normal_(parameter, std=0.1)
    x = features(1, 4).double()
    assert torch.equal(net.decode(net.encode(x))[..., :4], net(x))
    jacobian: Any = torch.autograd.functional.jacobian(net, x)
    assert int(torch.linalg.matrix_rank(jacobian.view(96, 96), rtol=1e-10)) == 5 * 4


@pytest.mark.parametrize("name", NETS)
def test_a_net_with_a_linear_path_leaves_the_pca_behind(name: str) -> None:
    x, net = features(), linear_net(name)
    net.fit([x])
    with torch.no_grad():
        before = float((net.eval()(x) - x).abs().mean())
    optimizer = torch.optim.Adam(net.train().parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        (net(x) - x).abs().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "bias" not in n)
    with torch.no_grad():
        assert float((net.eval()(x) - x).abs().mean()) < 0.95 * before


def test_a_linear_path_needs_a_latent_and_what_is_no_copy_starts_elsewhere() -> None:
    with pytest.raises(ValueError, match="linear is true and latent null"):
        ConvAutoencoder(SPEC, SPEC, linear=True)
    with pytest.raises(ValueError, match="latent is 25; a frame has 24 dims"):
        Dense(SPEC, SPEC, latent=25)
    other = FeatureSpec(4, SPEC.frequencies[:7], 40.0, "logit", -10.0, 10.0)
    for net in (Dense(SPEC, other, latent=4), ConvAutoencoder(SPEC, other, latent=4, linear=True)):
        before = net(features())
        assert before.shape == (6, 4, 7, 32)
        net.fit([features()])
        assert torch.equal(net(features()), before)


def test_training_begins_at_the_pca_of_the_training_audio(tmp_path: Path) -> None:
    settings = ["model=conv1d", "model.width=4", "model.depth=2", "model.latent=8", "model.linear=true"]
    baseline = [
        "+baseline._target_=wavespace.models.pca.PCA",
        "+baseline.latent=8",
        "optim.lr=1e-9",
        "task.multi_scale_items=1",
    ]
    cfg = compose([*make_medley(tmp_path / "medley"), *TRAINER, *SHORT, *settings, *baseline])
    run = RunFolder(tmp_path / "run")
    fit(cfg, build(cfg), run)
    figures = run.status()["metrics"]
    for name in ("l1_db", "multi_scale", "instrument_probe"):
        assert figures[f"test/{name}"] == pytest.approx(figures[f"baseline/{name}"], rel=1e-2), name


@torch.no_grad()
def test_a_dense_net_depends_on_as_many_frames_as_it_says() -> None:
    for reach in (0, 1, 3):
        net = Dense(SPEC, SPEC, latent=5, hidden=16, reach=reach).eval()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        x = features(1)
        changed = x.clone()
        changed[..., 16] += 30
        differs = (net(x) - net(changed)).abs().amax((0, 1, 2)) > 1e-4
        assert differs.nonzero().flatten().tolist() == list(range(16 - net.receptive_field, 17 + net.receptive_field))


# --- What a code says of the instrument ------------------------------------------------------------------


def test_the_probe_tells_classes_apart_where_they_are_and_guesses_where_not() -> None:
    rng = np.random.default_rng(0)
    classes = rng.choice(4, 600, p=[0.7, 0.1, 0.1, 0.1])  # 0 is seven times as often
    centres = 3 * rng.normal(size=(4, 12))
    apart = centres[classes] + rng.normal(size=(600, 12))
    assert balanced_accuracy(apart[:300], classes[:300], apart[300:], classes[300:]) > 0.97
    chance = []
    for _ in range(40):
        noise = rng.normal(size=(600, 12))
        chance.append(balanced_accuracy(noise[:300], classes[:300], noise[300:], classes[300:]))
    assert np.mean(chance) == pytest.approx(0.25, abs=4 * np.std(chance) / 40**0.5)
    # Only classes that are scored count, and one that was never taught is always missed.
    assert balanced_accuracy(apart[:300], np.minimum(classes[:300], 2), centres, np.arange(4)) == 0.75


def test_ridge_regression_is_the_least_squares_of_weighted_rows() -> None:
    rng = np.random.default_rng(1)
    codes, classes = rng.normal(size=(80, 3)) * [1, 20, 0.1] + 7, rng.choice(3, 80)
    tested = rng.normal(size=(500, 3)) * [1, 20, 0.1] + 7
    scaled, scaled_test = ((x - codes.mean(0)) / codes.std(0) for x in (codes, tested))
    weight = np.sqrt(1 / np.bincount(classes)[classes] / 3)[:, None]
    rows = np.vstack([weight * np.c_[scaled, np.ones(80)], 0.1 * np.eye(4)[:3]])  # the penalty as rows: 0.1^2 = 0.01
    wanted = np.vstack([weight * np.eye(3)[classes], np.zeros((3, 3))])
    solution = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    expected = np.argmax(np.c_[scaled_test, np.ones(500)] @ solution, axis=1)
    assert balanced_accuracy(codes, classes, tested, expected) == 1.0


def test_what_has_no_code_or_no_instruments_is_not_probed(tmp_path: Path) -> None:
    overrides = make_medley(tmp_path / "medley")
    data, with_skips = build(compose(overrides))
    data.prepare_data()
    data.setup()
    assert instrument_probe(with_skips, data) == {}
    coded = build(compose([*overrides, "model=conv1d", "model.width=2", "model.depth=2", "model.latent=4"])).task
    assert 0 <= instrument_probe(coded, data)["instrument_probe"] <= 1
    data.spec = data.spec.__class__(data.spec.sample_rate, data.spec.seconds)
    assert instrument_probe(coded, data) == {}


# --- What ships ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [name for name in choices("model") if name.startswith("original_")])
def test_an_original_net_follows_its_input(net: str) -> None:
    cfg = compose(["data=medley_solos", "frontend=log_frequency", "task=reconstruction", f"model={net}"])
    task = build(cfg).task
    x = 20 * torch.randn(2, 1, 256, 16) - 50
    task.apply_model(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.model.parameters() if p.ndim > 1)


def test_the_sweep_s_members_are_its_own_but_for_what_the_command_line_says(tmp_path: Path) -> None:
    left = [o for o in make_medley(tmp_path / "medley") if not o.startswith(("model.width", "data.batch_size"))]
    overrides = ["sweep=reconstruction", *left, "optim.lr=1e-3", "data.batch_size=2"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra_compose("train", overrides=overrides, return_hydra_config=True)
    sweep = CheckMembers()
    sweep._check_members(overrides, None, cfg.hydra.sweeper.params)
    assert [label for label, _ in sweep.members] == ["model.width=4", "model.width=16"]
    assert [(m.model.width, m.optim.lr, m.data.batch_size) for _, m in sweep.members] == [(4, 1e-3, 2), (16, 1e-3, 2)]

"""PCA against the singular values of all frames, and as the baseline of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training import TRAINER, make_medley
from wavespace.build import build
from wavespace.config import compose
from wavespace.errors import ConfigError, Incompatible
from wavespace.models.pca import PCA
from wavespace.runfolder import RunFolder
from wavespace.spec import FeatureSpec
from wavespace.training.fit import fit

SPEC = FeatureSpec(2, (100.0, 200.0, 400.0), 10.0, "dB", -80.0, 0.0)


def test_it_is_the_truncated_singular_value_decomposition() -> None:
    features = 20 * torch.randn(5, 2, 3, 40, generator=torch.Generator().manual_seed(0)) @ torch.eye(40) - 40
    features[:, 1] = 0.7 * features[:, 0] + 0.1 * features[:, 1]
    frames = features.double().numpy().transpose(0, 3, 1, 2).reshape(-1, 6)
    mean = frames.mean(0)
    _, values, vectors = np.linalg.svd(frames - mean, full_matrices=False)
    for latent in (1, 3, 6):
        model = PCA(SPEC, SPEC, latent=latent)
        model.fit(features.split(2))
        kept = vectors[:latent]
        expected = (frames - mean) @ kept.T @ kept + mean
        found = model(features).double().numpy().transpose(0, 3, 1, 2).reshape(-1, 6)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        lost = np.square(frames - found).sum()
        np.testing.assert_allclose(lost, np.square(values[latent:]).sum(), rtol=1e-4, atol=1e-3)
        assert model.encode(features).shape == (5, latent, 1, 40)


@pytest.mark.parametrize("frames", [2, 4])
def test_of_blocks_of_frames_it_is_that_of_the_blocks(frames: int) -> None:
    # Each frame is like the last: what a block of them can spare.
    steps = torch.randn(6, 2, 3, 42, generator=torch.Generator().manual_seed(1))
    features = 3 * steps.cumsum(-1) - 40
    features -= features.mean((0, 3), keepdim=True)
    whole = features[..., : 42 - 42 % frames].double().numpy().transpose(0, 3, 1, 2)  # (6, T, 2, 3)
    blocks = whole.reshape(len(whole), -1, frames * 6).reshape(-1, frames * 6)
    mean = np.tile(blocks.reshape(-1, 6).mean(0), frames)
    vectors = np.linalg.eigh((blocks - mean).T @ (blocks - mean)).eigenvectors
    for latent in (1, 3):
        model = PCA(SPEC, SPEC, latent=latent, frames=frames)
        model.fit(features.split(2))
        basis = vectors[:, -latent * frames :]
        expected = (blocks - mean) @ basis @ basis.T + mean
        found = model(features)
        assert found.shape == features.shape
        assert model.encode(features).shape == (6, latent * frames, 1, -(-42 // frames))
        kept = found[..., : whole.shape[1]].double().numpy().transpose(0, 3, 1, 2).reshape(-1, frames * 6)
        np.testing.assert_allclose(kept, expected, atol=1e-3)
        alone = PCA(SPEC, SPEC, latent=latent)
        alone.fit(features.split(2))
        assert np.square(blocks - kept).sum() < (alone(features) - features).double().square().sum()


def test_what_it_can_t_be_is_refused() -> None:
    other = FeatureSpec(4, SPEC.frequencies, 10.0, "logit", -10.0, 10.0)
    with pytest.raises(Incompatible, match="model=pca gives back what came in"):
        PCA(SPEC, other)
    with pytest.raises(ValueError, match="latent is 7; a frame has 6 dims"):
        PCA(SPEC, SPEC, latent=7)
    with pytest.raises(ValueError, match="frames = 0: input should be 1, 2, 4"):
        PCA(SPEC, SPEC, latent=1, frames=0)


def test_as_a_baseline_it_is_fitted_on_training_audio(tmp_path: Path) -> None:
    baseline = ["+baseline._target_=wavespace.models.pca.PCA", "+baseline.latent=8"]
    cfg = compose([*make_medley(tmp_path / "medley"), *TRAINER, *baseline])
    parts = build(cfg)
    run = RunFolder(tmp_path / "run")
    fit(cfg, parts, run)
    figures = run.status()["metrics"]
    # Nine steps teach a net nothing; eight numbers of 32 hold most of a tone in noise.
    assert figures["baseline/l1_db"] < 4 < figures["test/l1_db"]


def test_a_baseline_that_can_t_be_is_refused_before_training(tmp_path: Path) -> None:
    medley = make_medley(tmp_path / "medley")
    with pytest.raises(ConfigError, match="latent is 9999; a frame has"):
        build(compose([*medley, "+baseline._target_=wavespace.models.pca.PCA", "+baseline.latent=9999"]))
    with pytest.raises(Incompatible, match="model=harmonic_sum reads rows in dB"):
        build(compose(["experiment=self_salience_piano", "task.timbres=8"]))

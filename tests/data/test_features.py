"""Features from a store equal those that the front-end computes, at every position of every recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from encodec.modules import SEANetEncoder

from training import TRAINER
from wavespace import config
from wavespace.build import build
from wavespace.config.construction import make
from wavespace.data.base import collate
from wavespace.data.sources.audio_folder import AudioFolder
from wavespace.data.store import features as module
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd
from wavespace.spec import AudioSpec

RATE = 24_000
SECONDS = (3.0, 0.2, 2.0, 4.1)
FRONTENDS = {
    "cqt": ["frontend=cqt", "frontend.bins=60", "frontend.hop=480"],
    "log_frequency": ["frontend=log_frequency", "frontend.bins=40", "frontend.hop=240", "frontend.n_fft=2048"],
    "encodec": ["frontend=encodec"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of four lengths, of which one is shorter than a window."""
    place = tmp_path_factory.mktemp("noise")
    for number, seconds in enumerate(SECONDS):
        noise = 0.1 * np.random.default_rng(number).normal(size=round(seconds * RATE))
        soundfile.write(place / f"{number}.wav", noise, RATE, subtype="PCM_16")
    return place


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of the official form that never saw music."""
    torch.manual_seed(0)
    encoder = SEANetEncoder(dimension=128, norm="none", causal=True)
    path = tmp_path_factory.mktemp("weights") / "random.th"
    torch.save({f"encoder.{name}": value for name, value in encoder.state_dict().items()}, path)
    return path


def overrides(folder: Path, frontend: str, weights: Path) -> list[str]:
    return [
        *("data=audio_folder", f"data.folder={folder}", "data.notes=false", "data.splits=[1.0,0.0,0.0]"),
        *(f"data.sample_rate={RATE}", "data.seconds=0.5", f"data.stores={folder.parent / 'stores'}"),
        *(*FRONTENDS[frontend], "model=conv2d", "model.width=2", "model.depth=2", "task=reconstruction"),
        *([f"frontend.weights={weights}"] if frontend == "encodec" else []),
    ]


def ready(folder: Path, frontend: str, weights: Path) -> tuple[AudioFolder, FrontEnd]:
    cfg = config.compose(overrides(folder, frontend, weights))
    data = make(cfg.data, "data")
    built = make(cfg.frontend, "frontend", in_spec=data.spec)
    data.use_features(built, config.identity(cfg)["frontend"])
    data.prepare_data()
    data.setup()
    return data, built


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_windows_have_the_features_of_their_place(
    frontend: str, folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 64)  # several blocks a recording
    data, built = ready(folder, frontend, weights)
    hop = data.store.hop
    assert hop == round(RATE / built.out_spec.frame_rate)
    for position in range(12):
        item = data.train_set[position]
        assert item.features is not None
        assert item.features.dtype == np.float16
        assert item.features.shape == (1 + len(item.audio) // hop, built.out_spec.channels * built.out_spec.bins)
        number, _, start = item.name.partition(".wav at ")
        whole = data.store.window(int(number), 0, int(data.store.frames[int(number)]))
        first = round(float(start.split(" ")[0]) * RATE / hop)
        np.testing.assert_array_equal(item.audio[: len(whole)], whole[first * hop :][: len(item.audio)])
        expected = built.compute(torch.from_numpy(whole)[None].float() / 32768)[0].flatten(0, 1).T.numpy()
        expected = expected[first : first + len(item.features)]
        # Half precision: 11 bits.
        np.testing.assert_allclose(item.features[: len(expected)], expected, rtol=2**-11, atol=2e-3)


def test_what_is_beyond_a_recording_is_silence(folder: Path, weights: Path) -> None:
    data, built = ready(folder, "log_frequency", weights)
    short = data.store.item(1, 0, data.spec.samples)
    assert short.features is not None
    assert (short.features[round(0.3 * 100) :] == built.out_spec.low).all()
    assert (short.features[: round(0.15 * 100)] > built.out_spec.low).all()


def test_equal_settings_share_a_store_and_other_weights_do_not(folder: Path, weights: Path, tmp_path: Path) -> None:
    stores = [ready(folder, "encodec", weights)[0].store.features for _ in range(2)]
    torch.manual_seed(1)
    encoder = SEANetEncoder(dimension=128, norm="none", causal=True)
    torch.save({f"encoder.{n}": v for n, v in encoder.state_dict().items()}, tmp_path / "other.th")
    stores.append(ready(folder, "encodec", tmp_path / "other.th")[0].store.features)
    names = [store.folder.name for store in stores if store]
    assert names[0] == names[1] != names[2]


def test_a_task_reads_the_features_that_come_with_a_batch(folder: Path, weights: Path) -> None:
    cfg = config.compose([*overrides(folder, "log_frequency", weights), "cache=true"])
    data, task = build(cfg)
    data.prepare_data()
    data.setup()
    batch = collate([data.train_set[position] for position in range(3)])
    kept, computed = task.batch_features(batch), task.frontend(batch.audio)
    assert kept.shape == computed.shape
    inside = slice(10, -10)  # frames that hear nothing beyond the window
    full = [i for i, name in enumerate(batch.names) if not name.startswith("1.")]
    assert (kept - computed)[full][..., inside].abs().max() < 0.05
    kept[full] += 1.0
    assert not torch.equal(kept, task.batch_features(batch))


def test_training_on_kept_features_goes_through(folder: Path, weights: Path, tmp_path: Path) -> None:
    from wavespace.runfolder import RunFolder
    from wavespace.training.fit import fit

    cfg = config.compose(
        [*overrides(folder, "log_frequency", weights), *TRAINER, "cache=true", "data.splits=[0.5,0.25,0.25]"]
    )
    parts = build(cfg)
    run = RunFolder(tmp_path / "run")
    fit(cfg, parts, run)
    assert run.status()["metrics"]["test/l1_db"] < 40
    assert config.signature(cfg) != config.signature(config.compose(overrides(folder, "log_frequency", weights)))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            ["data=synthetic", "frontend=log_frequency"],
            r"data=synthetic makes its audio as it goes; set cache=false, or use data=maestro",
        ),
        (
            ["data=medley_solos", "frontend=nnaudio_stft", "frontend.trainable=true"],
            r"frontend=nnaudio_stft learns; set cache=false",
        ),
    ],
)
def test_what_can_t_be_kept_is_refused(changed: list[str], sentence: str) -> None:
    cfg = config.compose([*changed, "model=conv2d", "task=reconstruction", "cache=true"])
    with pytest.raises(Incompatible, match=sentence):
        build(cfg)


def test_a_store_of_features_outlives_its_parts(folder: Path, weights: Path) -> None:
    import pickle

    data, _ = ready(folder, "cqt", weights)
    again = pickle.loads(pickle.dumps(data.store))
    np.testing.assert_array_equal(again.item(2, 480, 4800).features, data.store.item(2, 480, 4800).features)
    assert AudioSpec(RATE, 0.5) == data.spec
    data.verify()
    shard = next(data.store.features.folder.glob("*.rows"))  # type: ignore[union-attr]
    spoilt = bytearray(shard.read_bytes())
    spoilt[100] ^= 1
    shard.write_bytes(spoilt)
    with pytest.raises(ValueError, match="its SHA-256 differs"):
        data.verify()

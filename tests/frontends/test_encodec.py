"""EnCodec latents: against the official encoder, in chunks, and what is said where weights or rates are wrong.

The weights are random: there is nothing to download, and equality needs no training.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from wavespace.build import build_task, check_shapes
from wavespace.config import compose
from wavespace.config.construction import make
from wavespace.errors import BadInput, Incompatible
from wavespace.frontends import encodec
from wavespace.frontends.encodec import HOP, EnCodec
from wavespace.frontends.weights import ENCODEC as OFFICIAL
from wavespace.models.blocks import Scale
from wavespace.models.harmonic import Harmonic
from wavespace.models.peaks import Peaks
from wavespace.models.unet import UNet
from wavespace.spec import AudioSpec, FeatureSpec
from wavespace.tasks.piano_roll import PianoRoll
from wavespace.tasks.reconstruction import Reconstruction

AUDIO = AudioSpec(sample_rate=24_000, seconds=1.0, labels=("notes",))
CONF = Path(__file__).parents[2] / "conf" / "frontend"


@pytest.fixture(scope="module")
def official() -> Any:
    """The official model, its encoder somewhat louder than it is born."""
    from encodec import EncodecModel

    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch has another weight_norm
        model = EncodecModel.encodec_model_24khz(pretrained=False)
    for name, parameter in model.named_parameters():
        if name.endswith("weight_g"):
            parameter.data *= 2 * torch.rand_like(parameter) + 1
    return model


@pytest.fixture(scope="module")
def weights(official: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights as the official file has them."""
    path: Path = tmp_path_factory.mktemp("encodec") / "random.th"
    torch.save(official.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def front_end(weights: Path) -> EnCodec:
    return EnCodec(AUDIO, weights=str(weights))


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 319, 320, 321, 12_345])
def test_latents_are_those_of_the_official_encoder(front_end: EnCodec, official: Any, samples: int) -> None:
    """Frame t reads the hop about sample `t * HOP`: the encoder's own frame t of audio that starts half a hop late."""
    audio = noise(2, 1, samples)
    frames = front_end.out_spec.frames(samples, 24_000)
    with torch.no_grad():
        expected = official.encoder(F.pad(audio, (HOP // 2, HOP * frames - HOP // 2 - samples)))  # (B, 128, T)
    latents = front_end(audio)
    assert latents.shape == (2, 128, 1, frames)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(latents[:, :, 0], expected, atol=2e-5, rtol=0)


def test_a_frame_hears_its_hop_and_what_was_before(front_end: EnCodec) -> None:
    audio = noise(1, 1, 40 * HOP)
    changed = audio.clone()
    changed[..., 20 * HOP + HOP // 2 :] = 0  # all after frame 20
    difference = (front_end(audio) - front_end(changed)).abs().amax((0, 1, 2))  # (T,)
    assert difference[:21].max() < 1e-5
    assert difference[21] > 1e-3


@pytest.mark.parametrize("chunk", [7, 31])
def test_chunks_give_the_latents_of_one_pass(front_end: EnCodec, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    audio = noise(1, 1, 50 * HOP + 17)
    whole = front_end(audio)
    monkeypatch.setattr(encodec, "CHUNK", chunk)
    torch.testing.assert_close(front_end(audio), whole, atol=2e-5, rtol=0)


def test_float32_is_float64_but_for_rounding(front_end: EnCodec) -> None:
    audio = noise(1, 1, 20 * HOP)
    exact = copy.deepcopy(front_end).double().compute(audio[:, 0].double())
    torch.testing.assert_close(front_end(audio).double(), exact, atol=2e-5, rtol=0)


def test_autocast_changes_no_bit(front_end: EnCodec) -> None:
    audio = noise(2, 1, 5_000)
    plain = front_end(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = front_end(audio)
    assert torch.equal(cast, plain)
    assert cast.dtype == torch.float32


def test_it_is_frozen_and_a_checkpoint_holds_none_of_it(front_end: EnCodec) -> None:
    assert not list(front_end.parameters())
    assert not front_end.state_dict()
    assert not front_end(noise(1, 1, 1_000)).requires_grad
    assert sum(table.numel() for table in front_end.buffers()) > 7_000_000


def test_meta_needs_no_weights() -> None:
    with torch.device("meta"):
        assert EnCodec(AUDIO, weights="nowhere")(torch.empty(2, 1, 24_000)).shape == (2, 128, 1, 76)


def test_missing_weights_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BadInput, match=rf"^data/encodec/{OFFICIAL}: .* download https://.*/{OFFICIAL} .*frontend.weights"
    ):
        EnCodec(AUDIO)
    with pytest.raises(BadInput, match=rf"^elsewhere/{OFFICIAL}: there are no EnCodec weights"):
        EnCodec(AUDIO, weights="elsewhere")
    with pytest.raises(BadInput, match=r"^elsewhere/own\.th: there are no EnCodec weights"):
        EnCodec(AUDIO, weights="elsewhere/own.th")


def test_a_folder_will_do_and_the_hash_in_a_name_is_held_against_the_file(
    front_end: EnCodec, weights: Path, tmp_path: Path
) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    named = tmp_path / f"encodec-{digest[:8]}.th"
    named.symlink_to(weights)
    audio = noise(1, 1, 1_000)
    assert torch.equal(EnCodec(AUDIO, weights=str(named))(audio), front_end(audio))
    (tmp_path / OFFICIAL).symlink_to(weights)
    with pytest.raises(BadInput, match=f"{OFFICIAL}: is damaged: its SHA-256 begins with {digest[:8]}.* says d7cc33bc"):
        EnCodec(AUDIO, weights=str(tmp_path))


def test_files_that_are_no_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    def refusal(name: str) -> str:
        with pytest.raises(BadInput) as caught:
            EnCodec(AUDIO, weights=str(tmp_path / name))
        return str(caught.value)

    (tmp_path / "text.th").write_text("<html>Not found</html>")
    assert "text.th: is no file of weights, or is damaged" in refusal("text.th")
    torch.save([1, 2], tmp_path / "list.th")
    assert "list.th: is no file of weights" in refusal("list.th")
    torch.save({"model": torch.zeros(1)}, tmp_path / "other.th")
    assert f"other.th: is not the 24 kHz EnCodec ({OFFICIAL})" in refusal("other.th")
    shutil.copy(weights, tmp_path / "half.th")
    with (tmp_path / "half.th").open("r+b") as file:
        file.truncate(10_000_000)
    assert "half.th: is no file of weights, or is damaged" in refusal("half.th")
    state = torch.load(weights)
    state["encoder.model.0.conv.conv.weight_v"] = torch.zeros(32, 2, 7)  # the 48 kHz model is stereo
    torch.save(state, tmp_path / "stereo.th")
    assert "size mismatch" in refusal("stereo.th")


def test_other_sample_rates_are_refused() -> None:
    with pytest.raises(
        Incompatible, match=r"24000 Hz audio, and the data has 44100 Hz; set data.sample_rate=24000, or"
    ):
        EnCodec(AudioSpec(44_100, 1.0))


def test_models_and_tasks_take_latents_or_say_what_does(front_end: EnCodec) -> None:
    spec, roll = front_end.out_spec, PianoRoll(front_end).out_spec
    with pytest.raises(Incompatible, match=r"model=harmonic .*128 x 1 bins.* frontend=cqt.* model=unet"):
        Harmonic(spec, roll)
    with pytest.raises(Incompatible, match=r"model=peaks .*128 x 1 bins.* frontend=cqt.* model=unet"):
        Peaks(spec, roll)
    with pytest.raises(Incompatible, match=r"task=reconstruction .*EnCodec.*latent; use frontend=log_frequency"):
        Reconstruction(front_end)
    one_bin = FeatureSpec(1, (440.0,), 75.0, "dB", -80.0, 0.0)
    with pytest.raises(Incompatible, match="model=harmonic"):
        Harmonic(one_bin, roll)


def test_scaling_of_latents_is_about_zero(front_end: EnCodec) -> None:
    scale, x = Scale(front_end.out_spec), torch.tensor([-10.0, 0.0, 5.0])
    assert torch.equal(scale.normalize(x), torch.tensor([-1.0, 0.0, 0.5]))
    assert torch.equal(scale.denormalize(scale.normalize(x)), x)


def test_a_unet_on_latents_tells_pitches_apart(front_end: EnCodec) -> None:
    """From one bin to 88: with one weight a pitch they would all follow one another."""
    torch.manual_seed(0)
    model = UNet(front_end.out_spec, PianoRoll(front_end).out_spec, width=8, depth=2, pool="both").eval()
    output = model(front_end(noise(1, 1, 24_000)))  # (1, 4, 88, 76)
    assert output.shape == (1, 4, 88, 76)
    assert torch.linalg.matrix_rank(output[0, 0] - output[0, 0].mean(1, keepdim=True)) >= 4


@pytest.mark.parametrize("model", ["unet", "conv2d"])
def test_piano_roll_on_latents_is_built_from_configuration(model: str, weights: Path) -> None:
    cfg = compose(
        [
            *("data=rendered", "data.sample_rate=24000", "frontend=encodec", f"frontend.weights={weights}"),
            *(f"model={model}", "model.width=4", "model.depth=2", "task=piano_roll"),
        ]
    )
    audio = make(cfg.data, "data").spec
    assert check_shapes(cfg, audio).frontend.out_spec.unit == "latent"
    assert build_task(cfg, audio)(noise(1, 1, 6_000)).shape == (1, 4, 88, 19)


def test_yaml_states_every_keyword_at_its_default() -> None:
    stated: Any = OmegaConf.to_container(OmegaConf.load(CONF / "encodec.yaml"))
    assert stated.pop("_target_") == f"{EnCodec.__module__}.{EnCodec.__name__}"
    parameters = inspect.signature(EnCodec).parameters.values()
    assert stated == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

"""Samples: the manifest matches the files, sounds are exact, pictures show the right item at the right place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor, nn

from processes import command
from wavespace.data.base import NO_NOTES, DataModule, Item, Notes
from wavespace.data.files.midi import read_midi
from wavespace.errors import UserError
from wavespace.frontends.base import FrontEnd
from wavespace.reports.figures import draw
from wavespace.spec import AudioSpec, FeatureSpec
from wavespace.tasks.base import Example, Picture, Sample, Task, feature_picture
from wavespace.training.callbacks import samples
from wavespace.training.callbacks.samples import save_samples
from wavespace.units import midi_to_hz

RATE = 8000
HOP = 100
NOTES: Notes = np.array([[0.1, 0.5, 60, 80], [0.3, 0.9, 67, 90], [0.8, 1.2, 72, 100]])
HEARD: Notes = np.array([[0.12, 0.5, 60, 80], [0.3, 0.9, 79, 90], [0.82, 1.2, 72, 100]])  # one an octave too high


class Rms(FrontEnd):
    """Four bins with the level of each hop."""

    def __init__(self, in_spec: AudioSpec) -> None:
        super().__init__(in_spec, FeatureSpec(1, (100.0, 200.0, 400.0, 800.0), RATE / HOP, "dB", -80.0, 0.0))

    def compute(self, audio: Tensor) -> Tensor:
        padded = nn.functional.pad(audio, (HOP // 2, HOP))
        frames = padded.unfold(-1, HOP, HOP)[:, : self.out_spec.frames(audio.shape[-1], RATE)]  # (B, T, HOP)
        return frames.square().mean(-1)[:, None, None].expand(-1, -1, 4, -1)  # (B, 1, F, T)


class Fake(Task):
    """Gives its input's sound, and the notes it was told."""

    def __init__(self, spec: AudioSpec, estimate: Notes, extra: dict[str, np.ndarray]) -> None:
        frontend = Rms(spec)
        super().__init__(frontend, frontend.out_spec)
        self.model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0.5))
        nn.init.ones_(self.model[0].weight)
        self.estimate, self.extra = estimate, extra

    def sample(self, output: Tensor, example: Example, index: int) -> Sample:
        assert not output.requires_grad
        assert not self.training
        batch = example.batch
        picture = feature_picture("level", output[index, 0], self.out_spec)
        sound = batch.audio[index, 0, : int(batch.lengths[index])].float().numpy() / 32768
        return Sample(
            batch.names[index], [picture], {"input": sound, **self.extra}, batch.notes_of(index), self.estimate
        )


class Silent(Fake):
    """Defines no sample of its own."""

    sample = Task.sample


class Data(DataModule):
    """Three items of noise."""

    def __init__(self, names: tuple[str, ...] = ("a", "b", "c"), seconds: float = 1.5, notes: Notes = NO_NOTES) -> None:
        super().__init__(AudioSpec(RATE, 1.0, ("notes",)), 1, 0)
        rng = np.random.default_rng(0)
        audio = rng.integers(-32768, 32768, (len(names), round(seconds * RATE))).astype(np.int16)
        self.val_set = [Item(sound, name, notes) for sound, name in zip(audio, names)]  # type: ignore[assignment]


def saved(folder: Path, data: Data, estimate: Notes = NO_NOTES, count: int = 1, **extra: np.ndarray) -> list[dict]:
    save_samples(Fake(data.spec, estimate, extra), data, folder, count)
    return json.loads((folder / "samples.json").read_text())


def test_the_manifest_lists_every_file_and_every_file_can_be_read(tmp_path: Path) -> None:
    data = Data(notes=NOTES)
    entries = saved(tmp_path / "samples", data, HEARD, count=2)
    assert [entry["name"] for entry in entries] == ["a", "b"]
    listed = {"samples.json"}
    for entry in entries:
        listed |= {entry["picture"], *(e["file"] for e in entry["sounds"] + entry["midi"])}
        with Image.open(tmp_path / "samples" / entry["picture"]) as picture:
            assert picture.format == "PNG"
            assert picture.width == 1000
        assert [sound["title"] for sound in entry["sounds"]] == ["input", "transcription"]
        for sound in entry["sounds"]:
            info = soundfile.info(tmp_path / "samples" / sound["file"])
            assert (info.format, info.subtype, info.samplerate, info.frames) == ("FLAC", "PCM_16", RATE, 1.5 * RATE)
        for midi, notes in zip(entry["midi"], [HEARD, NOTES]):
            found = read_midi(tmp_path / "samples" / midi["file"]).notes
            np.testing.assert_allclose(found, notes, atol=1e-3)
        assert [midi["title"] for midi in entry["midi"]] == ["estimate", "reference"]
        assert entry["missing"] is None
    assert {path.name for path in (tmp_path / "samples").iterdir()} == listed
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_sixteen_bit_audio_comes_back_bit_by_bit(tmp_path: Path) -> None:
    data = Data()
    saved(tmp_path / "samples", data)
    found, _ = soundfile.read(tmp_path / "samples" / "0-input.flac", dtype="int16")
    np.testing.assert_array_equal(found, data.val_set[0].audio)


def test_the_transcription_sounds_at_the_notes_of_the_estimate(tmp_path: Path) -> None:
    late: Notes = np.array([[1.0, 1.4, 69, 100]])
    saved(tmp_path / "samples", Data(), late)
    audio, _ = soundfile.read(tmp_path / "samples" / "0-transcription.flac")
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    loudest = np.argmax(spectrum) * RATE / len(audio)
    assert np.abs(audio[: round(0.99 * RATE)]).max() < 1e-3 < np.abs(audio).max()
    assert min(abs(loudest - harmonic * 440) for harmonic in (1, 2, 3)) < 5


def test_loud_and_broken_sounds_are_clipped(tmp_path: Path) -> None:
    saved(tmp_path / "samples", Data(), broken=np.array([5, -5, np.nan, 0.25, np.inf, 1.0], np.float32))
    found, _ = soundfile.read(tmp_path / "samples" / "0-broken.flac", dtype="int16")
    assert found.tolist() == [32767, -32768, 0, 8192, 32767, 32767]


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(0)  # weights
            task = Fake(Data().spec, HEARD, {})
        save_samples(task, Data(notes=NOTES), tmp_path / name, 1)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_only_the_beginning_of_a_long_recording_is_kept(tmp_path: Path) -> None:
    late = np.array([[9.0, 9.5, 60, 80], [11.0, 11.5, 60, 80]])
    [entry] = saved(tmp_path / "samples", Data(seconds=12.0, notes=late), NO_NOTES)
    assert soundfile.info(tmp_path / "samples" / "0-input.flac").duration == samples.SECONDS
    assert len(read_midi(tmp_path / "samples" / "0-reference.mid").notes) == 1
    assert "10.0 seconds" in entry["description"]


def test_hostile_names_stay_in_the_folder(tmp_path: Path) -> None:
    names = ("../../<script>alert(1)</script>/\0", "..." + "é" * 300)
    entries = saved(tmp_path / "deep" / "samples", Data(names), count=2, **{"a/../b": np.zeros(9, np.float32)})
    assert tuple(entry["name"] for entry in entries) == names
    files = [path.name for path in (tmp_path / "deep" / "samples").iterdir()]
    assert all(re.fullmatch(r"[\w.-]{3,60}", name) for name in files), files
    assert len(files) == 1 + 2 * 3
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_without_tinysoundfont_the_manifest_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise UserError("rendering needs tinysoundfont")

    monkeypatch.setattr(samples, "Sampler", missing)
    [entry] = saved(tmp_path / "samples", Data(notes=NOTES), HEARD)
    assert [sound["title"] for sound in entry["sounds"]] == ["input"]
    assert "tinysoundfont" in entry["missing"]
    assert len(entry["midi"]) == 2


def test_a_failure_leaves_the_older_samples_as_they_were(tmp_path: Path) -> None:
    saved(tmp_path / "samples", Data(), count=2)
    before = {p.name: p.read_bytes() for p in (tmp_path / "samples").iterdir()}
    with pytest.raises(TypeError):
        saved(tmp_path / "samples", Data(), broken="no sound")  # type: ignore[arg-type]
    assert {p.name: p.read_bytes() for p in (tmp_path / "samples").iterdir()} == before
    for left in ("new", "old"):  # by a process that was killed
        (tmp_path / f".samples.{left}" / "deep").mkdir(parents=True)
    saved(tmp_path / "samples", Data(("only one",)))
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_a_task_without_samples_writes_nothing(tmp_path: Path) -> None:
    save_samples(Silent(Data().spec, NO_NOTES, {}), Data(), tmp_path / "samples")
    assert list(tmp_path.iterdir()) == []


RUN = [
    "data=synthetic", "data.sample_rate=8000", "data.seconds=0.5", "data.pitch=[100.0,1000.0]", "data.batch_size=2",
    "data.lowpass=null", "data.reverb=null", "data.val_items=3", "data.test_items=1", "data.workers=0",
    "frontend=mel", "frontend.bins=24", "frontend.n_fft=512", "frontend.hop=128",
    "model=conv2d", "model.width=2", "model.depth=2", "task=piano_roll",
    "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "trainer.precision=32-true",
]  # fmt: skip


def test_wandb_holds_what_the_run_folder_holds(tmp_path: Path) -> None:
    # A process of its own: W&B leaves its service in the environment, which later tests' processes would share.
    overrides = [*RUN, f"runs={tmp_path}", "logger=wandb", "logger.offline=true"]
    found = command("train", *overrides, cwd=tmp_path, WANDB_MODE="offline")
    assert found.returncode == 0, found.stderr
    [status] = tmp_path.rglob("status.json")
    folder = status.parent / "samples"
    [files] = status.parent.glob("wandb/offline-run-*/files")
    entries = json.loads((folder / "samples.json").read_text())
    assert [entry["kind"] for entry in entries] == ["sample", "sample", "audit", "audit", "audit"]

    def contents(root: Path, *suffixes: str) -> list[bytes]:
        return sorted(path.read_bytes() for path in root.rglob("*") if path.suffix in suffixes)

    for suffix in (".png", ".flac"):
        assert len(contents(folder, suffix)) >= 3
        assert contents(files / "media", suffix) == contents(folder, suffix)
    assert {path.name: path.read_bytes() for path in (files / "samples").iterdir()} == {
        path.name: path.read_bytes() for path in folder.glob("*.mid")
    }
    keys = {re.sub(r"_\d+_\w+$", "", path.stem) for path in (files / "media").rglob("*.*")}
    assert {"0 picture", "1 picture", "0 input", "1 input", "Latent space", "Chromatic scale"} <= keys


@pytest.mark.parametrize(
    "frequencies",
    [np.linspace(0, 8000, 513), np.geomspace(50, 8000, 200), midi_to_hz(1) * 2 ** (np.arange(88) / 12 + 20 / 12)],
    ids=["linear", "logarithmic", "keys"],
)
@pytest.mark.parametrize("hertz", [110.0, 440.0, 3000.0])
def test_a_tone_is_drawn_at_its_pitch_and_time(frequencies: np.ndarray, hertz: float) -> None:
    values = np.zeros((len(frequencies), 50), np.float32)
    bin_ = int(np.argmin(np.abs(frequencies - hertz)))
    values[bin_, 20] = 1.0
    figure, _ = draw(Sample("tone", [Picture("p", values, tuple(frequencies), 10.0, 0, 1, "dB")], {}))
    axes = figure.axes[0]
    [image] = axes.images
    left, right, low, high = image.get_extent()
    shown = np.asarray(image.get_array())
    rows, columns = np.nonzero(shown == 1)
    pitch = low + (rows + 0.5) / len(shown) * (high - low)
    centre = frequencies[bin_]
    step = max(frequencies[bin_ + 1] - centre, centre * 2 ** (1 / 30) - centre)  # a bin, or a row
    assert np.all(np.abs(440 * 2 ** ((pitch - 69) / 12) - centre) <= step)
    assert np.all(left + (columns + 0.5) / 50 * (right - left) == pytest.approx(2.0))
    assert axes.get_ylim() == (low, high)


def test_no_bin_is_lost_where_a_row_covers_many() -> None:
    frequencies = tuple(np.linspace(0, 22050, 2049))
    values = np.eye(2049, dtype=np.float32)
    figure, _ = draw(Sample("all", [Picture("p", values, frequencies, 10.0, 0, 1, "dB")], {}))
    image = figure.axes[0].images[0]
    lowest = 440 * 2 ** ((image.get_extent()[2] - 69) / 12)
    visible = np.array(frequencies) > lowest + 22050 / 2048
    assert np.asarray(image.get_array()).max(0)[visible].min() == 1


def test_axes_are_labelled_in_hertz_or_in_keys() -> None:
    values = np.zeros((88, 5), np.float32)
    keys = tuple(midi_to_hz(pitch) for pitch in range(21, 109))
    pictures = [
        Picture("keys", values, keys, 10.0, 0, 1, "probability"),
        Picture("bands", values, tuple(np.geomspace(50, 5500, 88)), 10.0, -80, 0, "dB"),
    ]
    figure, description = draw(Sample("x", pictures, {}))
    labels = [
        dict(zip((t.get_text() for t in axes.get_yticklabels()), axes.get_yticks()))
        for axes in figure.axes
        if axes.images
    ]
    assert labels[0]["C4"] == 60
    assert set(labels[0]) == {f"C{octave}" for octave in range(1, 9)}
    assert labels[1]["500 Hz"] == pytest.approx(69 + 12 * np.log2(500 / 440))
    assert labels[1]["5 kHz"] == pytest.approx(69 + 12 * np.log2(5000 / 440))
    assert "keys (probability); bands (dB)" in description


@pytest.mark.parametrize(
    ("reference", "estimate", "counts"),
    [
        (NOTES, HEARD, "2 found, 1 missed, 1 extra"),
        (NOTES, NO_NOTES, "0 found, 3 missed, 0 extra"),
        (NO_NOTES, HEARD, "0 found, 0 missed, 3 extra"),
        (
            NOTES,
            np.concatenate([NOTES, NOTES + np.array([0.01, 0, 0, 0])]),
            "3 found, 0 missed, 3 extra",
        ),  # each is found once
    ],
)
def test_the_notes_panel_counts_what_was_found(reference: Notes, estimate: Notes, counts: str) -> None:
    picture = Picture("p", np.zeros((4, 20), np.float32), (100.0, 200.0, 400.0, 800.0), 10.0, 0, 1, "dB")
    figure, description = draw(Sample("x", [picture], {}, reference, estimate))
    assert counts in description
    drawn = sum(len(collection.get_paths()) for collection in figure.axes[-1].collections)
    assert drawn == len(reference) + len(estimate)


def test_a_model_that_gives_no_numbers_is_still_drawn(tmp_path: Path) -> None:
    values = np.full((4, 20), np.nan, np.float32)
    figure, _ = draw(Sample("x", [Picture("p", values, (100.0, 200.0, 400.0, 800.0), 10.0, 0, 1, "dB")], {}))
    figure.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000

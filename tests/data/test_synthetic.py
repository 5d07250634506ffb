"""Synthetic polyphony against its definition in float64, and its labels against theirs."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from wavespace.config import compose
from wavespace.config.construction import make
from wavespace.data.base import collate, rng_for
from wavespace.data.labels import piano_roll
from wavespace.data.synthesis.augment import LOUDEST
from wavespace.data.synthesis.synthetic import Synthetic, Tone, render, room
from wavespace.spec import PIANO_PITCHES

RATE = 44_100


def ready(**options: Any) -> Synthetic:
    data = Synthetic(**({"workers": 0, "seconds": 1.0, "val_items": 3, "test_items": 2} | options))
    data.setup()
    return data


def tones(seed: int, **options: Any) -> list[Tone]:
    return ready(**options).synthesizer.draw(np.random.default_rng(seed))


def by_definition(tone: Tone, rate: int) -> NDArray[np.float64]:
    """A tone in float64, a sine a partial and sample."""
    time = np.arange(tone.length)
    envelope = np.interp(time, tone.knots, tone.envelope)
    waves = tone.amplitudes * np.sin(2 * np.pi * time[:, None] / rate * tone.frequencies + tone.phases)  # (N, K)
    signal = envelope * waves.sum(axis=1)
    bent = envelope * waves[:, tone.frequencies < rate / 6].sum(axis=1)
    if tone.drive and bent.any():
        signal -= tone.drive * bent**3 / (3 * np.abs(bent).max() ** 2)
    return signal


@pytest.mark.parametrize("odds", [0.0, 1.0])
@pytest.mark.parametrize(("rate", "seconds"), [(44_100, 2.0), (16_000, 0.3)])
def test_rendering_is_within_1e_5_of_float64(rate: int, seconds: float, odds: float) -> None:
    for seed in range(2):
        drawn = tones(seed, sample_rate=rate, seconds=seconds, odds=odds, level=(0.0, 0.0))
        for tone, signal in zip(drawn, render(drawn, rate)):
            assert signal.dtype == np.float32
            assert signal.shape == (tone.length,)
            np.testing.assert_allclose(signal, by_definition(tone, rate), atol=1e-6)


def test_a_window_is_the_sum_of_its_tones() -> None:
    data = ready(reverb=None)
    for position in range(5):
        mix = np.zeros(data.spec.samples)
        for tone in data.synthesizer.draw(rng_for(data.seed, "train", position)):
            mix[tone.onset : tone.onset + tone.length] += by_definition(tone, RATE)
        mix *= LOUDEST / max(LOUDEST, np.abs(mix).max())
        np.testing.assert_allclose(data.train_set[position].audio / 32767, mix, atol=1.7e-5)


def test_loud_windows_are_turned_down_with_their_velocities() -> None:
    loud = ready(voices=(40, 40), level=(0.0, 0.0), reverb=None)
    item = loud.train_set[0]
    assert np.abs(item.audio).max() == round(32767 * LOUDEST)
    mix = np.zeros(loud.spec.samples)
    for tone in loud.synthesizer.draw(rng_for(loud.seed, "train", 0)):
        mix[tone.onset : tone.onset + tone.length] += by_definition(tone, RATE)
    gain = LOUDEST / np.abs(mix).max()
    assert gain < 0.9
    np.testing.assert_allclose(item.notes[:, 3], 127 * np.sqrt(gain), rtol=1e-5)


def test_an_item_is_a_function_of_seed_split_and_position() -> None:
    one, again, other = ready(), ready(), ready(seed=1)
    late = again.train_set[7]
    for position in (3, 0, 7):
        item, twin = one.train_set[position], again.train_set[position]
        assert item.name == twin.name == f"train-{position}"
        assert item.audio.dtype == np.int16
        assert item.audio.shape == (one.spec.samples,)
        np.testing.assert_array_equal(item.audio, twin.audio)
        np.testing.assert_array_equal(item.notes, twin.notes)
        assert not np.array_equal(item.audio, other.train_set[position].audio)
    np.testing.assert_array_equal(late.audio, one.train_set[7].audio)


def test_evaluation_windows_are_fixed_and_apart_from_training() -> None:
    data = ready()
    held = [*data.val_set, *data.test_set]
    assert [item.name for item in held] == ["val-0", "val-1", "val-2", "test-0", "test-1"]
    assert len({item.audio.tobytes() for item in [*held, *(data.train_set[i] for i in range(3))]}) == 8
    for item, again in zip(held, [*ready().val_set, *ready().test_set]):
        np.testing.assert_array_equal(item.audio, again.audio)
    assert next(iter(data.val_dataloader())).names == ["val-0", "val-1", "val-2"]


def test_workers_change_nothing() -> None:
    batches = []
    for workers in (0, 2):
        loader = ready(workers=workers, batch_size=2, seconds=0.3).train_dataloader()
        batches.append(list(itertools.islice(loader, 3)))
    for alone, apart in zip(*batches):
        assert alone.names == apart.names
        assert torch.equal(alone.audio, apart.audio)
        assert torch.equal(alone.notes, apart.notes)


def test_draws_are_in_their_ranges() -> None:
    data = ready(odds=1.0, voices=(2, 4), duration=(0.2, 5.0))
    rng = np.random.default_rng(0)
    windows = [data.synthesizer.draw(rng) for _ in range(300)]
    assert {len(window) for window in windows} == {2, 3, 4}
    drawn = [tone for window in windows for tone in window]
    lowest = np.array([tone.frequencies[0] for tone in drawn])
    assert ((lowest >= 50) & (lowest <= 5000)).all()
    # Log-uniform: as many below the geometric mean as above.
    assert abs((lowest < np.sqrt(50 * 5000)).mean() - 0.5) < 0.06
    assert max(tone.frequencies.max() for tone in drawn) < RATE / 2
    assert max(len(tone.frequencies) for tone in drawn) == 24
    assert min(len(tone.frequencies) for tone in drawn if tone.frequencies[0] < 2000) >= 5
    length = np.array([tone.length for tone in drawn]) / RATE
    assert 0.2 <= length.min() < 0.25
    assert 0.9 < length.max() <= 1.0
    for tone in drawn:
        assert tone.onset >= 0
        assert tone.onset + tone.length <= data.spec.samples
        assert len(tone.knots) == len(tone.envelope) == 7
        assert (np.diff(tone.knots) > 0).all()
        assert (tone.knots[0], tone.knots[-1]) == (0, tone.length)
        assert (tone.envelope[0], tone.envelope[-1], tone.envelope.max()) == (0, 0, 1)
        assert np.sqrt(np.square(tone.amplitudes).sum() / 2) == pytest.approx(0.1 * 10 ** (tone.level / 20))
        assert 0.2 <= tone.drive <= 1


def test_effects_come_with_their_odds() -> None:
    data = ready(odds=0.25, voices=(10, 10))
    drive = [tone.drive > 0 for seed in range(40) for tone in data.synthesizer.draw(np.random.default_rng(seed))]
    assert np.mean(drive) == pytest.approx(0.25, abs=0.07)
    assert all(tone.drive == 0 for tone in tones(0, odds=1.0, drive=None))


def test_partials_are_those_of_a_stiff_string_whose_lowest_is_at_the_pitch() -> None:
    for tone in tones(3, odds=1.0, inharmonicity=(1e-3, 1e-3), detune=None, voices=(10, 10)):
        n = np.arange(1, len(tone.frequencies) + 1)
        string = n * np.sqrt(1 + 1e-3 * n**2)
        np.testing.assert_allclose(tone.frequencies / tone.frequencies[0], string / string[0])
    cents = []
    for seed in range(20):
        for tone in tones(seed, odds=1.0, inharmonicity=None, detune=(5.0, 5.0)):
            n = np.arange(1, len(tone.frequencies) + 1)
            cents.extend(1200 * np.log2(tone.frequencies / tone.frequencies[0] / n)[1:])
    assert np.std(cents) == pytest.approx(5.0, rel=0.1)


def test_the_filter_is_a_butterworth_of_fourth_order() -> None:
    from scipy.signal import butter, freqs

    options: dict[str, Any] = {
        "inharmonicity": None,
        "detune": None,
        "drive": None,
        "odds": 1.0,
        "pitch": (500.0, 500.0),
    }
    with_filter = tones(5, lowpass=(2000.0, 2000.0), **options)
    # A cutoff far above everything makes the same draws and no difference.
    without = tones(5, lowpass=(1e9, 1e9), **options)
    _, response = freqs(*butter(4, 2 * np.pi * 2000, analog=True), worN=2 * np.pi * with_filter[0].frequencies)
    ratio = with_filter[0].amplitudes / without[0].amplitudes
    np.testing.assert_allclose(ratio / ratio[0], np.abs(response) / np.abs(response[0]), rtol=1e-6)


@pytest.mark.parametrize("pitch", [150.0, 900.0, 4300.0, 6000.0])
def test_drive_bends_the_wave_and_folds_nothing_back(pitch: float) -> None:
    tone = tones(0, odds=1.0, voices=(1, 1), drive=(1.0, 1.0), inharmonicity=None, detune=None, lowpass=None)[0]
    n = np.arange(1, 1 + int(RATE / 2 / pitch))
    tone = tone._replace(
        length=RATE,
        knots=np.array([0, 1, 2, 3, 4, RATE - 1, RATE]),
        envelope=np.array([0.0, 1, 1, 1, 1, 1, 0]),
        frequencies=pitch * n,
        amplitudes=0.1 * n**-2.0,
        phases=np.zeros(len(n)),
    )
    driven, clean = render([tone, tone._replace(drive=0.0)], RATE)
    spectrum = np.abs(np.fft.rfft(driven * np.blackman(RATE)))
    bins = np.arange(len(spectrum))  # 1 Hz apart
    between = np.abs((bins + pitch / 2) % pitch - pitch / 2) > 20
    assert spectrum[between].max() < 1e-5 * spectrum.max()
    if pitch < RATE / 6:
        assert np.abs(driven - clean).max() > 0.05 * np.abs(clean).max()
    else:  # its third harmonic would be beyond the Nyquist frequency
        np.testing.assert_array_equal(driven, clean)


def test_the_room_is_schroeders() -> None:
    from scipy.signal import lfilter

    audio = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    rng = np.random.default_rng(1)
    wet = np.zeros(RATE)
    for delay in rng.uniform(0.030, 0.045, 4):
        comb = np.zeros(round(delay * RATE) + 1)
        comb[0], comb[-1] = 1, -(10 ** (-3 * delay / 0.5))
        wet += lfilter([1.0], comb, audio.astype(np.float64))
    for samples in (220, 75):
        one, other = np.zeros((2, samples + 1))
        one[0], one[-1], other[0], other[-1] = -0.7, 1, 1, -0.7
        wet = lfilter(one, other, wet)
    wet *= 10 ** (rng.uniform(-24, -6) / 20) * np.sqrt(np.sum(np.square(audio, dtype=np.float64)) / np.sum(wet**2))
    ours = room(audio, np.random.default_rng(1), RATE, 0.5)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, audio + wet, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.2, 0.8])
def test_reverberation_falls_by_60_db_in_the_time_asked_for(seconds: float) -> None:
    impulse = np.zeros(2 * RATE, dtype=np.float32)
    impulse[0] = 1
    for seed in range(5):
        tail = room(impulse, np.random.default_rng(seed), RATE, seconds)[1:].astype(np.float64)
        assert -24.01 < 10 * np.log10(np.sum(tail**2)) < -5.9
        left = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] + 1e-30)  # [Schroeder 1965]
        at = [int(np.argmax(left < left[0] - fall)) / RATE for fall in (5, 35)]
        assert 2 * (at[1] - at[0]) == pytest.approx(seconds, rel=0.25)


def test_notes_say_what_is_heard() -> None:
    data = ready(voices=(1, 1), duration=(0.5, 1.0), reverb=None, pitch=(100.0, 3000.0), drive=None)
    for position in range(15):
        item = data.train_set[position]
        ((onset, offset, pitch, velocity),) = item.notes
        heard = np.flatnonzero(item.audio)
        assert heard[0] / RATE == pytest.approx(onset, abs=0.003)
        assert heard[-1] / RATE == pytest.approx(offset, abs=0.003)
        part = item.audio[round(onset * RATE) : round(offset * RATE)]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 20))
        expected = 440 * 2 ** ((pitch - 69) / 12)
        frequencies = np.arange(len(spectrum)) * RATE / (1 << 20)
        near = np.abs(frequencies / expected - 1) < 0.3
        cents = 1200 * np.log2(frequencies[near][spectrum[near].argmax()] / expected)
        assert abs(cents) < 6
        assert 127 * 10 ** (-24 / 40) <= velocity <= 127


def test_fractional_pitches_go_to_the_nearest_key() -> None:
    rows = torch.tensor([[0, 0.1, 0.5, pitch, 64] for pitch in (59.51, 60.49, 70.6, 20.49, 108.51)])
    roll = piano_roll(rows, batch=1, pitches=PIANO_PITCHES, frame_rate=50.0, frames=50)
    keys = np.flatnonzero(roll.frame[0].sum(1)) + PIANO_PITCHES[0]
    assert keys.tolist() == [60, 71]

    batch = collate([ready().train_set[i] for i in range(4)])
    roll = piano_roll(batch.notes, batch=4, pitches=PIANO_PITCHES, frame_rate=50.0, frames=50)
    for item in range(4):
        nearest = np.rint(batch.notes[batch.notes[:, 0] == item, 3].numpy())
        keys = np.flatnonzero(roll.onset[item].sum(1)) + PIANO_PITCHES[0]
        assert set(keys) == {pitch for pitch in nearest if 21 <= pitch <= 108}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pitch": (500.0, 100.0)}, "pitch"),
        ({"pitch": (50.0, 30_000.0)}, "pitch"),
        ({"voices": (0, 3)}, "voices"),
        ({"partials": (8, 4)}, "partials"),
        ({"duration": (3.0, 4.0)}, "duration"),
        ({"level": (-10.0, 3.0)}, "level"),
        ({"drive": (0.5, 1.5)}, "drive"),
        ({"odds": 1.2}, "odds"),
        ({"val_items": 0}, "val_items"),
        ({"reverb": (float("nan"), 1.0)}, "reverb"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} = "):
        ready(**options)


def test_the_shipped_configuration_has_the_defaults_of_the_class() -> None:
    node = compose(["data=synthetic"]).data
    assert make(node, "data").spec == Synthetic().spec
    shipped = OmegaConf.to_container(node, resolve=True)
    assert isinstance(shipped, dict)
    del shipped["_target_"]
    defaults = {name: parameter.default for name, parameter in inspect.signature(Synthetic).parameters.items()}
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in shipped.items()} == defaults

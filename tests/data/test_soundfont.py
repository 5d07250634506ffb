"""The sampler plays notes with the pitch, level, onset and release of their labels, and is a pure function."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray

from wavespace.data.base import Notes
from wavespace.data.synthesis import soundfont
from wavespace.data.synthesis.soundfont import LOUDNESS, Sampler, Voice, bundled_soundfont
from wavespace.errors import BadInput, UserError
from wavespace.files import cache_folder
from wavespace.units import midi_to_hz

RATE = 22_050

pytest.importorskip("tinysoundfont", reason="needs tinysoundfont: pip install --no-deps tinysoundfont")


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(None, RATE)


def note(onset: float, offset: float, pitch: float, velocity: float) -> Notes:
    return np.array([[onset, offset, pitch, velocity]], dtype=float)


def level(audio: NDArray[np.float32]) -> float:
    """RMS in dB."""
    return float(10 * np.log10(np.mean(np.square(audio.astype(float))) + 1e-20))


def cents_from(audio: NDArray[np.float32], pitch: float) -> float:
    """How far the strongest of the first four partials lies from that of a MIDI pitch."""
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 1 << 19))
    hertz, best = RATE / (1 << 19), (0.0, 0.0)
    for partial in range(1, 5):
        low, high = (int(partial * midi_to_hz(pitch + shift) / hertz) for shift in (-0.6, 0.6))
        peak = low + int(spectrum[low:high].argmax())
        cents = 1200 * np.log2(peak * hertz / (partial * midi_to_hz(pitch)))
        best = max(best, (float(spectrum[peak]), float(cents)))
    return best[1]


@pytest.mark.parametrize("pitch", [36, 60, 72, 93])
def test_pitch_is_right_to_5_cents(sampler: Sampler, pitch: int) -> None:
    audio = sampler.render([Voice(note(0.0, 2.0, pitch, 90))], 2 * RATE)
    assert abs(cents_from(audio[RATE // 10 :], pitch)) < 5


def test_tuning_is_in_cents(sampler: Sampler) -> None:
    plain, sharp, flat = (
        cents_from(sampler.render([Voice(note(0.0, 2.0, 72, 90), cents=cents)], 2 * RATE)[RATE // 10 :], 72)
        for cents in (0, 30, -20)
    )
    assert sharp - plain == pytest.approx(30, abs=1)
    assert flat - plain == pytest.approx(-20, abs=1)


def test_level_rises_with_velocity(sampler: Sampler) -> None:
    levels = [level(sampler.render([Voice(note(0, 1, 60, v))], RATE // 2)) for v in (10, 30, 50, 70, 90, 110, 127)]
    assert (np.diff(levels) > 1).all()
    assert levels[-1] - levels[0] > 20


@pytest.mark.parametrize("at", [0, 1, 4411, 9999])
def test_a_note_starts_at_the_asked_sample(sampler: Sampler, at: int) -> None:
    audio = sampler.render([Voice(note(at / RATE, 1.0, 72, 100))], RATE)
    sounding = np.flatnonzero(np.abs(audio) > 1e-3 * np.abs(audio).max())
    assert not audio[:at].any()
    assert at <= sounding[0] <= at + RATE // 500, "the attack of a piano takes no 2 ms to begin"


def test_a_note_is_damped_when_it_is_released(sampler: Sampler) -> None:
    held = sampler.render([Voice(note(0.0, 3.0, 60, 90))], 2 * RATE)
    released = sampler.render([Voice(note(0.0, 1.0, 60, 90))], 2 * RATE)
    np.testing.assert_array_equal(released[:RATE], held[:RATE])
    after = slice(int(1.3 * RATE), int(1.5 * RATE))
    assert level(released[after]) < level(held[after]) - 15


def test_a_key_struck_again_at_its_release_sounds_again(sampler: Sampler) -> None:
    first, second = note(0.0, 0.5, 60, 90), note(0.5, 1.0, 60, 90)
    both = sampler.render([Voice(np.concatenate([first, second]))], RATE)
    after = slice(RATE // 2, RATE // 2 + 2000)
    alone = sampler.render([Voice(second)], RATE)
    assert abs(level(both[after]) - level(alone[after])) < 3


def test_nothing_bleeds_from_one_render_into_the_next(sampler: Sampler) -> None:
    quiet = [Voice(note(0.1, 0.2, 60, 40))]
    before = sampler.render(quiet, 8000)
    sampler.render([Voice(note(0.0, 9.0, pitch, 127), program=48, cents=50) for pitch in range(40, 50)], 8000)
    np.testing.assert_array_equal(sampler.render(quiet, 8000), before)
    assert not sampler.render([], 8000).any()
    np.testing.assert_array_equal(Sampler(None, RATE).render(quiet, 8000), before)


def test_voices_add_up(sampler: Sampler) -> None:
    voices = [
        Voice(np.array([[0.0, 0.4, 48, 80], [0.1, 0.3, 52, 80]]), 0, 5.0),
        Voice(note(0.2, 0.5, 76, 100), 40, -10.0),
        Voice(note(0.2, 0.5, 48, 100), 56),
    ]
    together = sampler.render(voices, RATE // 2)
    apart = np.sum([sampler.render([voice], RATE // 2) for voice in voices], axis=0)
    np.testing.assert_allclose(together, apart, atol=1e-3)  # envelopes move in steps, cut by other voices' events
    assert together.dtype == np.float32
    assert together.shape == (RATE // 2,)


def test_a_note_from_before_the_start_sounds_and_one_after_the_end_does_not(sampler: Sampler) -> None:
    assert sampler.render([Voice(note(-1.0, 0.5, 60, 90))], 4000)[:400].any()
    assert not sampler.render([Voice(note(-1.0, -0.5, 60, 90))], 4000).any()
    assert not sampler.render([Voice(note(1.0, 1.5, 60, 90))], 4000).any()


def test_all_programs_are_about_as_loud(sampler: Sampler) -> None:
    for program in (0, 4, 6, 19, 24, 32, 40, 56, 71, 73):
        audio = sampler.render([Voice(note(0.0, 1.0, 60, 90), program)], RATE // 2)
        assert level(audio) == pytest.approx(20 * np.log10(LOUDNESS), abs=0.01)


def test_keys_without_a_sound_are_known(sampler: Sampler) -> None:
    assert sampler.keys(0) >= set(range(21, 109))
    baritone = sampler.keys(67)  # has samples up to G5 in the bundled soundfont
    assert {40, 60, 79} <= baritone
    assert not baritone & set(range(80, 109))
    assert not sampler.render([Voice(note(0, 1, 85, 100), 67)], RATE).any()


def test_the_sample_rate_is_the_callers() -> None:
    slow, fast = (Sampler(None, rate).render([Voice(note(0, 1, 69, 90))], rate) for rate in (16_000, 44_100))
    for audio, rate in ((slow, 16_000), (fast, 44_100)):
        spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
        assert abs(np.argmax(spectrum[:600]) * rate / len(audio) - 440) < 3


def test_a_program_that_is_not_there_and_too_many_voices_are_told(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="no program 200; it has 0-127"):
        sampler.render([Voice(note(0, 1, 60, 90), program=200)], 100)
    with pytest.raises(ValueError, match="17 voices; at most 16"):
        sampler.render([Voice(note(0, 1, 60, 90))] * 17, 100)


def test_a_file_that_is_no_soundfont_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no soundfont at .*missing\.sf2"):
        Sampler(tmp_path / "missing.sf2", RATE)
    whole = bundled_soundfont().read_bytes()
    for name, data in {"empty": b"", "text": b"RIFF and nothing else", "half": whole[: len(whole) // 2]}.items():
        (tmp_path / f"{name}.sf2").write_bytes(data)
        with pytest.raises(BadInput, match=rf"{name}\.sf2 is not a soundfont"):
            Sampler(tmp_path / f"{name}.sf2", RATE)


# --- Where tinysoundfont is not installed --------------------------------------------------------------------

RELEASE = "tinysoundfont==0.3.7"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheels that installers find: one of tinysoundfont, whose hash is pinned."""
    found = find_spec("tinysoundfont._tinysoundfont")
    assert found is not None
    assert found.origin is not None
    own = Path(found.origin)
    info = "tinysoundfont-0.3.7.dist-info"
    files = {
        f"tinysoundfont/{own.name}": own.read_bytes(),
        "tinysoundfont/__init__.py": b"import pyaudio",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tinysoundfont\nVersion: 0.3.7\nRequires-Dist: pyaudio\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    folder = tmp_path / "index"
    folder.mkdir()
    with ZipFile(wheel := folder / "tinysoundfont-0.3.7-py3-none-any.whl", "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    pinned = tmp_path / "pinned.txt"
    pinned.write_text(f"{RELEASE} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    monkeypatch.setattr(soundfont, "PINNED", pinned)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "USER": "1", "REQUIRE_VIRTUALENV": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    for name, value in {"OFFLINE": "1", "NO_CONFIG": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"UV_{name}", value)
    return folder


def test_what_is_not_installed_is_fetched_once_to_the_users_cache(
    sampler: Sampler, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAVESPACE_CACHE", str(tmp_path / "cache"))
    code = f"""
import hashlib, sys
from pathlib import Path
sys.modules["tinysoundfont"] = None  # as if it were not there
from wavespace.data.synthesis import soundfont
soundfont.PINNED = Path({str(soundfont.PINNED)!r})
import numpy as np
voice = soundfont.Voice(np.array([[0.1, 0.4, 60.0, 90.0]]))
print(hashlib.sha256(soundfont.Sampler(None, {RATE}).render([voice], 8000).tobytes()).hexdigest())
"""
    expected = hashlib.sha256(sampler.render([Voice(note(0.1, 0.4, 60, 90))], 8000).tobytes()).hexdigest()
    for told in (True, False):
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert ran.stdout.strip() == expected, ran.stderr
        assert (f"wavespace: fetching {RELEASE}" in ran.stderr) == told
        assert ran.stderr.count("\n") == told
        (index / "tinysoundfont-0.3.7-py3-none-any.whl").unlink(missing_ok=True)
    kept = [path.name.partition(".")[0] for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(kept) == ["", "_tinysoundfont"]  # the lock and the module, and nothing half done


def test_without_pip_uv_fetches(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.is_file():
        pytest.skip("needs uv")
    monkeypatch.setattr(soundfont, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: str(uv))
    (tmp_path / "kept" / ".new" / "left by a kill").mkdir(parents=True)
    assert soundfont._fetch(RELEASE, tmp_path / "kept") is None
    assert sorted(path.name.partition(".")[0] for path in (tmp_path / "kept").iterdir()) == ["", "_tinysoundfont"]


def test_of_two_processes_one_fetches(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, and takes what it fetched."""
    (tmp_path / "kept").mkdir()
    found = find_spec("tinysoundfont._tinysoundfont")
    assert found is not None
    asked: list[Path] = []

    def lock(file: IO[str], **_: object) -> bool:
        asked.append(shutil.copy(str(found.origin), tmp_path / "kept") if asked else tmp_path)
        return len(asked) == 2

    monkeypatch.setattr(soundfont, "lock", lock)
    monkeypatch.setattr(soundfont, "_install", lambda *_: "it was fetched twice")
    soundfont._fetch.cache_clear()
    assert soundfont._fetch(RELEASE, tmp_path / "kept") is None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("changed", "DO NOT MATCH THE HASHES"),
        ("absent", "Could not find a version"),
        ("no cache", "Not a directory"),
        ("no installer", "no pip, and there is no uv.*-m ensurepip && "),
    ],
)
def test_what_can_not_be_fetched_is_one_sentence_with_the_command_that_works(
    fault: str, said: str, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAVESPACE_CACHE", str(tmp_path / "cache"))
    for module in ("tinysoundfont", "tinysoundfont._tinysoundfont"):
        monkeypatch.setitem(sys.modules, module, None)
    soundfont._tinysoundfont.cache_clear()
    wheel = next(index.iterdir())
    if fault == "changed":
        with ZipFile(wheel, "a") as file:
            file.writestr("tinysoundfont/more.py", b"")
    elif fault == "absent":
        wheel.unlink()
    elif fault == "no cache":
        (tmp_path / "cache").write_bytes(b"")
    else:
        monkeypatch.setattr(soundfont, "find_spec", lambda name: None if name == "pip" else find_spec(name))
        monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        UserError, match=rf"can't be fetched \(.*{said}.*-m pip install --no-deps tinysoundfont$"
    ) as told:
        Sampler(None, RATE)
    assert "\n" not in str(told.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAVESPACE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    with pytest.raises(UserError, match="no home folder; set WAVESPACE_CACHE"):
        cache_folder()


def test_a_damaged_module_in_the_cache_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVESPACE_CACHE", str(tmp_path))
    for module in ("tinysoundfont", "tinysoundfont._tinysoundfont"):
        monkeypatch.setitem(sys.modules, module, None)
    soundfont._tinysoundfont.cache_clear()
    (tmp_path / RELEASE).mkdir()
    kept = tmp_path / RELEASE / f"_tinysoundfont{EXTENSION_SUFFIXES[0]}"
    kept.write_bytes(b"")
    with pytest.raises(UserError, match=rf"^{re.escape(str(kept))}: can't be imported .* delete it, and it is fetched"):
        Sampler(None, RATE)


def test_what_is_fetched_is_what_the_lock_pins() -> None:
    lock = Path(__file__).parents[2] / "requirements.lock"
    if not lock.is_file():
        pytest.skip("needs requirements.lock, which only a checkout has")
    assert f"\n{soundfont.PINNED.read_text()}" in lock.read_text()
    assert soundfont.PINNED.read_text().startswith(f"{RELEASE} ")

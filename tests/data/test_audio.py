"""Whatever people call an audio file is read as mono float32, or refused with a sentence that names it."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wavespace.data.files.audio import file_remarks, read_audio, read_blocks, seconds_of
from wavespace.errors import BadInput

RATE = 22_050


def tone(rate: int, seconds: float = 1.5) -> NDArray[np.float64]:
    """A 440 Hz sine of amplitude 0.5 that fades in and out, so that resampling has no edge to ring at."""
    time = np.arange(round(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * 440 * time) * np.sin(np.pi * time / seconds) ** 2


def refusal(path: Path) -> str:
    """The one sentence with which both readers refuse a file."""
    with pytest.raises(BadInput) as whole:
        read_audio(path, RATE)
    with pytest.raises(BadInput) as blocks:
        list(read_blocks(path, RATE))
    assert str(whole.value) == str(blocks.value)
    assert str(whole.value).startswith(f"{path}: ")
    assert "\n" not in str(whole.value)
    return str(whole.value)


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [
        ("wav", "PCM_16", 2 / 32768), ("wav", "FLOAT", 1e-4), ("wav", "PCM_24", 1e-4), ("wav", "PCM_U8", 2 / 128),
        ("flac", "PCM_16", 2 / 32768), ("ogg", "VORBIS", 0.02), ("mp3", "MPEG_LAYER_III", 0.08),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_every_format_and_rate_gives_the_same_tone(
    suffix: str, subtype: str, error: float, rate: int, tmp_path: Path
) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate), rate, subtype=subtype)
    audio = read_audio(path, RATE)
    assert audio.dtype == np.float32
    assert audio.ndim == 1
    expected = tone(RATE)
    assert abs(len(audio) - len(expected)) <= 1
    n = min(len(audio), len(expected))
    np.testing.assert_allclose(audio[:n], expected[:n], atol=error + 1e-3)
    assert seconds_of(path) == pytest.approx(1.5, abs=1e-3)


def test_192_khz_is_resampled_without_aliasing(tmp_path: Path) -> None:
    time = np.arange(192_000) / 192_000
    above = 0.5 * np.sin(2 * np.pi * 30_000 * time) * np.sin(np.pi * time) ** 2  # folds to 7.95 kHz if it is let in
    soundfile.write(tmp_path / "high.wav", tone(192_000, 1.0) + above, 192_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "high.wav", RATE), tone(RATE, 1.0), atol=1e-3)


def test_channels_in_which_nothing_is_recorded_do_not_count(tmp_path: Path) -> None:
    channels = np.zeros((RATE, 8))
    channels[:, 5] = tone(RATE, 1.0)
    soundfile.write(tmp_path / "surround.wav", channels, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "surround.wav", RATE), tone(RATE, 1.0), atol=1e-6)
    assert "nothing is recorded in 7 of its 8 channels" in file_remarks(tmp_path / "surround.wav")


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_channels_that_cancel_for_a_while_do_not_leave_silence(subtype: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=40 * RATE) * 0.1
    channels = np.column_stack([noise, noise])
    channels[20 * RATE : 30 * RATE, 1] *= -1
    soundfile.write(tmp_path / "a.wav", channels, RATE, subtype=subtype)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE), noise, atol=2e-4)
    assert "cancel each other" in file_remarks(tmp_path / "a.wav")[0]


def test_many_channels_that_sound_one_after_another_do_not_cancel(tmp_path: Path) -> None:
    channels = np.zeros((16 * RATE, 16))
    for channel in range(16):
        channels[channel * RATE : (channel + 1) * RATE, channel] = tone(RATE, 1.0)
    soundfile.write(tmp_path / "a.wav", channels, RATE)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE), channels.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("stated", [1, 1000, 3 * RATE])
def test_a_flac_file_that_states_too_few_samples_is_read_whole(stated: int, tmp_path: Path) -> None:
    audio = np.random.default_rng(0).normal(size=(4 * RATE, 2)) * 0.1
    soundfile.write(tmp_path / "a.flac", audio, RATE)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[22:26] = stated.to_bytes(4)
    (tmp_path / "b.flac").write_bytes(content)
    whole = read_audio(tmp_path / "a.flac", RATE)
    np.testing.assert_array_equal(read_audio(tmp_path / "b.flac", RATE), whole)
    np.testing.assert_array_equal(np.concatenate(list(read_blocks(tmp_path / "b.flac", RATE, 0.7))), whole)
    assert seconds_of(tmp_path / "b.flac") == 4


def test_an_au_file_whose_size_was_never_filled_in_is_read_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.au", tone(RATE, 1.0), RATE)
    content = (tmp_path / "a.au").read_bytes()
    whole = read_audio(tmp_path / "a.au", RATE)
    (tmp_path / "b.au").write_bytes(content[:8] + bytes(4) + content[12:])
    np.testing.assert_array_equal(read_audio(tmp_path / "b.au", RATE), whole)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_channels_are_averaged_whole_in_windows_and_in_blocks(kind: str, subtype: str, tmp_path: Path) -> None:
    if (kind, subtype) == ("flac", "FLOAT"):
        pytest.skip("there is no such format")
    path, noise = tmp_path / f"a.{kind}", np.random.default_rng(0).normal(size=(20 * RATE, 3)) * 0.1
    noise[: 19 * RATE, 1] = 0  # speaks late
    both_ways = {"usual": noise, "cancel": noise[:, :1] * [0.9, -0.9], "one": noise[:, :1] * [0, 1]}
    expected = {"usual": noise.mean(1), "cancel": 0.9 * noise[:, 0], "one": noise[:, 0]}
    for name, channels in both_ways.items():
        soundfile.write(path, channels, RATE, subtype=subtype)
        whole = read_audio(path, RATE)
        np.testing.assert_allclose(whole, expected[name], atol=2e-4, err_msg=name)
        np.testing.assert_array_equal(np.concatenate(list(read_blocks(path, RATE, 0.7))), whole)
        np.testing.assert_array_equal(read_audio(path, RATE, seconds=2), whole[: 2 * RATE])
        assert bool(file_remarks(path)) == (name != "usual")


@pytest.mark.parametrize("full", [2**15, 2**23, 2**31])
@pytest.mark.parametrize("channels", [1, 2])
def test_integers_in_a_float_file_are_scaled_and_told(full: int, channels: int, tmp_path: Path) -> None:
    path, sound = tmp_path / "a.wav", np.tile(tone(RATE, 3)[:, None], channels)
    soundfile.write(path, sound * full, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path, RATE), tone(RATE, 3), atol=1e-6)
    np.testing.assert_array_equal(read_audio(path, RATE, seconds=0.1), read_audio(path, RATE)[: RATE // 10])
    assert "taken for integers" in file_remarks(path)[0]


def test_a_float_file_of_no_known_scale_is_refused_and_a_loud_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(RATE) * 60, RATE, subtype="FLOAT")
    assert "holds float samples up to 29.9998, where -1..1 is full scale" in refusal(path)
    soundfile.write(path, tone(RATE) * 4, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path, RATE), 4 * tone(RATE), atol=1e-6)


def test_the_first_seconds_are_that_part_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(RATE), RATE, subtype="FLOAT")
    whole = read_audio(path, RATE)
    for seconds in (0.0, 0.5, 1.5, 9.0):
        np.testing.assert_array_equal(read_audio(path, RATE, seconds=seconds), whole[: round(seconds * RATE)])


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
@pytest.mark.parametrize("seconds", [0.1, 0.5, 10.0])  # 0.5 divides the file: its last block is empty
def test_blocks_together_are_the_whole(rate: int, seconds: float, tmp_path: Path) -> None:
    path = tmp_path / "noise.wav"
    noise = np.random.default_rng(0).normal(size=round(1.5 * rate)) * 0.1
    soundfile.write(path, noise, rate, subtype="FLOAT")
    whole = read_audio(path, RATE)
    blocks = np.concatenate(list(read_blocks(path, RATE, seconds)))
    assert blocks.dtype == np.float32
    assert abs(len(blocks) - len(whole)) <= 2
    n = min(len(blocks), len(whole))
    np.testing.assert_allclose(blocks[:n], whole[:n], atol=1e-5)


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "flac"])
@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])  # MPEG-2 has other frames than MPEG-1
def test_a_compressed_file_read_in_pieces_is_the_whole(suffix: str, rate: int, tmp_path: Path) -> None:
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(size=5 * rate) * 0.1, rate)
    whole = read_audio(path, rate)
    np.testing.assert_allclose(np.concatenate(list(read_blocks(path, rate, 0.1))), whole, rtol=0, atol=1e-6)


def test_blocks_take_the_same_memory_whatever_the_length(tmp_path: Path) -> None:
    noise = (np.random.default_rng(0).normal(size=(44_100 * 10, 2)) * 3000).astype(np.int16)
    peaks = []
    for tens in (2, 12):
        path = tmp_path / f"{tens}.wav"
        with soundfile.SoundFile(path, "w", 44_100, 2) as file:
            for _ in range(tens):
                file.write(noise)
        tracemalloc.start()
        total = sum(len(block) for block in read_blocks(path, RATE))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert abs(total - tens * 10 * RATE) <= 2
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 20e6  # of 106 MB as float32


def test_a_wav_whose_header_promises_more_gives_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    soundfile.write(path, tone(RATE), RATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: 44 + RATE])  # half a second of 16-bit samples
    assert struct.unpack("<I", whole[40:44])[0] == 3 * RATE
    audio = read_audio(path, RATE)
    assert len(audio) == RATE // 2
    np.testing.assert_allclose(audio, tone(RATE)[: RATE // 2], atol=2 / 32768)
    np.testing.assert_array_equal(np.concatenate(list(read_blocks(path, RATE, 0.1))), audio)


def test_an_mp3_that_is_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp3"
    soundfile.write(path, np.random.default_rng(0).normal(size=2 * RATE) * 0.1, RATE)
    whole, data = read_audio(path, RATE), path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    audio = read_audio(path, RATE)
    assert len(audio) == pytest.approx(RATE, abs=2500)  # four frames of the format
    np.testing.assert_array_equal(audio[:-1152], whole[: len(audio) - 1152])
    np.testing.assert_array_equal(np.concatenate(list(read_blocks(path, RATE, 0.1))), audio)


def test_any_other_file_that_gives_fewer_samples_than_promised_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "short.wav"
    soundfile.write(path, tone(RATE), RATE)
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda file, frames, **more: read(file, frames, **more)[:1000])
    assert f"1000 of {len(tone(RATE))} samples are there" in refusal(path)


@pytest.mark.parametrize(("suffix", "place"), [("flac", "end"), ("flac", "middle"), ("mp3", "middle")])
def test_damage_within_a_compressed_file_is_a_sentence(suffix: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / f"noise.{suffix}"
    noise = np.random.default_rng(0).normal(size=3 * 44_100) * 0.1
    soundfile.write(path, noise, 44_100)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if place == "middle":
        data[middle : middle + 2000] = np.random.default_rng(1).bytes(2000)
    else:
        del data[middle:]
    path.write_bytes(data)
    assert "damaged or cut off" in refusal(path)


def encoded(kind: str, seconds: float = 4.0, rate: int = RATE, **how: Any) -> bytes:
    """A file of noise that is louder now and then, so that a variable bit rate varies."""
    noise = np.random.default_rng(0).normal(size=(round(seconds * rate), how.pop("channels", 1)))
    noise *= np.where(np.arange(len(noise)) < 0.7 * rate, 1e-3, 0.2)[:, None]
    file = io.BytesIO()
    soundfile.write(file, noise, rate, format=kind, **how)
    return file.getvalue()


def mp3(seconds: float = 4.0, *, xing: bool = True, **how: Any) -> bytes:
    """A variable bit rate, quiet at first."""
    data = encoded("MP3", seconds, bitrate_mode="VARIABLE", compression_level=0.3, **how)
    if xing:
        return data
    return data[data.index(data[:2], max(data.find(b"Xing"), data.find(b"Info"))) :]  # from the frame after it


def ogg_flac() -> bytes:
    """FLAC in Ogg, a packet a page, as the mapping has it; libsndfile writes none."""
    flac = encoded("FLAC")
    head = flac[: 4 + 4 + 34]
    begin = 4
    while True:
        last, begin = flac[begin] & 0x80, begin + 4 + int.from_bytes(flac[begin + 1 : begin + 4])
        if last:
            break
    starts = [match.start() for match in re.finditer(re.escape(flac[begin : begin + 2]), flac)]
    starts = [start for start in starts if start >= begin]
    packets = [b"\x7fFLAC\1\0\0\1" + head, b"\x84\0\0\x08" + bytes(8)]
    packets += [flac[a:b] for a, b in zip(starts, [*starts[1:], len(flac)])]
    pages = b""
    for number, packet in enumerate(packets):
        flags = 2 if number == 0 else 4 if number == len(packets) - 1 else 0
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        pages += (
            b"OggS\0" + bytes([flags]) + struct.pack("<qIII", 0, 7, number, 0) + bytes([len(lacing)]) + lacing + packet
        )
    return pages


def piped_flac(data: bytes) -> bytes:
    unstated = bytearray(data)
    unstated[21] &= 0xF0  # the 36 bits that count samples; encoders leave them 0 when they write to a pipe
    unstated[22:26] = bytes(4)
    return bytes(unstated)


def sized(data: bytes, size: int) -> bytes:
    """A WAV whose data chunk states another size."""
    place = data.index(b"data") + 4
    return data[:place] + struct.pack("<I", size) + data[place + 4 :]


ID3 = b"ID3\4\0\0\0\0\x20\0" + b"\xff\xfb" * 2048
FOUR = 4 * RATE
LYING = {
    "vbr-without-xing.mp3": (lambda: mp3(xing=False), FOUR + 1729),
    "in-its-midst.mp3": (lambda: mp3(8)[-len(mp3(4)) :], None),
    "mpeg-1.mp3": (lambda: mp3(rate=44_100, xing=False), None),
    "stereo.mp3": (lambda: mp3(channels=2, xing=False), FOUR + 1729),
    "two.mp3": (lambda: mp3(4) + mp3(1), FOUR + RATE),
    "two-without-xing.mp3": (lambda: mp3(4, xing=False) + mp3(1, xing=False), FOUR + RATE + 2 * 1729),
    "second-without-xing.mp3": (lambda: mp3(4) + mp3(1, xing=False), FOUR + RATE + 1729),
    "mono-and-stereo.mp3": (lambda: mp3(4) + mp3(1, channels=2), FOUR + RATE),
    "id3-between.mp3": (lambda: ID3 + mp3(4) + ID3 + mp3(1) + b"TAG" + bytes(125), FOUR + RATE),
    "two.flac": (lambda: encoded("FLAC") + encoded("FLAC", 1), FOUR + RATE),
    "piped.flac": (lambda: piped_flac(encoded("FLAC")), FOUR),
    "two-piped.flac": (lambda: piped_flac(encoded("FLAC")) + piped_flac(encoded("FLAC", 1)), FOUR + RATE),
    "two.ogg": (lambda: encoded("OGG") + encoded("OGG", 1), FOUR + RATE),
    "flac.ogg": (ogg_flac, FOUR),
    "size-0.wav": (lambda: sized(encoded("WAV"), 0), FOUR),
    "size-of-the-first-second.wav": (lambda: sized(encoded("WAV"), 2 * RATE), FOUR),
    "size-unknown.wav": (lambda: sized(encoded("WAV"), 2**32 - 1), FOUR),
    "two.wav": (lambda: encoded("WAV") + encoded("WAV", 1), FOUR + RATE),
    "rf64.wav": (lambda: re.sub(b"(?s)(ds64.{12}).{8}", b"\\1" + bytes(8), encoded("RF64"), count=1), FOUR),
    "piped.caf": (lambda: re.sub(b"(?s)data.{8}", b"data" + b"\xff" * 8, encoded("CAF"), count=1), FOUR),
    "gsm.wav": (lambda: encoded("WAV", 4, 8000, subtype="GSM610"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", LYING)
def test_a_file_is_read_to_its_end_whatever_its_header_states(name: str, tmp_path: Path) -> None:
    make, samples = LYING[name]
    path = tmp_path / name
    path.write_bytes(make())
    rate = 44_100 if "mpeg-1" in name else 8000 if "gsm" in name else RATE
    audio = read_audio(path, rate)
    assert len(audio) == pytest.approx(samples or 4 * rate, abs=rate // 4 if samples is None else 576)
    assert seconds_of(path) == pytest.approx(len(audio) / rate, abs=0.01)
    assert np.abs(audio[-rate // 2 :]).max() > 0.05
    np.testing.assert_allclose(np.concatenate(list(read_blocks(path, rate, 0.3))), audio, atol=1e-6)
    # ffmpeg stops early in some, and wants checksums in Ogg
    less = name.startswith(("rf64", "two.wav", "size-of", "two.flac", "two-piped.flac", "flac.ogg"))
    if (ffmpeg := shutil.which("ffmpeg")) and not less:
        said = subprocess.run(
            [ffmpeg, "-v", "quiet", "-i", path, "-f", "f32le", "-ac", "1", "-"], stdout=subprocess.PIPE
        )
        theirs = np.frombuffer(said.stdout, np.float32)
        assert len(audio) == pytest.approx(len(theirs), abs=3 * 1152)
        begin = theirs[rate : 2 * rate] / np.abs(theirs).max()
        np.testing.assert_allclose(audio[rate : 2 * rate] / np.abs(audio).max(), begin, atol=0.05)


def cut(kind: str, **how: Any) -> bytes:
    """The first two thirds of a file of 6 s."""
    data = encoded(kind, 6.0, **how)
    return data[: len(data) * 2 // 3]


def vbri(data: bytes, frames: int) -> bytes:
    """An MP3 whose first frame has the other header that counts frames."""
    place = max(data.find(b"Xing"), data.find(b"Info"))
    counts = b"VBRI\0\1\0\0\0\0" + bytes(4) + frames.to_bytes(4)
    return data[:place] + counts + data[place + len(counts) :]


STATES_MORE = "is cut short: its header states 6.0 s, 4.0 s are there"
UNMARKED = "is cut short: its last page is not marked as the end"
SHORT = {
    "a.wav": (lambda: cut("WAV"), STATES_MORE),
    "rf64.wav": (lambda: cut("RF64"), STATES_MORE),
    "a.w64": (lambda: cut("W64"), STATES_MORE),
    "a.aiff": (lambda: cut("AIFF"), STATES_MORE),
    "a.au": (lambda: cut("AU"), STATES_MORE),
    "a.mp3": (lambda: cut("MP3", bitrate_mode="CONSTANT"), STATES_MORE.replace("4.0", "3.9")),
    "vbri.mp3": (lambda: vbri(mp3(4), 9000), "is cut short: its header states 235.1 s, 4.1 s are there"),
    "a.ogg": (lambda: cut("OGG"), UNMARKED),
    "a.opus": (lambda: cut("OGG", rate=48_000, subtype="OPUS"), UNMARKED),
    "two.ogg": (lambda: cut("OGG") + encoded("OGG", 1), UNMARKED),
}  # fmt: skip


@pytest.mark.parametrize("name", SHORT)
def test_a_file_that_is_cut_short_is_read_with_a_remark(name: str, tmp_path: Path) -> None:
    make, remark = SHORT[name]
    (tmp_path / name).write_bytes(make())
    assert len(read_audio(tmp_path / name, RATE)) > RATE
    assert file_remarks(tmp_path / name) == [remark]


@pytest.mark.parametrize("size", [0, 2**31 - 2**12, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU"])
def test_a_size_that_was_never_filled_in_is_no_remark(kind: str, size: int, tmp_path: Path) -> None:
    path, data = tmp_path / f"a.{kind.lower()}", encoded(kind)
    place = {"WAV": data.find(b"data") + 4, "AIFF": data.find(b"SSND") + 4, "AU": 8}[kind]
    path.write_bytes(data[:place] + size.to_bytes(4, "little" if kind == "WAV" else "big") + data[place + 4 :])
    assert len(read_audio(path, RATE)) == FOUR
    assert file_remarks(path) == []


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["WAV", "RF64", "AIFF", "AU", "CAF"])
def test_a_header_that_states_too_little_is_read_past_with_a_remark(kind: str, share: float, tmp_path: Path) -> None:
    path, data = tmp_path / f"a.{kind.lower()}", encoded(kind, 20)
    place, form = {
        "WAV": (data.find(b"data") + 4, "<I"), "RF64": (28, "<Q"), "AIFF": (data.find(b"SSND") + 4, ">I"),
        "AU": (8, ">I"), "CAF": (data.find(b"data") + 4, ">Q"),
    }[kind]  # fmt: skip
    stated = struct.pack(form, round(share * 20 * RATE) * 2)
    path.write_bytes(data[:place] + stated + data[place + len(stated) :])
    np.testing.assert_allclose(len(read_audio(path, RATE)), 20 * RATE, atol=4)
    assert file_remarks(path) == [f"its header states {20 * share:.1f} s, 20.0 s are there"]


@pytest.mark.parametrize(
    "behind",
    [
        b"LIST\4\0\0\0INFO" + b"JUNK\0\0\2\0" + bytes(2**17), b"JUNK\0\0\2\0" + bytes(99), bytes(2**17),
        b"\0LIST\4\0\0\0INFO", b"TAG" + bytes(125), b"the end",
    ],
)  # fmt: skip
def test_what_is_no_sound_behind_the_samples_is_not_read(behind: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded("WAV") + behind)
    assert len(read_audio(tmp_path / "a.wav", RATE)) == FOUR
    assert file_remarks(tmp_path / "a.wav") == []


def test_a_wav_without_samples_holds_none(tmp_path: Path) -> None:
    data = sized(encoded("WAV"), 0)
    end = data.index(b"data") + 8
    (tmp_path / "a.wav").write_bytes(data[:end] + b"LIST\x04\0\0\0INFO")
    assert "holds no samples" in refusal(tmp_path / "a.wav")


def test_streams_of_two_rates_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(mp3(1) + mp3(1, rate=44_100))
    assert "changes from 22050 to 44100 Hz" in refusal(tmp_path / "a.mp3")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_that_is_no_number_is_named(value: float, channels: int, tmp_path: Path) -> None:
    audio = np.zeros((RATE, channels), np.float32)
    audio[12_345, -1] = value
    path = tmp_path / "nan.wav"
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    assert "sample 12345 is not a number" in refusal(path)
    with pytest.raises(BadInput, match="sample 12345 is"):
        read_audio(path, RATE, seconds=0.7)
    with pytest.raises(BadInput, match="sample 12345 is"):
        list(read_blocks(path, RATE, 0.1))


def test_infinities_of_both_signs_do_not_cancel(tmp_path: Path) -> None:
    path = tmp_path / "inf.wav"
    soundfile.write(path, np.array([[0.0, 0.0], [np.inf, -np.inf]], np.float32), RATE, subtype="FLOAT")
    assert "sample 1 is not a number" in refusal(path)


@pytest.mark.parametrize("suffix", ["wav", "ogg"])
def test_a_file_without_samples_is_a_sentence(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"none.{suffix}"
    soundfile.write(path, np.zeros(0), RATE)
    assert "holds no samples" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.wav", b"dear diary", "can't be read as audio .*; it is damaged, or no wav file; get the file anew"),
        ("empty.wav", b"", r"is empty \(0 bytes\)"),
        ("song.mid", b"MThd\0\0\0\6\0\0\0\1\0\x60", "wav, flac, ogg and mp3 can, and ffmpeg -i song.mid song.wav"),
        ("x.raw", b"1234", "can't be read as audio .* wav, flac, ogg and mp3 can"),
    ],
)
def test_what_is_not_audio_is_a_sentence(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search(reason, refusal(tmp_path / name))


def test_a_missing_file_and_a_folder_are_a_sentence(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "nowhere.wav")
    assert "is a folder, no recording" in refusal(tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        seconds_of(tmp_path / "nowhere.wav")


PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


def wav(
    path: Path,
    data: bytes,
    *,
    tag: int = PCM,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    align: int | None = None,
    size: int | None = None,
    more: bytes = b"",
) -> Path:
    """A WAV file, byte by byte, that may lie about its block alignment and its size."""
    align = channels * bits // 8 if align is None else align
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align, bits) + more
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def extension(kind: int, valid_bits: int) -> bytes:
    """What WAVE_FORMAT_EXTENSIBLE adds: valid bits, no loudspeakers, and the kind of samples as a GUID."""
    return struct.pack("<HHIH", 22, valid_bits, 0, kind) + bytes.fromhex("000000001000800000aa00389b71")


def integers(audio: NDArray[np.float64], size: int) -> bytes:
    """Samples as little-endian integers of `size` bytes."""
    whole = [round(float(value) * 2 ** (8 * size - 1)) for value in audio]
    return b"".join(value.to_bytes(size, "little", signed=True) for value in whole)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("kind", ["16", "24", "32", "float32", "float64"])
def test_every_wav_of_the_standard_is_read(kind: str, extensible: bool, tmp_path: Path) -> None:
    bits, tag = int(kind.removeprefix("float")), FLOAT if "float" in kind else PCM
    data = tone(RATE).astype(f"<f{bits // 8}").tobytes() if tag == FLOAT else integers(tone(RATE), bits // 8)
    more = extension(tag, bits) if extensible else b""
    path = wav(tmp_path / "a.wav", data, tag=EXTENSIBLE if extensible else tag, bits=bits, more=more)
    np.testing.assert_allclose(read_audio(path, RATE), tone(RATE), atol=0.5**16 if bits == 16 else 1e-6)


@pytest.mark.parametrize("lie", [{"size": 2**31}, {"size": 2**32 - 1}, *({"align": n} for n in (0, 1, 3, 2**16 - 1))])
def test_a_wav_that_lies_about_size_or_alignment_gives_its_samples(lie: dict[str, int], tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", integers(tone(RATE), 2), **lie)
    np.testing.assert_allclose(read_audio(path, RATE), tone(RATE), atol=0.5**16)
    np.testing.assert_array_equal(np.concatenate(list(read_blocks(path, RATE, 0.1))), read_audio(path, RATE))
    assert seconds_of(path) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"channels": 0}, "can't be read as audio"),
        ({"channels": 2**16 - 1, "align": 2}, "can't be read as audio"),
        ({"channels": 1024}, "holds no samples"),
        ({"bits": 0}, "can't be read as audio"),
        ({"bits": 64}, "can't be read as audio"),
        ({"tag": 77}, "can't be read as audio"),
        ({"tag": EXTENSIBLE, "more": extension(99, 16)}, "can't be read as audio"),
        ({"rate": 0}, "can't be read as audio"),
        ({"rate": 2**32 - 1}, "can't be read as audio"),
        ({"rate": 1}, "states 1 samples a second, not 1,000 to 1,000,000"),
        ({"rate": 2**31 - 1}, "states 2,147,483,647 samples a second, not 1,000 to 1,000,000"),
    ],
)
def test_a_wav_header_that_makes_no_sense_is_a_sentence(
    fault: dict[str, int | bytes], reason: str, tmp_path: Path
) -> None:
    path = wav(tmp_path / "a.wav", integers(tone(RATE, 0.01), 2), **fault)  # type: ignore[arg-type]
    assert reason in refusal(path)
    with pytest.raises(BadInput, match=reason):
        seconds_of(path)


def test_a_double_too_large_for_float32_is_named(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", np.array([0.0, 0.5, 1e300]).tobytes(), tag=FLOAT, bits=64)
    assert "sample 2 is not a number" in refusal(path)


def test_a_flac_that_promises_days_is_refused_without_memory_for_them(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(RATE), RATE)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4  # 2**36 - 1 samples, 137 GB
    path.write_bytes(data)
    tracemalloc.start()
    assert "damaged or cut off" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_a_flac_that_lost_a_byte_of_its_checksum_gives_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(size=2000) * 0.1, RATE)  # a single frame
    whole = read_audio(path, RATE)
    data = bytearray(path.read_bytes())
    del data[26]
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path, RATE), whole)
    np.testing.assert_array_equal(np.concatenate(list(read_blocks(path, RATE))), whole)


def test_blocks_shorter_than_a_sample_are_of_one_sample(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", integers(tone(RATE, 0.01), 2))
    blocks = list(read_blocks(path, RATE, 1e-9))
    assert {len(block) for block in blocks} == {1}
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(path, RATE))


@st.composite
def damaged(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """An audio file after one or two accidents, most of them in its first 64 bytes."""
    data = bytearray(draw(st.sampled_from(good)))
    number = st.sampled_from([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1]) | st.integers(0, 2**32 - 1)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, 63) | st.integers(0, len(data)))
        match draw(st.sampled_from(["bit", "byte", "number", "loss", "more", "cut"])):
            case "bit" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "number":
                data[at : at + 4] = draw(number).to_bytes(4, draw(st.sampled_from(["little", "big"])))
            case "loss":
                del data[at : at + draw(st.integers(1, 8))]
            case "more":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del data[max(at, 12) :]
    return bytes(data)


@pytest.mark.parametrize(
    ("suffix", "subtypes"),
    [("wav", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE", "IMA_ADPCM", "ULAW"]), ("flac", ["PCM_16", "PCM_24"])],
)
def test_any_damage_is_bad_input_or_finite_audio(suffix: str, subtypes: list[str], tmp_path: Path) -> None:
    path, outcomes = tmp_path / f"a.{suffix}", Counter[str]()
    good = []
    for k, subtype in enumerate(subtypes):
        noise = np.random.default_rng(k).normal(size=(600, 1 + k % 2)) * 0.1
        soundfile.write(path, noise, (RATE, 8_000, 48_000)[k % 3], subtype=subtype)
        good.append(path.read_bytes())

    def said(error: BadInput) -> str:
        outcomes["refused"] += 1
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
        return str(error)

    @given(damaged(good), st.sampled_from([0.003, 10.0]))
    @settings(max_examples=200, deadline=None)
    def check(data: bytes, seconds: float) -> None:
        path.write_bytes(data)
        results = []
        tracemalloc.start()
        for read in (
            lambda: read_audio(path, RATE),
            lambda: np.concatenate(list(read_blocks(path, RATE, seconds))),
            lambda: read_audio(path, RATE, seconds=0.01),
        ):
            try:
                results.append(read())
            except BadInput as error:
                results.append(said(error))
        assert tracemalloc.get_traced_memory()[1] < 200e6
        tracemalloc.stop()
        for audio in results:
            if isinstance(audio, np.ndarray):
                outcomes["read"] += 1
                assert audio.dtype == np.float32
                assert audio.ndim == 1
                assert np.isfinite(audio).all()
        whole, blocks, part = results
        assert isinstance(whole, str) == isinstance(blocks, str)
        if not isinstance(whole, str):
            assert abs(len(whole) - len(blocks)) <= 2
            assert 0 < seconds_of(path) < np.inf
            assert len(part) <= 0.01 * RATE + 12  # at the lowest rate, half a sample more or less is 11 of ours

    check()
    assert min(outcomes["read"], outcomes["refused"]) > 10

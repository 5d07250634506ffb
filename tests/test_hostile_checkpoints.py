"""A crafted, damaged or odd checkpoint gives one sentence in every command, with little memory and time."""

from __future__ import annotations

import io
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import wavespace
from parts import save, small_task
from wavespace.commands import evaluate, export, video
from wavespace.errors import UserError
from wavespace.notebook import open_run


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint."""
    return save(small_task("mel", "conv2d", "reconstruction"), tmp_path_factory.mktemp("small") / "model.ckpt")


def rewritten(file: Path, target: Path, change: Callable[[str, bytes], bytes], compression: int = 0) -> Path:
    """The archive with each record changed, and perhaps compressed."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))
    return target


def with_pickle(file: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    return rewritten(file, target, lambda name, data: change(data) if name.endswith("data.pkl") else data)


class Bytes:
    """What becomes a gigabyte when it is loaded, though torch calls it safe."""

    def __reduce__(self) -> Any:
        return bytearray, (2**30,)


def with_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], Any]:
    def make(file: Path, target: Path) -> None:
        whole = torch.load(file, weights_only=True)
        cfg = yaml.safe_load(whole["config"])
        change(cfg)
        torch.save(whole | {"config": yaml.safe_dump(cfg)}, target)

    return make


def with_values(**values: Any) -> Callable[[Path, Path], Any]:
    return lambda file, target: torch.save(torch.load(file, weights_only=True) | values, target)


def with_weight(weight: Any) -> Callable[[Path, Path], Any]:
    def make(file: Path, target: Path) -> None:
        whole = torch.load(file, weights_only=True)
        whole["state_dict"]["model.stem.weight"] = weight
        torch.save(whole, target)

    return make


def nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def legacy(file: Path, target: Path) -> None:
    torch.save(torch.load(file, weights_only=True), target, _use_new_zipfile_serialization=False)


def longer_storage(data: bytes) -> bytes:
    """The first storage claims to have sixteen million numbers."""
    changed = re.sub(rb"(cpuq.)K.", rb"\1J\0\0\0\1", data, count=1, flags=re.DOTALL)
    assert changed != data
    return changed


CRAFTED: dict[str, Callable[[Path, Path], Any]] = {
    "a compressed record": lambda file, target: rewritten(file, target, lambda name, data: data, zipfile.ZIP_DEFLATED),
    "a zip bomb": lambda file, target: rewritten(
        file, target, lambda name, data: bytes(10**8) if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED
    ),
    "a flipped bit": lambda file, target: target.write_bytes(flipped(file.read_bytes(), b"data/0")),
    "no weights in it": lambda file, target: rewritten(file, target, lambda name, data: b""),
    "a gigabyte of nothing": with_values(versions={"wavespace": Bytes()}),
    "a longer storage": lambda file, target: with_pickle(file, target, longer_storage),
    "legacy format": legacy,
    "a tar": lambda file, target: target.write_bytes(b"storages\0".ljust(1024, b"\0")),
    "a pickle": lambda file, target: target.write_bytes(pickle.dumps(torch.load(file, weights_only=True)["config"])),
    "another archive": lambda file, target: zipfile.ZipFile(target, "w").writestr("a/b", "c"),
    "an expanded weight": with_weight(torch.zeros(1).expand(2, 1, 3, 3)[..., :2]),
    "a giant expanded weight": with_weight(torch.zeros(1).expand(2**40)),
    "a sparse weight": with_weight(torch.sparse_coo_tensor(size=(10**6, 10**6))),
    "a meta weight": with_weight(torch.empty(10**9, device="meta")),
    "a quantized weight": with_weight(torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)),
    "a number for a weight": with_weight(3),
    "no tensor": with_values(state_dict=None),
    "a list of weights": with_values(state_dict=[1, 2]),
    "config is None": with_values(config=None),
    "config is a list": with_values(config=["data"]),
    "config is nested": with_values(config=nested(100)),
    "config is a number": with_values(config=3),
    "config is a list in YAML": with_values(config="- 1\n- 2\n"),
    "config is empty": with_values(config=""),
    "versions is None": with_values(versions=None),
    "versions is a list": with_values(versions=[1]),
    "specs is None": with_values(specs=None),
    "specs is empty": with_values(specs={}),
    "specs of other kinds": with_values(specs={"audio": {"sample_rate": "x", "seconds": None, "labels": 3}}),
    "endless audio": with_values(specs={"audio": {"sample_rate": 22_050, "seconds": float("inf"), "labels": []}}),
    "audio without a rate": with_values(specs={"audio": {"sample_rate": 0, "seconds": 1.0, "labels": []}}),
    "a giant net": with_config(lambda cfg: cfg["model"].update(width=10**6, max_width=10**6)),
    "a deep net": with_config(lambda cfg: cfg["model"].update(depth=10**9)),
    "a net of many levels": with_config(lambda cfg: cfg["model"].update(depth=10**5)),
    "a net of many parts": with_config(
        lambda cfg: cfg.update(model={"_target_": "wavespace.models.tcn.TCN", "width": 8, "layers": 10**5})
    ),
    "a giant front-end": with_config(lambda cfg: cfg["frontend"].update(bins=10**6)),
    "a giant window": with_config(lambda cfg: cfg["frontend"].update(n_fft=2**40)),
    "no model": with_config(lambda cfg: cfg.pop("model")),
    "a model that is text": with_config(lambda cfg: cfg.update(model="unet")),
}


PARTS: dict[str, dict[str, Any]] = {
    "a CQT of endless windows": {"frontend": "cqt.CQT", "bins": 2, "fmin": 1e-5},
    "a CQT of a million bins to an octave": {"frontend": "cqt.CQT", "bins": 100, "bins_per_octave": 10**6},
    "a CQT of a hop": {"frontend": "cqt.CQT", "bins": 170, "fmin": 0.1, "hop": 1},
    "a CQT of a low harmonic": {"frontend": "cqt.HarmonicCQT", "harmonics": [1e-6, 1, 2]},
    "a CQT of many harmonics": {"frontend": "cqt.HarmonicCQT", "harmonics": [1 + i / 999 for i in range(999)]},
    "an endless kernel": {"frontend": "nnaudio.NnAudioCQT", "bins": 20, "fmin": 1e-3},
    "a long kernel": {"frontend": "nnaudio.NnAudioSTFT", "bins": 250, "n_fft": 2**20},
    "a long STFT": {"frontend": "stft.LogFrequency", "n_fft": 2**20},
    "many mel bands": {"frontend": "mel.Mel", "bins": 2**14, "n_fft": 2**14},
    "an endless axis": {"frontend": "stft.MultiResolution", "fmin": 1e-300},
    "a map of millions": {"task": "salience.Salience", "bins_per_octave": 10**6},
}
"""By section: what is small in a file and takes gigabytes, or minutes, to build."""

for name, part in PARTS.items():
    [section] = part.keys() & {"frontend", "task"}
    settings = {"_target_": f"wavespace.{section}s.{part[section]}", **part}
    del settings[section]
    CRAFTED[name] = with_config(lambda cfg, section=section, settings=settings: cfg.update({section: settings}))


def flipped(data: bytes, after: bytes) -> bytes:
    place = data.index(after) + 100
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


VERBS: dict[str, Callable[[Path], Any]] = {
    "load": wavespace.load,
    "export": lambda path: export.main([str(path), "--out", "out.ckpt"]),
    "transcribe": lambda path: import_module("wavespace.commands.transcribe").main(
        ["x.wav", "--checkpoint", str(path)]
    ),
    "evaluate": lambda path: evaluate.main([str(path), "data=synthetic"]),
    "video": lambda path: video.write_video(Path("x.wav"), Path("x.mp4"), checkpoint=str(path)),
    "open_run": open_run,
}


@pytest.mark.parametrize("name", CRAFTED)
def test_it_is_a_sentence_in_every_verb(name: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")  # without ffmpeg, a video is refused for that
    monkeypatch.chdir(tmp_path)
    Path("x.wav").touch()
    CRAFTED[name](file, tmp_path / "model.ckpt")
    for verb in VERBS.values():
        with pytest.raises(UserError) as told:
            verb(tmp_path / "model.ckpt")
        text = str(told.value)
        assert "model.ckpt" in text
        assert "\n" not in text
        assert len(text) < 1000
    assert not Path("out.ckpt").exists()


MEASURE = """\
import resource, sys
import wavespace
from wavespace.errors import UserError
wavespace.load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
for path in sys.argv[2:]:
    try:
        wavespace.load(path)
    except UserError:
        continue
    print(path, "was loaded")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
print((after[0] - before[0]) // 1024, "MB", round(after[1] - before[1]), "s")
"""


def test_it_takes_little_memory_and_time(file: Path, tmp_path: Path) -> None:
    paths = []
    for index, make in enumerate(CRAFTED.values()):
        paths.append(str(tmp_path / f"{index}.ckpt"))
        make(file, Path(paths[-1]))
    ran = subprocess.run([sys.executable, "-c", MEASURE, str(file), *paths], capture_output=True, text=True)
    megabytes, _, seconds, _ = ran.stdout.split()[-4:]
    assert "was loaded" not in ran.stdout, ran.stdout
    assert int(megabytes) < 300, ran.stdout + ran.stderr
    assert int(seconds) < 20


def test_any_change_of_its_bytes_is_a_sentence_or_changes_nothing(file: Path, tmp_path: Path) -> None:
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "model.ckpt"
    expected = wavespace.load(file).state_dict()
    for _ in range(60):
        changed = bytearray(whole)
        start = int(rng.integers(len(whole)))
        for place in range(start, min(start + int(rng.integers(1, 40)), len(whole))):
            changed[place] = int(rng.integers(256))
        kind = rng.integers(3)
        path.write_bytes(changed if kind else whole[:start] + whole[start + int(rng.integers(1, 1000)) :])
        with suppress(UserError):
            found = wavespace.load(path).state_dict()
            assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_any_change_of_its_pickle_is_a_sentence(file: Path, tmp_path: Path) -> None:
    """With checksums that fit, so that the change gets as far as it can."""
    rng = np.random.default_rng(1)
    for _ in range(60):

        def change(data: bytes) -> bytes:
            changed = bytearray(data)
            for _ in range(int(rng.integers(1, 6))):
                changed[int(rng.integers(len(data)))] = int(rng.integers(256))
            return bytes(changed)

        path = with_pickle(file, tmp_path / "model.ckpt", change)
        with suppress(UserError):
            wavespace.load(path)


def test_what_torch_writes_of_other_kinds_still_loads(file: Path, tmp_path: Path) -> None:
    """Optimizers, half precision, weights that share a storage, a buffer written in memory."""
    whole = torch.load(file, weights_only=True)
    storage = torch.cat([weight.flatten().double() for weight in whole["state_dict"].values()])
    places = np.cumsum([0, *(weight.numel() for weight in whole["state_dict"].values())])
    shared = {
        name: storage[start : start + weight.numel()].view(weight.shape)
        for start, (name, weight) in zip(places, whole["state_dict"].items())
    }
    other = {"optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "lr": 0.1, "betas": (0.9, 0.98)}]}
    data = io.BytesIO()
    torch.save(whole | other | {"state_dict": shared, "dtype": torch.float16, "size": torch.Size([2])}, data)
    (tmp_path / "model.ckpt").write_bytes(data.getvalue())
    loaded = wavespace.load(tmp_path / "model.ckpt").state_dict()
    for name, weight in wavespace.load(file).state_dict().items():
        torch.testing.assert_close(loaded[name], weight)

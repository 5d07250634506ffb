"""Parts that a stranger's configuration names are neither called nor imported, in every command that reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import wavespace
from made_runs import config_of, write_run
from parts import save, small_task
from wavespace.analysis.runs import read_run
from wavespace.commands import evaluate, export, report, video
from wavespace.config.trust import configuration, safe_yaml
from wavespace.errors import BadCheckpoint, ConfigError, UserError
from wavespace.notebook import open_run

MARK = "{mark}"
"""Stands for a file that a node would make."""

HOSTILE: dict[str, Any] = {
    "partial": {"_target_": "functools.partial", "_args_": [{"_target_": "os.mkdir", "path": MARK}]},
    "eval": {"_target_": "builtins.eval", "_args_": ["open('{mark}', 'w')"]},
    "exec": {"_target_": "builtins.exec", "_args_": ["open('{mark}', 'w')"]},
    "system": {"_target_": "os.system", "command": "touch {mark}"},
    "subprocess": {"_target_": "subprocess.check_output", "args": ["touch", MARK]},
    "hub": {"_target_": "torch.hub.load", "repo_or_dir": "stranger_folder", "source": "local", "model": "net"},
    "pickle": {"_target_": "torch.load", "f": "evil.pt", "weights_only": False},
    "read_pickle": {"_target_": "pandas.read_pickle", "filepath_or_buffer": "evil.pkl"},
    "write_text": {"_target_": "pathlib.Path.write_text", "self": {"_target_": "pathlib.Path", "_args_": [MARK]}},
    "touch": {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.PosixPath", "_args_": [MARK]}]},
    "urlretrieve": {"_target_": "urllib.request.urlretrieve", "url": "file:///etc/hostname", "filename": MARK},
    "own module": {"_target_": "stranger.Net"},
    "import": {"_target_": "importlib.import_module", "name": "stranger"},
    "instantiate": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.mkdir", "path": MARK}},
    "get_method": {"_target_": "hydra.utils.get_method", "path": "stranger.net"},
    "locate": {"_target_": "pydoc.locate", "path": "stranger.net"},
    "numpy": {"_target_": "numpy.load", "file": "evil.npy", "allow_pickle": True},
    "download": {"_target_": "wavespace.data.files.download.fetch", "url": "file:///etc/hostname", "target": MARK},
    "our function": {"_target_": "wavespace.files.write_atomic", "path": MARK, "data": "x"},
    "our command": {"_target_": "wavespace.__main__.main"},
    "our import": {"_target_": "wavespace.models.blocks.torch.load", "f": "evil.pt"},
    "launcher": {"_target_": "hydra_plugins.wavespace_launchers.RunpodLauncher"},
    "trainer": {"_target_": "pytorch_lightning.Trainer"},
    "other group": {"_target_": "wavespace.optim.AdamW"},
    "a space": {"_target_": " wavespace.models.unet.UNet"},
    "a case": {"_target_": "wavespace.models.unet.Unet"},
    "a look-alike": {"_target_": "wavespace.models.unet.UNe\u0442"},
    "a list": {"_target_": ["wavespace.models.unet.UNet"]},
    "nothing": {"_target_": None},
    "args": {"_args_": [1]},
    "a partial part": {"_target_": "wavespace.models.unet.UNet", "_partial_": True},
    "environment": "${oc.env:HOME}",
    "decode": "${oc.decode:'[1, 2]'}",
    "create": "${oc.create:{_target_: os.mkdir}}",
    "a target from two": {"_target_": "os.${a}", "a": "getcwd"},
    "a key": {"${oc.env:HOME}": 1},
}

PLACES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "the section": lambda cfg, node: cfg.update(model=node),
    "a nested node": lambda cfg, node: cfg["model"].update(norm=node),
    "a list": lambda cfg, node: cfg["frontend"].update(bins=[1, [node]]),
    "the data": lambda cfg, node: cfg["data"].update(parts={"x": node}),
    "the task": lambda cfg, node: cfg["task"].update(shift=node),
    "the trainer": lambda cfg, node: cfg["trainer"].update(callbacks=[node]),
    "the logger": lambda cfg, node: cfg.update(logger=node),
    "the baseline": lambda cfg, node: cfg.update(baseline=node),
    "a claim": lambda cfg, node: cfg.update(expect={"test/l1_db": node}),
    "a search": lambda cfg, node: cfg.update(search={"parameters": node}),
    "the seed": lambda cfg, node: cfg.update(seed=node),
    "another key": lambda cfg, node: cfg.update(hydra=node),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a small checkpoint holds."""
    task = small_task("mel", "conv2d", "reconstruction")
    return torch.load(save(task, tmp_path_factory.mktemp("small") / "model.ckpt"), weights_only=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's folder, which is the current one and where modules are looked for first."""
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n"
    code += "import os\nimport torch\nclass Net(torch.nn.Module): pass\ndef net(): pass\n"
    (tmp_path / "stranger.py").write_text(code)
    (tmp_path / "stranger_folder").mkdir()
    (tmp_path / "stranger_folder" / "hubconf.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return tmp_path


def marked(node: Any, folder: Path) -> Any:
    """A node with the file to make filled in."""
    return json.loads(json.dumps(node).replace(MARK, str(folder / "mark")))


def edited(checkpoint: dict[str, Any], path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A checkpoint whose configuration was changed."""
    cfg = yaml.safe_load(checkpoint["config"])
    change(cfg)
    torch.save(checkpoint | {"config": yaml.safe_dump(cfg)}, path)
    return path


def nothing_ran(folder: Path) -> bool:
    return not (folder / "mark").exists() and "stranger" not in sys.modules


@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_node_is_refused_wherever_it_stands(place: str, checkpoint: dict[str, Any], folder: Path) -> None:
    for name, node in HOSTILE.items():
        cfg = yaml.load(checkpoint["config"], yaml.CSafeLoader)
        PLACES[place](cfg, marked(node, folder))
        text = json.dumps(cfg)  # which is YAML
        if (name, place) in (("trainer", "the trainer"), ("trainer", "the logger")):
            configuration(text)  # which stay text
        else:
            with pytest.raises(ConfigError) as told:
                configuration(text)
            assert "\n" not in str(told.value)
        assert nothing_ran(folder), name


VERBS: dict[str, Callable[[Path], Any]] = {
    "load": wavespace.load,
    "transcribe": lambda path: import_module("wavespace.commands.transcribe").main(
        ["x.wav", "--checkpoint", str(path)]
    ),
    "evaluate": lambda path: evaluate.main([str(path), "data=synthetic"]),
    "export": lambda path: export.main([str(path), "--out", "out.ckpt"]),
    "video": lambda path: video.write_video(Path("song.wav"), Path("song.mp4"), checkpoint=str(path)),
    "open_run": open_run,
}
WITH_A_NODE = ["system", "own module", "our function", "environment"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_it(
    verb: str, checkpoint: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")  # without ffmpeg, a video is refused for that
    for node, place in [("system", "the data"), ("our function", "a nested node"), ("own module", "the logger")]:
        hostile = marked(HOSTILE[node], folder)
        path = edited(checkpoint, folder / "model.ckpt", partial(PLACES[place], node=hostile))
        with pytest.raises(UserError) as told:
            VERBS[verb](path)
        assert str(told.value).startswith(str(path))
        assert not (folder / "out.ckpt").exists()
        assert nothing_ran(folder)


def test_a_report_calls_nothing_either(folder: Path) -> None:
    run = folder / "runs" / "study" / "0123456789ab"
    write_run(run, config_of("study", 0, 1e-3, 4), 0.5)
    (run / "metrics.csv").unlink()
    nodes = [marked(node, folder) for node in HOSTILE.values()]
    named = [{"_target_": "wavespace.__main__.x.main"}, {"_target_": "stranger.x.Net"}]
    for data in ({"parts": nodes}, *named):
        (run / "config.yaml").write_text(yaml.safe_dump({"name": "x", "data": data, "model": data, "task": data}))
        report.main([str(run)])
        read_run(run)
    assert nothing_ran(folder)


# --- Trust --------------------------------------------------------------------------------------------------

PACKAGE = """\
import os
import torch
from wavespace.models.autoencoder import ConvAutoencoder as _Net
class Net(_Net):
    @classmethod
    def small(cls, *args, **settings): return cls(*args, **settings)
"""


def naming(checkpoint: dict[str, Any], folder: Path, target: str) -> Path:
    return edited(checkpoint, folder / "model.ckpt", lambda cfg: cfg["model"].update(_target_=target))


@pytest.fixture
def package(folder: Path) -> Path:
    """Two packages whose names begin alike."""
    for name in ("theirs", "theirs_evil"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
        (folder / name / "nets.py").write_text(PACKAGE)
    for name in [name for name in sys.modules if name.startswith("theirs")]:
        del sys.modules[name]
    return folder


def test_the_refusal_says_how_to_trust_and_so_it_loads(checkpoint: dict[str, Any], package: Path) -> None:
    path = naming(checkpoint, package, "theirs.nets.Net")
    with pytest.raises(BadCheckpoint, match=r"--trust theirs, or trust=\['theirs'\]"):
        wavespace.load(path)
    assert "theirs" not in sys.modules
    for trust in (["theirs"], ["theirs.nets"], "theirs"):
        assert type(wavespace.load(path, trust=trust).model).__module__ == "theirs.nets"
    _, card = export.export(path, package / "out.ckpt", trust=["theirs"])
    assert "wavespace.load(\"out.ckpt\", trust=['theirs'])" in card.read_text()
    assert wavespace.load(naming(checkpoint, package, "theirs.nets.Net.small"), trust=["theirs"])


@pytest.mark.parametrize(
    "target", ["theirs_evil.nets.Net", "theirs.nets.os.mkdir", "theirs.nets.torch.load", "os.mkdir"]
)
def test_trust_in_a_package_is_in_its_own_code_alone(target: str, checkpoint: dict[str, Any], package: Path) -> None:
    with pytest.raises(BadCheckpoint, match="_target_ is"):
        wavespace.load(naming(checkpoint, package, target), trust=["theirs"])
    assert "theirs_evil" not in sys.modules


@pytest.mark.parametrize("trust", [[""], ["."], ["theirs."], ["os"], ["builtins"], ["importlib.util"], [3]])
def test_what_is_no_package_cannot_be_trusted(trust: list[Any], checkpoint: dict[str, Any], package: Path) -> None:
    with pytest.raises(BadCheckpoint, match="trust is"):
        wavespace.load(naming(checkpoint, package, "theirs.nets.Net"), trust=trust)


def test_a_package_that_is_not_there_is_named(checkpoint: dict[str, Any], package: Path) -> None:
    with pytest.raises(BadCheckpoint, match="the package elsewhere can't be imported here: install it"):
        wavespace.load(naming(checkpoint, package, "elsewhere.Net"), trust=["elsewhere"])
    (package / "theirs" / "broken.py").write_text("x = 1\nimport not_installed\n")
    with pytest.raises(BadCheckpoint, match=r"theirs\.broken can't be imported: No module named 'not_installed'"):
        wavespace.load(naming(checkpoint, package, "theirs.broken.Net"), trust=["theirs"])


def test_modules_of_the_current_folder_stay_out_of_the_command(checkpoint: dict[str, Any], folder: Path) -> None:
    """Not even in place of what Wavespace imports if it is installed."""
    for name in ("onnx", "tinysoundfont", "stranger"):
        (folder / f"{name}.py").write_text((folder / "stranger.py").read_text())
    path = edited(checkpoint, folder / "model.ckpt", lambda cfg: None)
    code = "import sys; from wavespace.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, "export", str(path), "--out", "out.ckpt", "--onnx"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert (folder / "out.ckpt").exists(), ran.stderr
    assert nothing_ran(folder)


# --- Bombs --------------------------------------------------------------------------------------------------

BOMBS = {
    "aliases": "a: &a [x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 8)}]\n" for i in range(12)),
    "interpolations": "a: xxxxxxxx\n" + "".join(f"{chr(98 + i)}: {'${' + chr(97 + i) + '}' * 8}\n" for i in range(20)),
    "itself": "a: &a [*a]",
    "nested": "[" * 100_000,
    "nested closed": "a: " + "[" * 5000 + "]" * 5000,
    "nested blocks": "".join(" " * i + "a:\n" for i in range(1000)),
    "long": "a: 1\n" * 300_000,
    "many": "a: [" + "1, " * 30_000 + "]",
    "a long word": "a: " + "x" * 100_000,
    "sexagesimal": "a: 1" + ":1" * 400_000,
    "digits": "a: " + "9" * 9_000,
    "hex": "a: 0x" + "f" * 9_000,
    "a tag": "a: !!python/object/apply:os.mkdir [mark]",
    "a binary": "a: !!binary AAAA",
    "merging": "<<: [{a: 1}, {b: 2}]\ndata: x",
    "two documents": "a: 1\n---\nb: 2",
    "a list": "[1, 2]",
    "text": "hello",
    "nothing": "",
    "control characters": "a: \x00\x1b[2J",
    "a surrogate": "a: \ud800",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str) -> None:
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ConfigError) as told:
        configuration(BOMBS[name])
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert time.process_time() - start < 5
    assert len(str(told.value)) < 400


@pytest.mark.parametrize("text", [None, 3, ["data"], {"data": {}}, b"data: x"])
def test_a_configuration_that_is_no_text_is_a_sentence(text: Any, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    torch.save(checkpoint | {"config": text}, tmp_path / "model.ckpt")
    with pytest.raises(BadCheckpoint):
        wavespace.load(tmp_path / "model.ckpt")


def test_what_omegaconf_writes_is_read_as_it_was(checkpoint: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    values = {"a": 1e-5, "b": "1e-5", "c": "12e4567", "d": "yes", "e": None, "f": 1e20, "g": "2024-01-01", "h": "~"}
    values |= {"i": [True, 0.1, -0.0], "j": "0o17", "k": "a: b # c", "l": "é 日", "m": "", "n": "00:00:10:00"}
    assert safe_yaml(OmegaConf.to_yaml(OmegaConf.create(values))) == values
    assert safe_yaml(checkpoint["config"]) == OmegaConf.to_container(OmegaConf.create(checkpoint["config"]))

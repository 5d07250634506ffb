"""What files hold is part of a run's identity: other content is another run and another store, another place is not."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from datasets import PIECES, RATE, maestro, record
from training import make_medley
from wavespace import config
from wavespace import digests as contents
from wavespace.config.construction import make
from wavespace.config.own_code import code_of
from wavespace.data.files.midi import write_midi
from wavespace.inputs import input_digests
from wavespace.runfolder import RunFolder


def recordings(root: Path) -> list[str]:
    for name in "abcd":
        record(root / f"{name}.wav", onset=0.1 * ord(name) - 9.7)
    return ["data=audio_folder", f"data.folder={root}", f"data.sample_rate={RATE}", "data.seconds=0.5"]


def performances(root: Path) -> list[str]:
    maestro(root, PIECES)
    return ["data=maestro", f"data.root={root}", f"data.sample_rate={RATE}", "data.seconds=0.5"]


def clips(root: Path) -> list[str]:
    return [*make_medley(root)[:4], f"data.root={root}"]


def scores(root: Path) -> list[str]:
    for number in range(10):
        write_midi(root / f"{number}.mid", np.array([[0.0, 1.0, 60.0 + number, 80.0]]))
    return ["data=rendered", f"data.midi={root}"]


def held_out_scores(root: Path) -> list[str]:
    scores(root.with_name("train"))
    return [*scores(root)[:1], f"data.midi={root.with_name('train')}", f"data.test_midi={root}"]


def soundfont(root: Path) -> list[str]:
    root.mkdir()
    (root / "font.sf2").write_bytes(bytes(range(100)))
    return ["data=rendered", f"data.soundfont={root / 'font.sf2'}"]


def weights(root: Path) -> list[str]:
    root.mkdir()
    (root / "encoder.th").write_bytes(bytes(range(100)))
    return [
        *("data=rendered", "data.sample_rate=24000", "frontend=encodec", "model=conv1d", "task=reconstruction"),
        f"frontend.weights={root / 'encoder.th'}",
    ]


def mixture(root: Path) -> list[str]:
    recordings(root)
    return [
        *("data=mixture", f"data.parts.recordings.folder={root}", "frontend=multi_resolution", "model=harmonic"),
        *(f"data.parts.{part}.sample_rate={RATE}" for part in ("recordings", "rendered")),
    ]


SOURCES: dict[str, Callable[[Path], list[str]]] = {
    function.__name__: function
    for function in (recordings, performances, clips, scores, held_out_scores, soundfont, weights, mixture)
}
FOLDERS = [name for name in SOURCES if name not in ("soundfont", "weights")]
LABELLED = ["recordings", "performances", "mixture"]


def composed(overrides: list[str], folder: Path) -> DictConfig:
    """Of parts that fit any data: nothing is built."""
    known = {text.partition("=")[0] for text in overrides}
    cfg = config.compose([*overrides, *(["task=reconstruction"] if "task" not in known else []), f"runs={folder}/runs"])
    for node in (cfg.data, *cfg.data.get("parts", {}).values()):
        if "stores" in node:
            node.stores = str(folder / "stores")
    return cfg


def of(cfg: DictConfig) -> str:
    folder = RunFolder.of(cfg)
    assert folder.missing is None
    return folder.path.name


def one(root: Path, *suffixes: str) -> Path:
    return next(path for path in sorted(root.rglob("*")) if path.suffix in suffixes)


def other_bytes(path: Path) -> None:
    """Content of equal size, in place, with the time of before."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-50:] = bytes(byte ^ 1 for byte in content[-50:])
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    """Another file of equal size and time is moved to its place."""
    aside = path.with_name("aside")
    shutil.copy2(path, aside)
    other_bytes(aside)
    aside.replace(path)


@pytest.mark.parametrize("change", [other_bytes, replaced])
@pytest.mark.parametrize("source", SOURCES)
def test_other_content_is_another_run_and_another_store(
    source: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    cfg = composed(SOURCES[source](tmp_path / "root"), tmp_path)
    run, store = of(cfg), store_of(cfg)
    assert run.startswith(f"{config.signature(cfg)}-")
    change(one(tmp_path / "root", ".wav", ".mid", ".sf2", ".th"))
    assert of(cfg) != run
    assert store is None or store_of(cfg) != store


@pytest.mark.parametrize("source", LABELLED)
def test_corrected_labels_are_another_run_and_another_store(source: str, tmp_path: Path) -> None:
    cfg = composed(SOURCES[source](tmp_path / "root"), tmp_path)
    run, store = of(cfg), store_of(cfg)
    write_midi(one(tmp_path / "root", ".mid"), np.array([[0.5, 0.9, 61.0, 80.0]]))
    assert of(cfg) != run
    assert store is None or store_of(cfg) != store


@pytest.mark.parametrize("source", ["performances", "clips"])
def test_corrected_metadata_is_another_run_and_another_store(source: str, tmp_path: Path) -> None:
    cfg = composed(SOURCES[source](tmp_path / "root"), tmp_path)
    run, store = of(cfg), store_of(cfg)
    table = one(tmp_path / "root", ".csv")
    text = table.read_text("utf-8")
    table.write_text(text.replace("One", "Eno").replace(",000,", ",777,"), "utf-8")
    assert of(cfg) != run
    assert store_of(cfg) != store


@pytest.mark.parametrize("source", FOLDERS)
def test_a_file_less_is_another_run_and_the_same_one_again_the_same(source: str, tmp_path: Path) -> None:
    cfg = composed(SOURCES[source](tmp_path / "root"), tmp_path)
    run = of(cfg)
    path = one(tmp_path / "root", ".wav", ".mid")
    path.rename(tmp_path / "aside")
    less = of(cfg)
    (tmp_path / "aside").rename(path)
    assert less != run == of(cfg)


@pytest.mark.parametrize("source", ["recordings", "mixture"])
def test_another_name_is_another_run(source: str, tmp_path: Path) -> None:
    cfg = composed(SOURCES[source](tmp_path / "root"), tmp_path)
    run = of(cfg)
    for suffix in (".wav", ".mid"):
        (tmp_path / "root" / f"a{suffix}").rename(tmp_path / "root" / f"z{suffix}")
    assert of(cfg) != run


@pytest.mark.parametrize("source", SOURCES)
def test_where_files_lie_and_when_they_were_written_is_no_part_of_it(source: str, tmp_path: Path) -> None:
    overrides = SOURCES[source](tmp_path / "root")
    cfg = composed(overrides, tmp_path)
    run, store = of(cfg), store_of(cfg)
    for path in (tmp_path / "root").rglob("*"):
        path.touch()
    (tmp_path / "root" / "README").write_text("of no use")
    assert of(cfg) == run
    shutil.copytree(tmp_path / "root", tmp_path / "copy")
    copy = composed([text.replace(f"{tmp_path}/root", f"{tmp_path}/copy") for text in overrides], tmp_path)
    copied = RunFolder.of(copy)
    assert copied.path == RunFolder.of(cfg).path
    assert store_of(copy) == store
    other_bytes(one(tmp_path / "copy", ".wav", ".mid", ".sf2", ".th"))
    assert of(copy) != run
    assert config.signature(copy) == config.signature(cfg)


@pytest.mark.parametrize("source", ["recordings", "performances", "clips"])
def test_a_store_in_place_of_its_files_is_the_same_run(source: str, tmp_path: Path) -> None:
    overrides = SOURCES[source](tmp_path / "root")
    cfg = composed(overrides, tmp_path)
    run = of(cfg)
    data = make(cfg.data, "data")
    data.prepare_data()
    place = shutil.move(data.store.folder, tmp_path / "elsewhere")
    given = [text if f"{tmp_path}/root" not in text else f"{text.partition('=')[0]}={place}" for text in overrides]
    assert of(composed(given, tmp_path)) == run


def store_of(cfg: DictConfig) -> str | None:
    """The name that the store of a datamodule would have; None where it has none."""
    data: Any = make(cfg.data, "data")
    if not hasattr(data, "found"):
        return None
    from wavespace.data.files.discovery import with_digests
    from wavespace.data.store.build import store_name

    return store_name(data.provenance(with_digests(data.found(), contents.DigestCache(data.stores_folder))))


def test_without_files_the_signature_is_the_name(tmp_path: Path) -> None:
    for overrides in (["data=synthetic", "task=salience", "frontend=cqt"], ["data=rendered"]):
        cfg = composed(overrides, tmp_path)
        assert input_digests(cfg) == {}
        assert RunFolder.of(cfg).path.name == config.signature(cfg)


# --- Digests that are kept -----------------------------------------------------------------------------------


def test_files_that_have_not_changed_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    whole = contents.file_digest
    monkeypatch.setattr(contents, "file_digest", lambda path, advance=None: read.append(path) or whole(path, advance))
    paths = [tmp_path / name for name in ("a", "b\n\udcff")]
    for path in paths:
        path.write_text("before")
    digests = contents.DigestCache(tmp_path / "stores")
    first = digests.of(paths)
    assert digests.of(paths) == first
    assert len(read) == 4, "what was just written may change within a tick of the disk's clock"
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 60_000_000_000)
    for _ in range(3):
        assert digests.of(paths) == first
    assert len(read) == 6
    (tmp_path / "stores" / contents.CACHE_NAME).open("a").write('["cut')
    other_bytes(paths[0])
    assert digests.of(paths)[0] != first[0]
    assert digests.of(paths)[1] == first[1]
    with pytest.raises(contents.Unread, match="1 file "):
        contents.DigestCache(tmp_path / "none").of(paths[:1], most=3)


def test_a_file_that_changes_while_a_store_is_made_of_it_is_refused(tmp_path: Path) -> None:
    from wavespace.data.files.discovery import with_digests
    from wavespace.data.store.build import Samples, build_store
    from wavespace.errors import BadInput

    cfg = composed(recordings(tmp_path / "root"), tmp_path)
    data = make(cfg.data, "data")
    seen = with_digests(data.found(), contents.DigestCache(data.stores_folder))
    other_bytes(tmp_path / "root" / "b.wav")
    with pytest.raises(BadInput, match=r"b\.wav: has changed since this command began; repeat the command"):
        build_store(
            tmp_path / "store", seen, Samples(RATE), data.provenance(seen), licence="", citation="", processes=0
        )
    assert not (tmp_path / "store").exists()


# --- Code of the user's own ----------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "code" / "ownpackage" / "deep").mkdir(parents=True)
    for name, text in {
        "ownpackage/__init__.py": "",
        "ownpackage/net.py": "import os, ownhelper\nfrom .deep import layers",
        "ownpackage/deep/layers.py": "",
        "ownhelper.py": "from ownother import x",
        "ownother.py": "x = 1",
        "unrelated.py": "",
    }.items():
        (tmp_path / "code" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    return tmp_path / "code"


@pytest.mark.parametrize(
    "file", ["ownpackage/__init__.py", "ownpackage/net.py", "ownpackage/deep/layers.py", "ownhelper.py", "ownother.py"]
)
def test_changed_code_of_ones_own_is_another_run(file: str, package: Path, tmp_path: Path) -> None:
    cfg = composed(["data=synthetic", "frontend=cqt", "task=salience"], tmp_path)
    cfg.model = {"_target_": "ownpackage.net.Net"}
    code_of.cache_clear()
    run = of(cfg)
    assert run != config.signature(cfg)
    (package / "unrelated.py").write_text("changed")
    code_of.cache_clear()
    assert of(cfg) == run
    (package / file).write_text((package / file).read_text() + "\n# changed")
    code_of.cache_clear()
    assert of(cfg) != run


def test_a_file_that_code_of_ones_own_is_given_is_part_of_the_run(package: Path, tmp_path: Path) -> None:
    cfg = composed(["data=synthetic", "frontend=cqt", "task=salience"], tmp_path)
    (tmp_path / "weights.pt").write_text("before")
    texts = {"about": "a/" * 3000, "nul": "a.\0", "home": "~nobody/a"}  # which are no paths
    cfg.model = {"_target_": "ownpackage.net.Net", "start": str(tmp_path / "weights.pt"), **texts}
    run = of(cfg)
    (tmp_path / "weights.pt").write_text("after!")
    assert of(cfg) != run
    with pytest.raises(contents.Unread, match="1 file "):
        RunFolder.of(cfg, most=3)


# --- Through training ----------------------------------------------------------------------------------------

SMALL = [
    *("frontend=log_frequency", "frontend.bins=24", "frontend.n_fft=512", "frontend.hop=128", "frontend.fmin=200"),
    *("frontend.fmax=3500", "model=conv2d", "model.width=2", "model.depth=1", "task=reconstruction", "save_every=1"),
    *("trainer.max_steps=1", "trainer.val_check_interval=1", "trainer.accelerator=cpu", "trainer.precision=32-true"),
]


def test_training_returns_the_result_of_the_files_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from wavespace.errors import UserError
    from wavespace.training.run import run

    cfg = composed([*recordings(tmp_path / "root"), *SMALL], tmp_path)

    def trained() -> tuple[str, bool]:
        run(cfg)
        said = capsys.readouterr().out
        return said, "is finished; its result is returned" in said

    assert not trained()[1]
    assert trained()[1]
    first = RunFolder.of(cfg)
    write_midi(tmp_path / "root" / "b.mid", np.array([[0.5, 0.9, 61.0, 80.0]]))
    said, returned = trained()
    assert not returned
    assert f"{first.path} has read something else (data.folder); this run begins anew" in said
    shutil.move(tmp_path / "root", tmp_path / "moved")
    said, returned = trained()
    assert returned
    assert "there is no such folder" in said
    assert "has read there what is there no more" in said
    cfg.data.folder = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        run(cfg)
    cfg.data.folder = str(tmp_path / "moved")
    assert trained()[1]


def test_what_changes_during_a_run_changes_nothing_in_it_or_ends_it(tmp_path: Path) -> None:
    from wavespace.errors import BadInput
    from wavespace.inputs import CHANGED
    from wavespace.training.fit import check_contents

    cfg = composed([*recordings(tmp_path / "root"), *SMALL], tmp_path)
    folder, data = RunFolder.of(cfg), make(cfg.data, "data")
    data.setup()
    check_contents(data, folder)
    store = data.store
    other_bytes(tmp_path / "root" / "b.wav")
    data.prepare_data()
    assert data.store is store, "the scores at the end of a run are those of its beginning"
    check_contents(data, folder)
    late = make(cfg.data, "data")
    late.setup()
    with pytest.raises(BadInput, match=CHANGED):
        check_contents(late, folder)


@pytest.mark.parametrize("setting", ["midi", "soundfont"])
def test_another_file_under_the_same_name_is_heard(setting: str, tmp_path: Path) -> None:
    """Within one process, as the members of a multirun are."""
    from wavespace.data.synthesis.soundfont import bundled_soundfont

    overrides = scores(tmp_path / "root") if setting == "midi" else ["data=rendered"]
    font = tmp_path / "font.sf2"
    shutil.copy(bundled_soundfont(), font)
    cfg = composed([*overrides, "data.seconds=0.5", f"data.soundfont={font}"], tmp_path)

    def heard() -> Any:
        data = make(cfg.data, "data")
        data.prepare_data()
        data.setup()
        return data.train_set[0].audio

    before = heard()
    np.testing.assert_array_equal(before, heard())
    if setting == "midi":
        for path in (tmp_path / "root").glob("*.mid"):
            write_midi(path, np.array([[0.0, 1.0, 40.0, 80.0]]))
    else:
        content = bytearray(font.read_bytes())
        start = content.index(b"smpl") + 8
        end = start + int.from_bytes(content[start - 4 : start], "little")
        content[start:end] = np.frombuffer(content[start:end], "<i2")[::-1].tobytes()
        font.write_bytes(content)
    assert not np.array_equal(before, heard())


def test_verify_tells_of_files_that_have_changed(tmp_path: Path) -> None:
    from wavespace.commands import check
    from wavespace.errors import BadInput

    overrides = [*recordings(tmp_path / "root"), *SMALL, f"data.stores={tmp_path / 'stores'}"]
    check.main([*overrides, "--data", "--verify"])
    write_midi(tmp_path / "root" / "b.mid", np.array([[0.5, 0.9, 61.0, 80.0]]))
    (tmp_path / "root" / "c.wav").unlink()
    with pytest.raises(BadInput, match=r"was made of other files than .* \(changed: b.wav; gone: c.wav\): .* prepare"):
        check.main([*overrides, "--verify"])

"""Odd files in --config-dir: a composed configuration, or a sentence that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wavespace import config
from wavespace.errors import ConfigError

PEAKS = b"_target_: wavespace.models.peaks.Peaks\n"
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (97 + i, 97 + i, b", ".join([b"*%c" % (96 + i)] * 9)) for i in range(1, 9)
)
ODD = {
    "tab": (b"seed:\t3\n\twidth: 3\n", True),
    "duplicate": (b"seed: 3\nseed: 4\n", True),
    "not UTF-8": (b"name: \xff\xfe\n", True),
    "UTF-16": ("seed: 3\n".encode("utf-16"), True),
    "UTF-32": ("seed: 3\n".encode("utf-32"), True),
    "NUL": (b"name: a\0b\n", True),
    "control": (b"name: \x07\n", True),
    "object": (b"seed: !!python/object:os.system {}\n", True),
    "apply": (b"seed: !!python/object/apply:os.getcwd []\n", True),
    "unknown tag": (b"seed: !what 3\n", True),
    "unclosed": (b"seed: [1, 2\n", True),
    "undefined alias": (b"seed: *x\n", True),
    "contains itself": (b"expect: &x {a: *x}\n", True),
    "bomb": (BOMB, True),
    "nested": (b"expect: " + b"[" * 400 + b"]" * 400 + b"\n", True),
    "nested, far": (b"expect: " + b"[" * 20_000, True),
    "large": (b"#" * 1_100_000, True),
    "list": (b"- 3\n", True),
    "text": (b"seed\n", True),
    "two documents": (b"seed: 1\n---\nseed: 2\n", True),
    "odd date": (b"name: 2024-13-45\n", False),
    "date": (b"name: 2024-05-01\n", False),
    "odd number": (b"seed: 0x\n", True),
    "defaults is a number": (b"defaults: 3\n", True),
    "defaults holds a list": (b"defaults:\n  - [a]\n", True),
    "defaults names nothing": (b"defaults:\n  - override /model: none\n", True),
    "defaults of itself": (b"defaults:\n  - mine\n", True),
    "interpolation": (b"seed: ${nowhere}\n", True),
    "cycle": (b"seed: ${save_every}\nsave_every: ${seed}\n", True),
    "odd interpolation": (b"name: ${\n", True),
    "unknown resolver": (b"name: '${what:3}'\n", True),
    "key is a number": (b"model:\n  3: 4\n", True),
    "key is null": (b"~: 4\n", True),
    "key is a list": (b"? [1]\n: 4\n", True),
    "target is a number": (b"model:\n  _target_: 3\n", True),
    "target is a list": (b"model:\n  _target_: [a]\n", True),
    "group is a number": (b"model: 3\n", True),
    "group is a list": (b"model: [1]\n", True),
    "empty": (b"", False),
    "byte order mark": (b"\xef\xbb\xbfseed: 3\n", False),
}


def told(folder: Path, content: bytes, group: str = "experiment") -> str | None:
    """What is said of a file; None if it composes."""
    (folder / group).mkdir(exist_ok=True)
    head = (
        b"# @package _global_\n"
        if group == "experiment" and not content.startswith((b"\xff\xfe", b"\xef\xbb"))
        else b""
    )
    (folder / group / "mine.yaml").write_bytes(head + content)
    try:
        config.compose([f"{group}=mine"], folder)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_composes_or_is_named(kind: str, tmp_path: Path) -> None:
    content, refused = ODD[kind]
    said = told(tmp_path, content)
    if refused:
        assert said is not None
        assert "mine" in said or "in " in said or any(key in said for key in ("seed", "name", "model")), said
    else:
        assert said is None or "@package" in said, said


def test_a_broken_file_is_told_with_its_line(tmp_path: Path) -> None:
    assert f"{tmp_path}/experiment/mine.yaml, line 3" in str(told(tmp_path, b"seed: 3\nseed: 4\n"))
    assert f"{tmp_path}/experiment/mine.yaml, line 3" in str(told(tmp_path, b"optim:\n\tlr: 4\n"))


def test_files_whose_defaults_lead_back_to_each_other_are_a_fault(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "other.yaml").write_text("defaults: [mine]\n")
    assert "model=mine" in str(told(tmp_path, b"defaults: [other]\n", "model"))


def test_a_file_that_a_shipped_one_hides_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "unet.yaml").write_bytes(PEAKS)
    with pytest.raises(ConfigError, match="rename the file"):
        config.compose(["model=unet"], tmp_path)


WORDS = [
    b"_target_", b"defaults", b"model", b"seed", b"- ", b": ", b"\n", b"  ", b"[", b"]", b"{", b"}", b"&a", b"*a",
    b"!!", b"${", b"\t", b"'", b'"', b"|", b"\xc3\xa9", b"\xff", b"\0", b"3", b"~", b"? ", b"<<", b"override /",
    b"@", b"#",
]  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    group=st.sampled_from(["experiment", "model"]),
    cut=st.integers(0, 40),
    words=st.lists(st.sampled_from(WORDS), max_size=6),
)
def test_any_bytes_compose_or_are_a_sentence(tmp_path: Path, group: str, cut: int, words: list[bytes]) -> None:
    whole = PEAKS if group == "model" else b"model:\n  width: 7\nseed: ${save_every}\n"
    told(tmp_path, whole[:cut] + b"".join(words) + whole[cut:], group)

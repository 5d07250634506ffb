"""Several sources in one training stream."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datasets import record
from wavespace import config
from wavespace.config.construction import make
from wavespace.data.base import Item
from wavespace.data.sources.mixture import Mixed, Mixture
from wavespace.errors import BadInput, ConfigError
from wavespace.training.preparation import print_contents

OVERRIDES = [
    *("data=mixture", "task=piano_roll", "frontend=multi_resolution", "model=harmonic"),
    *("data.parts.rendered.seconds=1", "data.parts.recordings.seconds=1", "data.parts.rendered.piece_seconds=2"),
    *("data.parts.rendered.val_pieces=1", "data.parts.rendered.test_pieces=2", "data.workers=0"),
]


def mixture(tmp_path: Path, *overrides: str) -> Mixture:
    recordings = tmp_path / "recordings"
    for name in "abc":
        record(recordings / f"{name}.wav", onset=0.2)
    places = [f"data.parts.recordings.folder={recordings}", f"data.parts.recordings.stores={tmp_path / 'stores'}"]
    return make(config.compose([*OVERRIDES, *places, *overrides]).data, "data")


class Named:
    """A stream whose items say where they come from."""

    def __init__(self, name: str, kind: type) -> None:
        self.name, self.kind = name, kind

    def __getitem__(self, position: int) -> Item:
        return Item(np.full(4, 0.5 if self.kind is np.float32 else 16384, self.kind), f"{self.name}-{position}")


def test_windows_come_by_share_and_are_a_function_of_position() -> None:
    streams = [Named("a", np.int16), Named("b", np.int16), Named("c", np.int16)]
    mixed = Mixed(streams, [0.6, 0.3, 0.1], seed=1)
    names = [mixed[p].name for p in range(2000)]
    counts = Counter(name[0] for name in names)
    for name, share in {"a": 0.6, "b": 0.3, "c": 0.1}.items():
        assert abs(counts[name] / 2000 - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    assert [mixed[p].name for p in (1999, 7)] == [names[1999], names[7]]
    assert [Mixed(streams, [0.6, 0.3, 0.1], seed=2)[p].name for p in range(2000)] != names


def test_sound_in_floats_and_in_integers_goes_into_one_batch() -> None:
    mixed = Mixed([Named("a", np.float32), Named("b", np.int16)], [0.5, 0.5], seed=0)
    audio = {mixed[p].name[0]: mixed[p].audio for p in range(20)}
    assert set(audio) == {"a", "b"}
    assert audio["a"].dtype == audio["b"].dtype == np.int16
    np.testing.assert_allclose(audio["a"] / 32768, audio["b"] / 32768, atol=1e-4)


def test_both_kinds_are_in_a_batch_and_one_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = mixture(tmp_path)
    assert data.spec.labels == ("notes",)
    data.prepare_data()
    data.setup()
    items = [data.train_set[p] for p in range(20)]
    recordings = [item for item in items if not item.name.startswith("train-")]
    assert 0 < len(recordings) < 20
    assert all(len(item.audio) == 22_050 for item in items)
    recorded = next(item for item in recordings if len(item.notes))
    assert recorded.notes[0, 2] == 69
    batch = next(iter(data.train_dataloader()))
    assert batch.audio.shape == (6, 1, 22_050)
    assert [len(batch.names) for batch in data.test_dataloader()] == [2]
    assert [name for batch in data.val_dataloader() for name in batch.names] == ["val-0"]
    print_contents(data)
    said = capsys.readouterr().out
    for line in (
        "training: rendered 70%, recordings 30%",
        "validation and test: rendered",
        "rendered: scores: composed",
    ):
        assert f"\n{line}" in said
    assert "recordings: train" in said.partition("\n")[0]


def test_where_and_how_parts_are_read_is_no_part_of_the_identity() -> None:
    first, second, other = (
        config.signature(config.compose([*OVERRIDES, *more]))
        for more in ([], ["data.parts.recordings.stores=/x"], ["data.parts.recordings.folder=/x"])
    )
    assert first == second == other  # what is in the folder is part of the run folder's name


def test_a_part_may_have_the_name_of_a_setting() -> None:
    part = ["+data.parts.root=${data.parts.recordings}", "data.shares.recordings=0.1"]
    first, second = (
        config.signature(config.compose([*OVERRIDES, *part, f"+data.shares.root={share}"])) for share in (0.1, 0.2)
    )
    assert first != second


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.shares={rendered: 0.9, recordings: 0.2}", "it takes one for each of rendered, recordings, in all 1"),
        ("data.shares.recordings=0", "shares = {'rendered': 0.7, 'recordings': 0}: input should be greater than 0"),
        ("data.scored=maestro", "scored = maestro: it must be one of rendered, recordings"),
        ("data.parts.rendered.seconds=2", "windows of rendered 2 s at 22050 Hz, recordings 1 s at 22050 Hz"),
    ],
)
def test_what_cannot_be_mixed_is_refused(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match="data=mixture refuses its settings") as refused:
        mixture(tmp_path, override)
    assert told in str(refused.value)


def test_a_part_without_training_recordings_is_named(tmp_path: Path) -> None:
    data = mixture(tmp_path, "data.parts.recordings.splits=[0,0,1]")
    data.prepare_data()
    with pytest.raises(BadInput, match=r"data\.parts\.recordings has nothing to train on"):
        data.setup()

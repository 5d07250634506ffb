"""Audits: the numbers of each picture are those of its definition; a model with nothing to show shows nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from sklearn.decomposition import PCA
from torch import Tensor, nn

from test_samples import Data, Fake
from wavespace.data.base import NO_NOTES, Item
from wavespace.reports.figures import UNLABELLED, draw_channels, draw_codes, draw_kernels
from wavespace.reports.theme import CLASSES
from wavespace.training.callbacks import audits as module
from wavespace.training.callbacks.audits import audits
from wavespace.training.callbacks.samples import save_samples


class Coder(nn.Module):
    """Codes of three dims: a linear map of the four bins, each frame alone."""

    dims, step = 3, 1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Conv2d(4, 3, 1)

    def encode(self, x: Tensor) -> Tensor:
        return self.map(x.transpose(1, 2))

    def decode(self, code: Tensor) -> Tensor:
        raise AssertionError("an audit needs no output")

    def forward(self, x: Tensor) -> Tensor:
        return x


class Skipping(Coder):
    """As a UNet with skips."""

    dims = 0


class Timbres(Fake):
    """Two channels, of which the second is twice the first, and kernels of five harmonics."""

    def channels(self, output: Tensor) -> Tensor:
        return torch.cat([output, 2 * output], 1)

    def kernels(self) -> Tensor:
        return torch.tensor([[1.0, 0.5, 0.3, 0.0, 0.1], [0.2, 0.9, 0.0, 0.4, 0.0]], requires_grad=True)


def task_of(kind: type[Fake], data: Data, model: nn.Module | None = None) -> Any:
    task = kind(data.spec, NO_NOTES, {})
    task.model = model or nn.Conv2d(1, 1, 1)
    return task


def labelled(count: int, classes: int) -> Data:
    """Items of noise whose level follows their class."""
    data = Data(tuple(f"{i}" for i in range(count)))
    items: Any = data.val_set
    data.val_set = [  # type: ignore[assignment]
        Item((item.audio // 2 ** (i % classes)).astype(np.int16), item.name, NO_NOTES, {"instrument": i % classes})
        for i, item in enumerate(items)
    ]
    return data


# --- What is drawn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("items", "dims"), [(40, 7), (5, 30), (9, 2)])
def test_codes_are_drawn_at_the_components_that_scikit_learn_finds(items: int, dims: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(items, dims)) @ rng.normal(size=(dims, dims)) + 5
    classes = np.arange(items) % 3
    audit = draw_codes(codes, classes, {0: "a", 1: "b", 2: "c"})
    reference = PCA(2).fit(codes)
    expected = reference.transform(codes)
    axes = audit.figure.axes[0]
    found = np.empty_like(expected)
    for label, drawn in enumerate(axes.collections):
        found[classes == label] = drawn.get_offsets()
        assert to_hex(drawn.get_facecolor()[0]) == CLASSES[label]  # type: ignore[index]
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-8)
    first, second = reference.explained_variance_ratio_
    assert axes.get_xlabel() == f"first principal component, {first:.0%} of variance"
    assert axes.get_ylabel() == f"second, {second:.0%}"
    [legend] = audit.figure.legends
    counts = np.bincount(classes)
    assert [text.get_text() for text in legend.get_texts()] == [f"{n} ({c})" for n, c in zip("abc", counts)]
    assert f"{first:.0%} and {second:.0%}" in audit.description
    assert "a, b, c" in audit.description


def test_codes_of_one_number_and_codes_that_never_change_can_be_drawn() -> None:
    one = draw_codes(np.array([[1.0], [3.0], [2.0]]), np.full(3, UNLABELLED), {})
    np.testing.assert_allclose(np.abs(one.figure.axes[0].collections[0].get_offsets()), [[1, 0], [1, 0], [0, 0]])
    assert "100%" in one.figure.axes[0].get_xlabel()
    same = draw_codes(np.ones((3, 4)), np.full(3, UNLABELLED), {})
    assert not np.any(same.figure.axes[0].collections[0].get_offsets())
    assert "0%" in same.figure.axes[0].get_xlabel()
    assert not same.figure.legends


def test_use_of_channels_is_a_mean_of_shares_in_which_loud_items_weigh_no_more() -> None:
    energies = np.array([[1.0, 3.0], [900.0, 100.0], [0.0, 0.0], [2.0, 2.0]])
    audit = draw_channels(energies, np.array([0, 0, 0, 1]), {0: "flute", 1: "violin"})
    axes = audit.figure.axes[0]
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares, [[0.575, 0.425], [0.5, 0.5], [0.55, 0.45]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["flute", "violin", "all"]
    assert [text.get_text() for text in axes.texts] == ["57", "42", "50", "50", "55", "45"]
    assert "3 items" in audit.description
    silent = draw_channels(np.zeros((2, 3)), np.array([0, 0]), {0: "flute"})
    assert not silent.figure.axes[0].images
    assert "0 items" in silent.description


@pytest.mark.parametrize("timbres", [1, 3, 7])
def test_kernels_are_bars_by_harmonic_a_panel_a_timbre(timbres: int) -> None:
    kernels = np.random.default_rng(0).random((timbres, 6)).astype(np.float32)
    figure = draw_kernels(kernels).figure
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == timbres
    for kernel, axes in zip(kernels, panels):
        bars: Any = axes.patches
        np.testing.assert_allclose([bar.get_height() for bar in bars], kernel)
        np.testing.assert_allclose([bar.get_x() + bar.get_width() / 2 for bar in bars], range(1, 7))
        assert axes.get_ylim() == panels[0].get_ylim()


# --- What is heard ---------------------------------------------------------------------------------------


def test_a_model_shows_what_it_has_and_nothing_else() -> None:
    data = labelled(6, 2)
    names = [
        [audit.name for audit in audits(task_of(kind, data, model), data)]
        for kind, model in [(Fake, None), (Fake, Skipping()), (Fake, Coder()), (Timbres, None), (Timbres, Coder())]
    ]
    both, code = ["Use of channels", "Kernels"], ["Latent space", "Chromatic scale"]
    assert names == [[], [], code, both, [code[0], *both, code[1]]]


def test_codes_are_means_over_time_of_the_beginning_of_items_spread_over_the_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ITEMS", 4)
    monkeypatch.setattr(module, "SECONDS", 0.5)
    data, seen = labelled(10, 2), []
    monkeypatch.setattr(module, "draw_codes", lambda *given: seen.append(given))
    task = task_of(Fake, data, Coder())
    task.train()
    for _ in range(2):
        list(audits(task, data))
    assert not task.training
    (codes, classes, names), again = seen
    np.testing.assert_array_equal(again[0], codes)
    items: Any = data.val_set
    chosen = [items[i] for i in (0, 3, 6, 9)]
    for item, code in zip(chosen, codes):
        audio = torch.from_numpy(item.audio[: data.spec.sample_rate // 2].astype(np.float32) / 32768)[None, None]
        expected = task.model.encode(task.frontend(audio))[0, :, 0].mean(-1)
        np.testing.assert_allclose(code, expected.detach(), rtol=1e-6)
    assert classes.tolist() == [0, 1, 0, 1]
    assert names == {0: "instrument 0", 1: "instrument 1"}


def test_channels_are_measured_by_their_squares_and_named_by_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    data = labelled(6, 2)
    data.instruments = ("flute", "violin")  # type: ignore[attr-defined]
    [channels, _] = audits(task_of(Timbres, data), data)
    np.testing.assert_allclose(channels.figure.axes[0].images[0].get_array(), [[0.2, 0.8]] * 3, rtol=1e-6)  # type: ignore[arg-type]
    assert [label.get_text() for label in channels.figure.axes[0].get_yticklabels()] == ["flute", "violin", "all"]


def test_what_a_diverged_model_gives_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    data = labelled(4, 2)
    model = Coder()
    nn.init.constant_(model.map.weight, float("nan"))
    task = task_of(Timbres, data, model)
    monkeypatch.setattr(task, "channels", lambda output: output * float("inf"))
    monkeypatch.setattr(task, "kernels", lambda: torch.full((2, 3), float("nan")))
    assert list(audits(task, data)) == []


def test_equal_models_give_equal_files_beside_the_samples(tmp_path: Path) -> None:
    data = labelled(6, 2)
    for name in ("one", "two"):
        save_samples(task_of(Timbres, data, Coder()), data, tmp_path / name, 1)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert {"audit-Latent-space.png", "audit-Use-of-channels.png", "audit-Kernels.png"} <= set(one)

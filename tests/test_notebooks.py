"""Every notebook runs in a clean kernel, from first cell to last, on small data, and is shipped without outputs."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from omegaconf import OmegaConf

from made_runs import write_sweep
from parts import save
from training import RENDERED, make_medley
from wavespace import analysis, notebook, reports
from wavespace.build import build
from wavespace.config import compose

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PUBLIC = {"analysis": analysis, "notebook": notebook, "reports": reports}
NAMES = ("checkpoint_anatomy", "data_tour", "quickstart", "sweep_findings")


def checkpoint_of(overrides: list[str], path: Path) -> Path:
    """A checkpoint of a net that has learned nothing."""
    cfg = compose(overrides)
    task = build(cfg).task
    task.config_text = OmegaConf.to_yaml(cfg, resolve=True)
    path.parent.mkdir(parents=True)
    save(task, path)
    return path


def parameters_of(name: str, folder: Path) -> dict[str, Any]:
    """What a notebook is run on: values for the names in its cell that is tagged `parameters`."""
    if name == "sweep_findings":
        return {"paths": [str(write_sweep(folder / "runs" / "grid"))]}
    rendered = [*RENDERED, "frontend=cqt", "data.piece_seconds=2.0"]
    if name == "data_tour":
        return {"overrides": rendered[:6]}
    if name == "quickstart":
        return {"checkpoint": str(checkpoint_of(rendered, folder / "run" / "best.ckpt"))}
    medley = [*make_medley(folder / "data"), "model.skips=none", "model.latent=4"]
    return {"checkpoint": str(checkpoint_of(medley, folder / "run" / "best.ckpt"))}


def executed(name: str, folder: Path) -> Any:
    """The notebook after it has run, with its parameters set after the cell that shows them."""
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    [place] = [i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", [])]
    given = "\n".join(f"{key} = {value!r}" for key, value in parameters_of(name, folder).items())
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return book


def shown(book: Any, kind: str) -> list[str]:
    """Outputs of a kind."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return ["".join(output["data"][kind]) for output in outputs if kind in output.get("data", {})]


@pytest.mark.parametrize(
    ("name", "pictures", "players", "words"),
    [
        ("checkpoint_anatomy", 3, 0, "pitch_probe"),
        ("data_tour", 3, 1, "notes by MIDI pitch"),
        ("quickstart", 1, 1, "onset"),
        ("sweep_findings", 2, 0, "least at 0.00"),
    ],
)
def test_a_notebook_runs_and_shows_what_it_promises(
    name: str, pictures: int, players: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = executed(name, tmp_path)
    assert len(shown(book, "image/png")) >= pictures
    assert sum("<audio" in html for html in shown(book, "text/html")) >= players
    texts = [output.get("text", "") for cell in book.cells for output in cell.get("outputs", [])]
    assert words in " ".join([*texts, *shown(book, "text/plain"), *shown(book, "text/html")])


def test_all_are_shipped_without_outputs_and_ask_for_what_there_is() -> None:
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == list(NAMES)
    for path in NOTEBOOKS.glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        code = [cell for cell in book.cells if cell.cell_type == "code"]
        assert all(not cell.outputs and cell.execution_count is None for cell in code)
        words = sum(len(cell.source.split()) for cell in book.cells if cell.cell_type == "markdown")
        assert words > 120  # it reads like an article
        for cell in code:
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PUBLIC:
                    assert hasattr(PUBLIC[node.value.id], node.attr), node.attr

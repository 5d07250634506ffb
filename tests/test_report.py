"""The report has the run's own numbers, is one file, and can be written whatever lies in the folder."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from parts import sound_of
from training import RENDERED, TRAINER
from wavespace.commands.report import main
from wavespace.config import compose
from wavespace.data.files.midi import write_midi
from wavespace.errors import BadInput, UserError
from wavespace.reports import run_page as report
from wavespace.reports.run_page import figures_table, write_report
from wavespace.runfolder import RunFolder
from wavespace.training import run as training

VOID = {"meta", "img", "wbr", "br", "link", "input", "hr"}
FILES = ("status.json", "config.yaml", "metrics.csv", "samples/samples.json")

STATUS = {
    "signature": "0123456789ab",
    "state": "finished",
    "reason": None,
    "step": 400,
    "minutes": 12.3456,
    "monitor": "val/note_f1_onset",
    "table": ["note_f1_onset", "frame_f1"],
    "metrics": {
        "val/note_f1_onset": 0.89312,
        "val/frame_f1": 0.7,
        "val/loss": 0.0000421,
        "test/note_f1_onset": 0.87654,
        "baseline/note_f1_onset": 0.4,
        "best_step": 300,
    },
}
CONFIG = """\
name: demo
data: {_target_: wavespace.data.synthesis.rendered.Rendered, batch_size: 4}
model: {_target_: theirs.Net, note: "<b>&amp;</b>"}
"""
RATE = 22050


class Page(HTMLParser):
    """Elements of a page, with a check that every one is closed where it must be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), f"an attribute of {tag} comes twice"
        self.found.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]

    def curves(self, colour: int) -> list[np.ndarray]:
        """Points `(K, 2)` of each line in one of the page's colours, as drawn."""
        style = f"stroke: var(--c{colour})"
        paths = [
            a["d"]
            for a in self.all("path")
            if style in a.get("style", "") and a.get("style", "").startswith("fill: none")
        ]
        return [np.array(re.findall(r"[-\d.]+", path), float).reshape(-1, 2) for path in paths]


def steps_and_values() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps = np.arange(10, 401, 10)
    rng = np.random.default_rng(0)
    return steps, 3 * np.exp(-steps / 100) * rng.uniform(0.8, 1.2, 40), 1 - np.exp(-steps[9::10] / 150)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run with one sample."""
    folder = tmp_path / "runs" / "demo" / "0123456789ab"
    (folder / "samples").mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(STATUS))
    (folder / "config.yaml").write_text(CONFIG)
    steps, loss, f1 = steps_and_values()
    rows = ["step,lr,train/loss,val/note_f1_onset,val/frame_f1"]
    for index, step in enumerate(steps):
        val = f"{f1[index // 10]},{f1[index // 10] / 2}" if step % 100 == 0 else ","
        rows.append(f"{step},{1e-3 * step / 400},{loss[index]},{val}")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")

    Image.new("RGB", (40, 30), "#403080").save(folder / "samples" / "0-song.png")
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    soundfile.write(folder / "samples" / "0-input.flac", tone, RATE)
    (folder / "samples" / "0-estimate.mid").write_bytes(b"MThd notes")
    entry = {
        "name": "song",
        "description": "2.0 seconds: input (dB)",
        "picture": "0-song.png",
        "sounds": [{"title": "input", "file": "0-input.flac"}],
        "midi": [{"title": "estimate", "file": "0-estimate.mid"}],
        "missing": "The transcription is not rendered: no synthesizer.",
    }
    (folder / "samples" / "samples.json").write_text(json.dumps([entry]))
    return RunFolder(folder)


def page_of(run: RunFolder) -> Page:
    return Page(write_report(run))


def test_the_page_has_the_numbers_of_the_run(run: RunFolder) -> None:
    text = page_of(run).text
    head = text[: text.index("Every metric")]
    assert "demo Rendered → Net state finished steps 400 best step 300 minutes 12.3 signature 0123456789ab" in head
    assert re.search(r"val test baseline note_ f1_ onset 0\.893 0\.877 0\.400 frame_ f1 0\.700 – –", head)
    assert "loss 4.21e-05 – –" in text[text.index("Every metric") :]
    _, loss, f1 = steps_and_values()
    assert f"train/loss {loss[-1]:.3f}" in text
    assert f"val/note_f1_onset {f1[-1]:.3f}" in text
    assert CONFIG.strip() in "".join(page_of(run).words)
    assert "The transcription is not rendered: no synthesizer." in text
    assert "missing." not in text
    assert "damaged" not in text


def test_curves_are_drawn_from_metrics_csv(run: RunFolder) -> None:
    steps, loss, f1 = steps_and_values()
    train, val = page_of(run).curves(0)  # the first line of each chart
    for points, x, y in ((train, steps, np.log(loss)), (val, steps[9::10], f1)):
        assert points.shape == (len(x), 2)
        assert np.corrcoef(points[:, 0], x)[0, 1] == pytest.approx(1, abs=1e-6)
        assert np.corrcoef(points[:, 1], y)[0, 1] == pytest.approx(-1, abs=1e-6)  # SVG counts downwards


def test_of_many_logged_steps_a_point_is_the_mean_of_neighbours(run: RunFolder) -> None:
    values = np.random.default_rng(1).uniform(1, 2, 6000)
    values[[10, 100]] = np.nan, np.inf
    lines = [f"{step},{value!r}" for step, value in enumerate(values.tolist(), 1)]
    (run.path / "metrics.csv").write_text("\n".join(["step,train/loss", *lines]))
    page = page_of(run)
    [points] = page.curves(0)
    means = values.reshape(300, 20).mean(1)
    kept = np.isfinite(means)
    assert len(points) == kept.sum() == 298
    assert np.corrcoef(points[:, 1], np.log(means[kept]))[0, 1] == pytest.approx(-1, abs=1e-6)
    assert "mean of up to 20 logged steps" in page.text


def test_the_page_stands_alone(run: RunFolder) -> None:
    (run.path / "status.json").write_text(json.dumps(STATUS | {"wandb": {"id": "x", "url": "https://wandb.ai/x"}}))
    page = page_of(run)
    links = [a[key] for _, a in page.found for key in ("src", "href", "xlink:href", "srcset", "action") if key in a]
    assert len(links) == 3
    assert [link for link in links if not link.startswith(("data:", "#"))] == []
    assert re.findall(r"url\((?!#)", page.source) == []
    assert "@import" not in page.source
    assert not page.all("script")
    assert not page.all("link")
    assert not [key for _, attributes in page.found for key in attributes if key.startswith("on")]
    assert "https://wandb.ai/x" in page.text


def test_pictures_sounds_and_notes_are_in_the_page(run: RunFolder) -> None:
    page = page_of(run)
    [image], [audio], [link] = page.all("img"), page.all("audio"), page.all("a")
    assert (
        base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        == (run.path / "samples" / "0-song.png").read_bytes()
    )
    assert base64.b64decode(link["href"].removeprefix("data:audio/midi;base64,")) == b"MThd notes"
    assert link["download"] == "0-estimate.mid"
    sound = base64.b64decode(audio["src"].removeprefix("data:audio/mpeg;base64,"))
    found, rate = soundfile.read(io.BytesIO(sound))
    given_, _ = soundfile.read(run.path / "samples" / "0-input.flac")
    assert (rate, len(found)) == (RATE, len(given_))
    assert np.corrcoef(found, given_)[0, 1] > 0.99


def test_audits_have_a_section_of_their_own(run: RunFolder) -> None:
    assert "Audits" not in page_of(run).text
    manifest = run.path / "samples" / "samples.json"
    files: dict[str, object] = {"picture": "audit.png", "sounds": [], "midi": [], "missing": None}
    audit = {"kind": "audit", "name": "Kernels", "description": "amplitudes of 8 harmonics", **files}
    manifest.write_text(json.dumps([*json.loads(manifest.read_text()), audit]))
    Image.new("RGB", (40, 30), "#102030").save(run.path / "samples" / "audit.png")
    page = page_of(run)
    assert [image["alt"] for image in page.all("img")][1:] == ["Kernels: amplitudes of 8 harmonics"]
    assert page.text.count("Kernels") == 1
    assert page.text.index("Samples") < page.text.index("song") < page.text.index("Audits") < page.text.index("Kernels")
    assert [a["aria-labelledby"] for a in page.all("section")].count("audits") == 1
    manifest.write_text(json.dumps([audit]))
    alone = page_of(run).text
    assert "Audits Kernels" in alone
    assert "Sounds are compressed" not in alone


def test_a_rate_that_mp3_has_not_got_stays_flac(run: RunFolder) -> None:
    soundfile.write(run.path / "samples" / "0-input.flac", np.zeros(2000), 20000)
    [audio] = page_of(run).all("audio")
    assert (
        base64.b64decode(audio["src"].removeprefix("data:audio/flac;base64,"))
        == (run.path / "samples" / "0-input.flac").read_bytes()
    )


def test_the_page_can_be_used_without_seeing_it(run: RunFolder) -> None:
    page = page_of(run)
    assert all(image["alt"].strip() for image in page.all("img"))
    assert all("controls" in audio and audio["aria-label"] for audio in page.all("audio"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(ids) == len(set(ids))
    named = {a["aria-labelledby"] for _, a in page.found if "aria-labelledby" in a}
    used = set(re.findall(r"url\(#([^)]+)\)", page.source)) | {a["xlink:href"][1:] for a in page.all("use")}
    assert named | used <= set(ids)
    assert page.all("html") == [{"lang": "en"}]
    assert [tag for tag, _ in page.found if tag in ("h1", "main", "header", "footer")] == [
        "header",
        "h1",
        "main",
        "footer",
    ]
    assert "width=device-width" in page.source


def test_colours_are_defined_and_legible_in_light_and_dark(run: RunFolder) -> None:
    source = page_of(run).source
    light, dark = (
        dict(re.findall(r"--([\w]+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", source, re.S)[:2]
    )
    assert set(light) == set(dark)
    assert set(re.findall(r"var\(--(\w+)\)", source)) <= set(light) | {"bleed", "colour"}
    assert not re.search("#010[12]", source)  # every stand-in has been replaced

    def luminance(colour: str) -> float:
        whole = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = np.array([int(whole[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        return float(
            np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    for scheme in (light, dark):
        for names, least in (
            (("ink", "faint", "accent", "good", "bad", "busy"), 4.5),
            ([f"c{i}" for i in range(6)], 2.8),
        ):
            for name in names:
                for ground in ("page", "card"):
                    bright, dim = sorted((luminance(scheme[name]), luminance(scheme[ground])), reverse=True)
                    assert (bright + 0.05) / (dim + 0.05) >= least, (name, ground)


def test_hostile_text_is_shown_as_text(run: RunFolder) -> None:
    evil = "</style><script>alert('1')</script>\"><img src=x onerror=alert(2)>\\1"
    name = json.dumps(evil)
    (run.path / "config.yaml").write_text(f"name: {name}\nmodel: {{_target_: {name}}}\n")
    metrics = {f"val/{evil}": 1.0, f"test/{evil}": 2.0}
    facts = {"state": evil, "reason": evil, "metrics": metrics, "table": [evil], "monitor": evil, "signature": evil}
    (run.path / "status.json").write_text(
        json.dumps(STATUS | facts | {"wandb": {"id": evil}, "versions": {evil: evil}})
    )
    (run.path / "metrics.csv").write_text('step,"{}"\n1,2\n'.format(f"train/{evil}".replace('"', '""')))
    entry = dict.fromkeys(("name", "description", "picture", "missing"), evil)
    entry |= {
        "sounds": [{"title": evil, "file": "0-input.flac"}],
        "midi": [{"title": evil, "file": "../../config.yaml"}],
    }
    (run.path / "samples" / "samples.json").write_text(json.dumps([entry]))
    page = page_of(run)
    assert not page.all("script")
    assert not page.all("img")
    assert page.text.count("alert('1')") >= 10
    assert "samples/config.yaml is missing." in page.text  # a manifest can't reach out of its folder


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_the_rest_is_shown(run: RunFolder, name: str) -> None:
    (run.path / name).unlink()
    text = page_of(run).text
    assert f"{name} is missing." in text
    assert ("0.893" in text) == (name != "status.json")
    assert ("Rendered" in text) == (name != "config.yaml")
    assert ("train/loss" in text) == (name != "metrics.csv")
    assert ("estimate as MIDI" in text) == (name != "samples/samples.json")
    assert "demo" in text


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    text = page_of(RunFolder(tmp_path)).text
    assert [name for name in FILES if f"{name} is missing." not in text] == []


def test_missing_and_broken_media_are_named(run: RunFolder) -> None:
    (run.path / "samples" / "0-song.png").unlink()
    (run.path / "samples" / "0-input.flac").write_bytes(b"no sound")
    page = page_of(run)
    assert "samples/0-song.png is missing." in page.text
    assert "samples/0-input.flac can't be read" in page.text
    assert not page.all("img")
    assert not page.all("audio")
    assert page.all("a")


def test_damaged_rows_of_metrics_are_left_out(run: RunFolder) -> None:
    with (run.path / "metrics.csv").open("a") as file:
        file.write("410,0.1,1e\nx,1,1,1,1\n420,0.1,7.125,,,surplus,columns\n430")
    text = page_of(run).text
    assert "metrics.csv has 3 damaged rows, left out here." in text
    assert "train/loss 0.0" in text


def test_a_run_that_diverged_has_a_report(run: RunFolder) -> None:
    (run.path / "metrics.csv").write_text("step,lr,train/loss,val/frame_f1\n1,nan,nan,nan\n2,inf,-inf,nan\n")
    (run.path / "status.json").write_text(
        '{"metrics": {"val/loss": NaN, "best_step": Infinity}, "minutes": NaN, "step": 2}'
    )
    assert "train/loss -inf" in page_of(run).text


@pytest.mark.parametrize("value", ['"\\ud800"', "1" + "0" * 400, "[" * 5000, "1e999"])
def test_json_that_python_reads_but_cannot_write_has_a_report(run: RunFolder, value: str) -> None:
    (run.path / "status.json").write_text(f'{{"state": {value}, "minutes": {value}, "metrics": {{"val/x": {value}}}}}')
    assert run.path.name in page_of(run).text


some_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "file", "title", "sounds", "midi", "picture", *STATUS]), inner, max_size=5
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(FILES),
    content=st.binary(max_size=40) | some_json.map(lambda found: json.dumps(found).encode()),
)
def test_no_content_of_a_file_stops_the_report(run: RunFolder, name: str, content: bytes) -> None:
    for other in FILES:
        (run.path / other).unlink(missing_ok=True)
    (run.path / name).write_bytes(content)
    page_of(run)


def test_what_is_too_large_is_named_instead(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MEDIA_LIMIT", 1000)
    page = page_of(run)
    assert "samples/0-input.flac is too large for this page." in page.text
    assert page.all("img")
    assert not page.all("audio")


def test_figures_table_has_a_column_a_split_and_a_row_a_name() -> None:
    assert figures_table(STATUS) == [
        ["", "val", "test", "baseline"],
        ["note_f1_onset", "0.893", "0.877", "0.400"],
        ["frame_f1", "0.700", "–", "–"],
    ]
    assert figures_table({}) == [[""]]


def test_a_run_folder_is_rewritten_and_its_path_printed(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "report.html").write_text("old")
    main([str(run.path)])
    assert capsys.readouterr().out == f"{run.path / 'report.html'}\n"
    assert "0.893" in Page(run.path / "report.html").text


def test_a_folder_of_runs_is_listed(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    study = run.path.parent
    for name, status in (
        ("broken", "{"),
        ("failed", '{"state": "failed", "reason": "ValueError: [red]no[/x]", "step": 7}'),
    ):
        (study / name).mkdir()
        (study / name / "status.json").write_text(status)
    (study / "no run").mkdir()
    main([str(study)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0123456789ab", "finished", "400", "0.877", "0.700", "12.3"] in lines  # frame_f1 has no test metric
    assert ["broken", "unknown", "–", "–", "–", "–"] in lines
    assert ["failed", "failed", "7", "–", "–", "–"] in lines
    assert ["failed:", "ValueError:", "[red]no[/x]"] in lines
    assert any(line[:4] == ["broken:", "status.json", "is", "damaged"] for line in lines)
    assert sorted(path.parent.name for path in study.glob("*/report.html")) == ["0123456789ab", "broken", "failed"]
    (study.parent / "other" / "run" / "checkpoints").mkdir(parents=True)
    main([str(study.parent)])
    assert "demo/0123456789ab" in capsys.readouterr().out


def test_a_path_without_runs_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="holds no runs"):
        main([str(tmp_path)])


def test_a_command_that_was_refused_before_training_leaves_no_run(tmp_path: Path) -> None:
    cfg = compose([*RENDERED, "name=refused", f"runs={tmp_path}"])
    folder = RunFolder.of(cfg)

    def refused() -> None:
        with pytest.raises(BadInput), folder.writing(cfg):
            raise BadInput("there is no data")

    refused()
    assert list(tmp_path.iterdir()) == []
    folder.update(state="preempted", step=7)
    refused()
    assert folder.status() == {"signature": folder.path.name, "state": "preempted", "step": 7}
    (folder.path / "metrics.csv").write_text("step,train/loss\r\n1,2.0\r\n")
    refused()
    assert folder.status()["state"] == "failed"


def test_recordings_that_training_refuses_leave_no_run(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for number in range(2):  # too few for three splits, which is known once their store is made
        score = np.array([[0.5, 1.0 + number, 60.0, 90.0]])
        soundfile.write(tmp_path / "own" / f"{number}.wav", sound_of(score, 22_050, 2.0), 22_050)
        write_midi(tmp_path / "own" / f"{number}.mid", score)
    own = ["data=audio_folder", f"data.folder={tmp_path / 'own'}", f"data.stores={tmp_path / 'stores'}"]
    with pytest.raises(BadInput, match="it takes three for training, validation and test"):
        training.run(compose([*own, "data.seconds=1", "data.batch_size=2", *TRAINER, f"runs={tmp_path / 'runs'}"]))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_page_that_was_made_while_a_run_trained_is_renewed_when_it_ends(tmp_path: Path) -> None:
    cfg = compose([*RENDERED, "name=watched", f"runs={tmp_path}"])
    folder = RunFolder.of(cfg)
    with folder.writing(cfg):
        (folder.path / "metrics.csv").write_text("step,train/loss\n1,2.0\n")
        assert 'state running">running' in page_of(folder).source
    training._update_page(folder)
    assert 'state finished">finished' in Page(folder.path / "report.html").source

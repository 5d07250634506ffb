"""The page of several runs says what made them, stands alone, stays small, and opens in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from made_runs import EXPONENT, OFFSET, OPTIMUM, SCALE, config_of, write_run, write_sweep
from test_report import Page
from wavespace.analysis import read_runs
from wavespace.commands import report
from wavespace.errors import UserError
from wavespace.reports import write_study
from wavespace.reports.theme import PAGE


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_sweep(tmp_path_factory.mktemp("runs") / "grid")
    for index, folder in enumerate(sorted(root.iterdir())):
        status = json.loads((folder / "status.json").read_text())
        status["metrics"]["test/instrument_probe"] = 0.5 + index / 50
        (folder / "status.json").write_text(json.dumps(status))
        (folder / "report.html").write_text("its own page")
    write_run(
        root / "broken000000", config_of("grid", 0, 1e-3, 16), 1.0, state="failed", reason="<b>nan</b>", metrics={}
    )
    (root / "broken000000" / "status.json").write_text('{"state": "failed", "reason": "<b>nan</b>"}')
    write_study(read_runs([root]), root, title="grid")
    return root


def test_the_page_says_what_made_the_runs(sweep: Path) -> None:
    text = Page(sweep / "report.html").text
    assert "runs 25 finished 24 failed 1" in text
    assert "Best of 12 settings by val/l1_db" in text
    assert re.search(r"with model=Dense, optim.lr=0.00(158489|630957);", text)  # the two beside the optimum
    found = re.findall(r"optim.lr of model=(\w+): least at ([\d.]+) \(([\d.]+) to ([\d.]+)\)", text)
    assert [name for name, *_ in found] == ["Dense", "UNet"]
    for _, value, low, high in found:
        assert float(low) < float(value) < float(high)  # how often they hold the truth is test_fits' business
        assert float(value) == pytest.approx(OPTIMUM, rel=0.2)
    assert "optim.lr carries" in text
    assert "Fidelity against test/instrument_probe: 24 runs" in text
    assert "<b>nan</b>" in text  # as text
    assert "seeds" in text[text.index("Settings, over seeds") :]


def test_a_power_law_is_found_in_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index, latent in enumerate((2, 4, 8, 16, 32, 64, 128)):
        for seed in (0, 1, 2):
            loss = (OFFSET + SCALE * latent**-EXPONENT) * np.exp(0.01 * rng.normal())
            write_run(tmp_path / "sizes" / f"{index}{seed}", config_of("sizes", seed, 1e-3, latent), float(loss))
    text = Page(write_study(read_runs([tmp_path / "sizes"]), tmp_path / "out")).text
    [found] = re.findall(r"against model.latent: L = E \+ a x\^-b with E = ([\d.]+) \(.*?\), b = ([\d.]+)", text)
    assert float(found[0]) == pytest.approx(OFFSET, abs=0.1)
    assert float(found[1]) == pytest.approx(EXPONENT, abs=0.06)
    assert "supports the offset" in text


def test_what_the_data_cannot_carry_is_said_in_words(tmp_path: Path) -> None:
    for index, lr in enumerate((1e-4, 1e-3, 1e-2, 1e-1, 1.0)):
        write_run(tmp_path / "edge" / f"{index}", config_of("edge", 0, lr, 16), 3.0 - index / 2)
    text = Page(write_study(read_runs([tmp_path / "edge"]), tmp_path / "edge")).text
    assert (
        "optim.lr: no parabola. No interior minimum: the best runs have the highest optim.lr that was tried, 1" in text
    )
    only = tmp_path / "none"
    write_run(only / "0", config_of("none", 0, 1e-3, 4), 1.0)
    (only / "0" / "status.json").write_text("{")
    (only / "0" / "metrics.csv").unlink()
    assert "No run has a metric yet" in Page(write_study(read_runs([only]), only)).text


def test_files_hold_every_row(sweep: Path) -> None:
    rows = pd.read_parquet(sweep / "runs.parquet")
    assert len(rows) == 25
    csv = pd.read_csv(sweep / "runs.csv")
    assert list(csv) == list(rows)
    known = rows["val/l1_db"].notna()
    np.testing.assert_array_equal(csv["val/l1_db"][known], rows["val/l1_db"][known].astype(float))
    figures = sorted(path.name for path in (sweep / "figures").iterdir())
    assert "val_l1_db-against-optim.lr.png" in figures
    assert "tradeoff-test_instrument_probe.svg" in figures
    for path in (sweep / "figures").glob("*.svg"):
        assert not any(stand_in in path.read_text() for stand_in in (PAGE.ink, PAGE.line, *PAGE.colours))
    with Image.open(sweep / "figures" / "val_l1_db-against-optim.lr.png") as picture:
        assert picture.width > 700
        assert len(picture.convert("P").getcolors() or []) > 20


def test_the_page_stands_alone_and_can_be_used_without_seeing_it(sweep: Path) -> None:
    page = Page(sweep / "report.html")
    assert not page.all("script")
    assert not page.all("link")
    assert [a["src"] for a in page.all("img") if not a["src"].startswith("data:")] == []
    links = [a["href"] for a in page.all("a")]
    assert len(links) == 24
    assert all((sweep / link).is_file() for link in links)
    drawings = page.all("svg")
    assert len(drawings) >= 4
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in drawings)
    regions = [a for _, a in page.found if a.get("role") == "region"]
    assert all(a["tabindex"] == "0" for a in regions)
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in page.found if "aria-labelledby" in a} <= set(ids)
    assert not any(stand_in in page.source for stand_in in (PAGE.ink, PAGE.line, *PAGE.colours))


def test_the_command_writes_pages_of_runs_only_where_they_are_old(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"{seed}", config_of("two", seed, 1e-3, 4), 1.0 + seed)
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "page")])
    assert "2 pages of runs written anew; up to date: 0" in capsys.readouterr().out
    (tmp_path / "runs" / "1" / "status.json").touch()
    report.main([str(tmp_path / "runs" / "0"), str(tmp_path / "runs" / "1"), "--out", str(tmp_path / "page")])
    assert "1 page of runs written anew; up to date: 1" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "page" / "runs.csv")) == 2
    with pytest.raises(UserError, match="no run has the metric 'val/x'; there are: test/l1_db, val/l1_db"):
        report.main([str(tmp_path / "runs"), "--metric", "val/x"])
    with pytest.raises(UserError, match="is a run folder"):
        report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "runs" / "0")])


def test_many_runs_take_seconds_and_their_page_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(80):
        lr = float(10 ** rng.uniform(-4, -1))
        folder = tmp_path / "big" / f"{index:012x}"
        write_run(folder, config_of("big", 0, lr, 2 ** int(rng.integers(1, 7))), 1 + np.log10(lr / OPTIMUM) ** 2)
    before = time.process_time()
    page = write_study(read_runs([tmp_path / "big"]), tmp_path / "out")
    assert time.process_time() - before < 8
    assert page.stat().st_size < 600_000


def test_a_browser_shows_it_on_a_phone_and_on_a_desk(sweep: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    script = (
        "<script>const wide = document.documentElement.scrollWidth > innerWidth;"
        "document.body.dataset.seen = `wide=${wide} width=${innerWidth}`</script></body>"
    )
    source = (sweep / "report.html").read_text().replace("</body>", script)
    (tmp_path / "page.html").write_text(
        re.sub(r"<meta http-equiv=.*?>", "", source)
    )  # the page itself allows no script
    for width in (500, 1200):
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900", "--enable-logging=stderr", "--v=0",
        ]  # fmt: skip
        shown = subprocess.run(
            [*command, "--dump-dom", f"file://{tmp_path / 'page.html'}"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert "wide=false" in shown.stdout
        assert ":CONSOLE" not in shown.stderr
    original = subprocess.run(
        [*command, "--dump-dom", f"file://{sweep / 'report.html'}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ":CONSOLE" not in original.stderr


def test_hostile_names_and_values_are_shown_as_text(tmp_path: Path) -> None:
    evil = "</svg><script>alert('1')</script>$\\frac{$\n&\"'"
    for index in range(12):
        config = config_of(evil, index % 2, 1e-3 * (1 + index // 2), 4, f"dense.{evil}{index % 3}")
        config["optim"][evil] = [None, float("nan"), 1e300, -1, evil, True][index % 6]
        metrics = {
            f"val/{evil}_f1": index / 20,
            "val/l1_db": [1.0, 1e300, float("nan"), float("inf"), -5.0, 0.0][index % 6],
        }
        write_run(tmp_path / "x" / f"{index}", config, 1.0, metrics=metrics, monitor=f"val/{evil}_f1", table=[evil])
    for metric in (None, "val/l1_db"):
        page = Page(write_study(read_runs([tmp_path / "x"]), tmp_path / "out", metric=metric, title=evil))
        assert not page.all("script")
        assert page.text.count("alert('1')") > 5
        assert all(path.name.isascii() for path in (tmp_path / "out" / "figures").iterdir())

"""metrics.csv is the plain table of the logged rows after any sequence of saves, kills and resumes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavespace.training.callbacks.checkpoints import CsvLogger

Rows = dict[int, dict[str, float]]


def table(path: Path) -> Rows:
    """What another reader finds: one row a step, ascending, empty cells left out."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    return {
        step: {key: float(value) for key, value in row.items() if key != "step" and value}
        for step, row in zip(steps, rows)
    }


def log(logger: CsvLogger, rows: Rows) -> None:
    for step, figures in rows.items():
        logger.log_metrics(figures, step)


TRAINING: Rows = {step: {"train/loss": 1 / 3 + step, "lr": 1e-3 / 7} for step in (1, 2, 3, 4)}
VALIDATION: Rows = {2: {"val/f1": 0.1 + 0.2}, 4: {"val/f1": 1e-300}}


def test_rows_are_appended_with_all_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path, None)
    log(logger, {1: TRAINING[1]})
    logger.save()
    inode, first = path.stat().st_ino, path.read_text()
    assert first == f"step,train/loss,lr\n1,{1 / 3 + 1!r},{1e-3 / 7!r}\n"
    log(logger, {step: TRAINING[step] for step in (4, 2, 3)})
    logger.save()
    assert path.stat().st_ino == inode  # the same file, longer
    assert path.read_text().startswith(first)
    assert table(path) == TRAINING


def test_a_new_metric_becomes_a_column(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path, None)
    log(logger, {1: TRAINING[1]})
    logger.save()
    log(logger, {2: TRAINING[2]})
    log(logger, {2: VALIDATION[2]})
    logger.save()
    assert path.read_text().splitlines()[0] == "step,train/loss,lr,val/f1"
    assert table(path) == {1: TRAINING[1], 2: TRAINING[2] | VALIDATION[2]}


def test_a_metric_for_a_row_that_was_written_goes_into_that_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path, None)
    log(logger, TRAINING)
    log(logger, {2: VALIDATION[2]})
    logger.save()
    log(logger, {4: VALIDATION[4]})  # a run that its time ends validates after it has saved
    logger.finalize("success")
    assert table(path)[4] == TRAINING[4] | VALIDATION[4]


def test_a_run_that_goes_on_drops_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    for path in (whole, broken):
        logger = CsvLogger(path, None)
        for step in TRAINING:
            log(logger, {step: TRAINING[step]})
            log(logger, {step: VALIDATION[step]} if step in VALIDATION else {})
            if path == broken and step == 4:
                log(logger, {4: {"val/other": 3.0}})
            logger.save()
    logger = CsvLogger(broken, 3)
    assert list(table(broken)) == [1, 2, 3]
    log(logger, {4: TRAINING[4] | VALIDATION[4]})
    logger.save()
    assert broken.read_text() == whole.read_text()


def test_a_row_that_a_kill_cut_off_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path, None)
    log(logger, dict.fromkeys((1, 12, 123), TRAINING[1]))
    logger.save()
    whole = path.read_text()
    for cut in range(1, len(whole) - whole.index("\n123,")):
        path.write_text(whole[:-cut])
        CsvLogger(path, 12)
        assert table(path) == {1: TRAINING[1], 12: TRAINING[1]}


@pytest.mark.parametrize("damage", [b"\0" * 4096, b"3,\0\0\0,1\r\n", b"\r\n", b"3,1\r\n", b"3,one,two\r\n"])
@pytest.mark.parametrize("place", ["within", "at the end"])
def test_damaged_rows_are_left_out_of_a_run_that_goes_on(
    damage: bytes, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path, None)
    log(logger, TRAINING)
    logger.save()
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(3 if place == "within" else len(lines), damage)
    path.write_bytes(b"".join(lines))
    logger = CsvLogger(path, 4)
    said = capsys.readouterr().out
    kept = table(path)
    assert all(kept[step] == TRAINING[step] for step in kept)
    assert len(kept) == 4 or (len(kept) == 3 and "1 damaged rows are left out" in said)  # that touch the NULs
    log(logger, {5: TRAINING[1]})
    logger.save()
    assert table(path) == kept | {5: TRAINING[1]}


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path, None)
    log(logger, TRAINING)
    logger.save()
    CsvLogger(path, None)
    assert path.read_text() == "step\n"
    CsvLogger(tmp_path / "new" / "metrics.csv", 7)  # to go on from, but gone
    assert table(tmp_path / "new" / "metrics.csv") == {}


FIGURES = st.dictionaries(st.sampled_from(["a", "b", "c,d", 'e"f']), st.floats(allow_nan=False), min_size=1, max_size=3)
EVENTS = st.lists(
    st.tuples(st.just("log"), st.integers(0, 12), FIGURES)
    | st.tuples(st.just("save"), st.just(0), st.just({}))
    | st.tuples(st.just("kill"), st.integers(0, 12), st.just({})),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(events=EVENTS)
def test_the_file_is_the_plain_table_of_what_was_logged(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, dict[str, float]]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    logger = CsvLogger(path, None)
    logged: Rows = {}
    saved: Rows = {}
    for kind, step, figures in events:
        if kind == "log":
            logger.log_metrics(figures, step)
            logged[step] = logged.get(step, {}) | figures
        elif kind == "save":
            logger.save()
            saved = {step: dict(row) for step, row in logged.items()}
        else:  # what was not saved is lost; what came after the checkpoint is dropped
            logger = CsvLogger(path, step)
            saved = {s: dict(row) for s, row in saved.items() if s <= step}
            logged = {s: dict(row) for s, row in saved.items()}
        assert table(path) == saved


def test_nan_and_infinity_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path, None)
    log(logger, {1: {"a": math.nan, "b": -math.inf}})
    logger.save()
    CsvLogger(path, 1)
    row = table(path)[1]
    assert math.isnan(row["a"])
    assert row["b"] == -math.inf

"""Prepare a dataset: download or unpack it, check it, build its store, and print what is in it."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.table import Table

from wavespace.build import build
from wavespace.config.construction import make
from wavespace.data.base import DataModule
from wavespace.errors import BadInput
from wavespace.signals import if_stopped
from wavespace.terminal import table_console


def prepare(cfg: DictConfig, *, verify: bool = False) -> None:
    """Prepare a configuration's data, and its cached features with `cache=true`; print what is there.

    Args:
        cfg: the configuration.
        verify: hash archives before they are unpacked, and read back the store.
    """
    data: DataModule = build(cfg).data if cfg.cache else make(cfg.data, "data")
    try:
        fresh = not data.is_prepared()
    except BadInput:  # it is not there
        fresh = True
    with if_stopped(lambda: "stopped; what is done is kept, and the same command resumes"):
        if fresh and (terms := data.terms()):
            print(terms)
        data.download(verify)
        data.prepare_data()
        data.setup()
        if verify:
            data.verify()
    print_contents(data)


def print_contents(data: DataModule) -> None:
    """Print what is in each split, and the other facts of a datamodule after `setup`."""
    facts = data.describe()
    splits = {name: counts for name, counts in facts.items() if isinstance(counts, dict)}
    if splits:
        columns = list(dict.fromkeys(column for counts in splits.values() for column in counts))
        table = Table("", *splits, box=None, pad_edge=False)
        for column in columns:
            table.add_row(column, *(f"{counts.get(column, 0):,}" for counts in splits.values()))
        table_console().print(table)
    for name, fact in facts.items():
        if name not in splits:
            print(f"{name}: {fact}")

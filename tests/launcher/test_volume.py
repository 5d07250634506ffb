"""A dataset onto a network volume, by a pod."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

from launcher.cloud import cloud
from processes import forked, wavespace
from standins.runpod_server import Volume
from training import make_medley


def test_a_pod_prepares_a_dataset(tmp_path: Path) -> None:
    overrides = make_medley(tmp_path / "volume")
    with cloud(tmp_path / "cloud") as sky:
        sky.core.volumes["vol1"] = Volume("vol1", "data", 10, "EU-RO-1")
        money = ["hydra.launcher.image=us/wavespace:1", "hydra.launcher.max_cost=1", "hydra.launcher.poll_seconds=1"]

        def run(*words: str) -> CompletedProcess[str]:
            command = ["prepare", *overrides, "hydra/launcher=runpod", *money, *words]
            return forked(wavespace, *command, cwd=sky.folder, **sky.env)

        refused = run()
        assert refused.returncode == 2
        assert "network volume" in refused.stderr
        done = run("hydra.launcher.volume=vol1", "hydra.launcher.clouds=[secure]")
        assert done.returncode == 0, done.stdout + done.stderr
        assert sky.core.list() == []
        (pod,) = sky.core.pods.values()
        assert pod.volume == "vol1"
    assert list((tmp_path / "volume" / "stores").glob("*/manifest.json")), "there is no store"

"""Run folders whose metrics follow known laws, for tests of tables, fits and pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml


def config_of(name: str, seed: int, lr: float, latent: int, model: str = "dense.Dense") -> dict[str, Any]:
    """A configuration with the keys that tests ask for; `model.hidden` is only there for one model."""
    return {
        "name": name,
        "seed": seed,
        "data": {"_target_": "wavespace.data.synthesis.synthetic.Synthetic", "seed": seed, "workers": seed % 2},
        "frontend": {"_target_": "wavespace.frontends.cqt.CQT", "bins": 84},
        "model": {"_target_": f"wavespace.models.{model}", "latent": latent, "dilations": [[1, 1], [2, 1]]}
        | ({"hidden": 64} if model == "dense.Dense" else {}),
        "task": {"_target_": "wavespace.tasks.reconstruction.Reconstruction", "shift": 0},
        "optim": {"_target_": "wavespace.optim.AdamW", "lr": lr},
        "trainer": {"_target_": "pytorch_lightning.Trainer", "max_steps": 100},
    }


def write_run(folder: Path, config: dict[str, Any], loss: float, **facts: Any) -> Path:
    """A finished run: validation falls to `loss` at step 60 and rises a little after it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {"val/l1_db": loss, "val/loss": loss, "test/l1_db": loss + 0.1, "best_step": 60}
    status = {
        "signature": folder.name,
        "state": "finished",
        "reason": None,
        "monitor": "val/l1_db",
        "mode": "min",
        "step": 100,
    }
    status |= {"monitor": "val/l1_db", "mode": "min", "table": ["l1_db"]}
    status |= {"metrics": metrics | facts.pop("metrics", {}), "minutes": 1.5, "cpu_minutes": 1.0}
    (folder / "status.json").write_text(json.dumps(status | facts))
    rows = ["step,lr,train/loss,val/l1_db"]
    for step in range(10, 101, 10):
        val = f"{loss + abs(step - 60) / 100}" if step % 20 == 0 else ""
        rows.append(f"{step},{config['optim']['lr']},{loss + 5 / step},{val}")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    return folder


OPTIMUM, OFFSET, SCALE, EXPONENT = 3e-3, 0.5, 6.0, 0.7


def write_sweep(root: Path, *, seeds: int = 2, noise: float = 0.02) -> Path:
    """A grid of six learning rates and two models, with seeds, `loss = 1 + 0.3 log10(lr / OPTIMUM)**2`."""
    rng = np.random.default_rng(1)
    for model, worse in (("dense.Dense", 0.0), ("unet.UNet", 0.5)):
        for index, lr in enumerate(np.geomspace(1e-4, 1e-1, 6).tolist()):
            for seed in range(seeds):
                loss = 1 + worse + 0.3 * np.log10(lr / OPTIMUM) ** 2 + noise * rng.normal()
                name = f"{model[:2]}{index}{seed}".ljust(12, "0")
                write_run(root / name, config_of(root.name, seed, lr, 16, model), float(loss))
    return root

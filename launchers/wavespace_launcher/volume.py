"""`wavespace prepare … hydra/launcher=runpod`: prepare a dataset on a network volume, by a launch with that one job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wavespace.config import compose, conf_dir
from wavespace.errors import ConfigError, UserError
from wavespace.launchfile import Job
from wavespace_launcher.controller import Controller
from wavespace_launcher.launch import dry_run, preflight, reporting
from wavespace_launcher.ledger import Launch
from wavespace_launcher.plan import PREPARE, Plan, RunpodSettings, digest, new_launch_id

LAUNCHER = "hydra.launcher."


def prepare_on_pod(arguments: Sequence[str]) -> None:
    """Rent a pod that has the volume, and have it prepare a dataset there.

    Raises:
        UserError: nothing was rented, or the job failed.
    """
    own = [word.removeprefix(LAUNCHER) for word in arguments if word.startswith(LAUNCHER)]
    overrides = [word for word in arguments if not word.startswith(("hydra.", "hydra/"))]
    cfg = compose(overrides)
    try:
        given: Any = OmegaConf.merge(
            OmegaConf.load(conf_dir() / "hydra" / "launcher" / "runpod.yaml"), OmegaConf.from_dotlist(own)
        )
    except Exception as error:  # OmegaConf has no exception of its own for what can't be merged
        raise ConfigError(f"{' '.join(own)}: {error}") from None
    plain: Any = OmegaConf.to_container(given, resolve=True)
    settings = RunpodSettings.of(plain)
    if settings.detach:
        raise UserError("`wavespace prepare` waits for its pod: leave out hydra.launcher.detach")
    if not settings.volume:
        raise UserError(
            "a pod's own disk goes with the pod: name a network volume, as in hydra.launcher.volume=<its id at Runpod>"
        )
    jobs = (Job(0, PREPARE, tuple(overrides)),)
    plan = Plan(id=new_launch_id(digest(settings, PREPARE, jobs, None)), study=PREPARE, jobs=jobs, settings=settings)
    if settings.dry_run:
        dry_run(plan)
        return
    runpod, wandb = preflight(settings)
    launch = Launch.create(Path(str(cfg.runs)), plan)
    controller = Controller(launch, runpod, wandb)
    title = f"{' '.join(overrides)} onto volume {settings.volume} ({launch.id})"
    with launch.as_controller(), reporting(controller, title):
        controller.run()
    (result,) = controller.results
    if result.state != "finished":
        raise UserError(
            f"the volume is not ready: the job is {result.state}{f', {result.reason}' if result.reason else ''}"
        )

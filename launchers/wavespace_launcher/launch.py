"""Turn Hydra's override-sets into a launch, and the launch's results into what Hydra's sweeper expects."""

from __future__ import annotations

import atexit
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from wavespace.config import command_line, compose, compose_rewritten, resolved, signature
from wavespace.errors import ConfigError, UserError
from wavespace.launchfile import Job, JobResult, write_results
from wavespace.signals import leave_terminal, set_stop_handler
from wavespace.terminal import table_console
from wavespace.text import counted
from wavespace.training.multirun import enumerates
from wavespace_launcher.controller import Controller, add_jobs, affordable_hours, command, environment, sweep_deleted
from wavespace_launcher.ledger import Launch, redacted, secret_values, without_secrets
from wavespace_launcher.plan import Candidate, Plan, RunpodSettings, digest, drawn_override, new_launch_id, sweep_config
from wavespace_launcher.runpod_client import NoResponse, Offer, Rejected, Runpod, creation
from wavespace_launcher.state import State
from wavespace_launcher.status import Board, table
from wavespace_launcher.wandb_client import Wandb


class Member(NamedTuple):
    """A job and its configuration; `hydra` is Hydra's own section."""

    job: Job
    config: DictConfig
    hydra: DictConfig


def compose_members(config: DictConfig, overrides: Sequence[Sequence[str]], first: int) -> list[Member]:
    """Compose and check every override-set before anything is started.

    Args:
        config: of the multirun.
        overrides: a list of overrides for each job.
        first: the index of the first job.

    Raises:
        ConfigError: every fault of the first override-set that has one.
    """
    folder = command_line(config.hydra)[1]
    found = []
    for index, chosen in enumerate(overrides, first):
        own = compose_rewritten(chosen, folder)
        hydra = OmegaConf.masked_copy(config, ["hydra"])
        with read_write(hydra), open_dict(hydra):
            hydra.hydra.job.id, hydra.hydra.job.num = str(index), index
            hydra.hydra.overrides.task = list(chosen)
        found.append(Member(Job(index, signature(own), tuple(chosen)), own, hydra))
    return found


def job_returns(found: Sequence[JobResult], of: Sequence[Member], raise_on_failure: bool) -> list[JobReturn]:
    """Return what Hydra's sweeper expects: a value for each job, or the exception that it ended with."""
    by_index = {result.index: result for result in found}
    answers = []
    for member in of:
        result = by_index[member.job.index]
        answer = JobReturn(
            overrides=list(member.job.overrides),
            cfg=member.config,
            hydra_cfg=member.hydra,
            working_dir=os.getcwd(),
            task_name=str(member.hydra.hydra.job.name),
        )
        failed = result.state != "finished"
        answer.status = JobStatus.FAILED if failed and raise_on_failure else JobStatus.COMPLETED
        text = f"job {result.index} ({' '.join(result.overrides)}) is {result.state}"
        where = f", on pod {result.pod}" if result.pod else ""
        why = f": {result.reason}" if result.reason else ""
        error = UserError(f"{text}{why}{where}{f'; {result.url}' if result.url else ''}")
        answer.return_value = error if answer.status is JobStatus.FAILED else result.value
        answers.append(answer)
    return answers


class RunpodSession:
    """`hydra/launcher=runpod` within one command: a launch, to which a sweeper that decides as it goes adds jobs."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        given: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        self.settings = RunpodSettings.of(given)
        if folder := command_line(config.hydra)[1]:
            raise UserError(
                f"--config-dir {folder} is not on a pod; build an image with its files in conf/, and launch without it"
            )
        self.keep_pods = not enumerates(config.hydra)
        if self.keep_pods and self.settings.detach:
            raise UserError("hydra.launcher.detach leaves no sweeper to choose the next jobs; launch without it")
        self.controller: Controller | None = None
        self.held = ExitStack()

    def launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run a batch of override-sets to their ends."""
        of = compose_members(self.config, overrides, first)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)  # a sweeper's results go there
        search = read_search(of[0]) if of[0].config.get("search") else None
        if search is not None and len(of) > 1:
            raise UserError("W&B draws a search's values: sweep nothing else on the command line")
        if self.controller is None:
            self._open([member.job for member in of], search, of[0].config)
        else:
            add_jobs(self.controller.launch, [member.job for member in of])
            self.controller.plan = self.controller.launch.plan
        assert self.controller is not None
        planned = {job.index: job.text for job in self.controller.plan.jobs}
        if other := [member.job for member in of if planned[member.job.index] != member.job.text]:
            raise UserError(
                f"job {other[0].index} is '{' '.join(other[0].overrides)}', and was another when launch "
                f"{self.controller.launch.id} began: its sweeper draws anew each time; change `name` to begin anew, "
                "and let hydra.sweeper.sampler have a seed"
            )
        with reporting(self.controller):
            if self.settings.detach:
                self.controller.rent_and_leave()
            else:
                self.controller.run()
        if self.settings.detach and not self.controller.state.settled:
            _print_ends(self.controller)
            raise SystemExit(0)
        found = self.controller.results if search is None else [_search_result(self.controller.results, of[0], search)]
        return job_returns(found, of, self.settings.raise_on_failure)

    def _open(self, jobs: Sequence[Job], search: Mapping[str, Any] | None, config: DictConfig) -> None:
        """Begin a new launch, or continue the one that the same command began; nothing is rented yet."""
        settings, runs, study = self.settings, Path(str(config.runs)), str(config.name)
        what = digest(settings, study, jobs, search)
        same = [launch for launch in Launch.all(runs) if launch.id.endswith(f"-{what}")]
        if any(job.overrides.count("fresh=true") for job in jobs):  # a settled launch of it is no answer
            same = [launch for launch in same if not State.of(launch.events()).settled]
        id = same[-1].id if same else new_launch_id(what)
        plan = Plan(id=id, study=study, jobs=tuple(jobs), settings=settings, search=search, keep_pods=self.keep_pods)
        if settings.dry_run:
            dry_run(plan)
            raise SystemExit(0)
        runpod, wandb = preflight(settings)
        launch = same[-1] if same else Launch.create(runs, plan)
        self.held.enter_context(launch.as_controller())  # before the plan of another controller would be changed
        if same:
            planned = {job.index for job in jobs}
            kept = tuple(job for job in launch.plan.jobs if job.index not in planned)
            launch.save(replace(plan, jobs=(*jobs, *kept)))
            _check_sweeps_exist(launch, wandb)
            print(f"going on with launch {id}")
        self.controller = Controller(launch, runpod, wandb)
        atexit.register(self._close)

    def _close(self) -> None:
        """M7: end the pods whatever ends this process, unless they were left on purpose."""
        controller = self.controller
        if controller is not None and not (controller.state.settled or controller.gave_up or self.settings.detach):
            try:
                with interruptible():
                    controller.settle("the command ended")
            except (KeyboardInterrupt, UserError) as error:  # nobody would catch it
                print(f"wavespace: {str(error) or 'gave up'}", file=sys.stderr)
            finally:
                if isinstance(controller.show, Board):  # of the last batch; what it drew has begun anew
                    controller.show.close()
            save_results(controller)
        self.held.close()


@contextmanager
def reporting(controller: Controller, title: str | None = None) -> Iterator[None]:
    """Show a launch's progress; at the end, an interruption's too, save and print the results."""
    board = controller.show = Board(title or f"{controller.plan.study} on Runpod ({controller.launch.id})")
    with interruptible():
        try:
            yield
        finally:
            board.close()
            save_results(controller)


def save_results(controller: Controller) -> None:
    """Save and print the table of all results; jobs that a settled launch has not done get its reason."""
    now = controller.clock.time()
    spent, why = controller.state.spent(now), redacted(controller.state.draining or "")
    if controller.state.settled:
        reason = f"the launch ended before it was done ({why})"
        controller.results = [job if job.ended else replace(job, reason=reason) for job in controller.results]
    found, folder = controller.results, controller.launch.folder
    write_results(folder, found, launch=controller.launch.id, spent=round(spent, 4), why=why)
    console = table_console()
    console.print(table(found, controller.settings.metric))
    console.print(f"${spent:.2f} spent, at most; {folder / 'results.json'}")
    if why and not all(result.state == "finished" for result in found):
        console.print(f"ended: {why}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C: all end what costs money."""

    def interrupt(number: int, _: object) -> None:
        leave_terminal(number)
        raise KeyboardInterrupt

    before = set_stop_handler(interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- Before anything is rented -------------------------------------------------------------------------------


def preflight(settings: RunpodSettings) -> tuple[Runpod, Wandb]:
    """Check what can be known before renting; return the two accounts.

    Raises:
        UserError: no key, no such GPU, too little money, a secret that would be sent in plain text.
    """
    if "WANDB_API_KEY" not in {*settings.secrets, *settings.env}:
        raise UserError(
            "hydra.launcher.secrets: pods need WANDB_API_KEY; make a Runpod secret of that name (its console, Secrets)"
        )
    plain = secret_values()
    if shown := [name for name, value in settings.env.items() if any(secret in value for secret in plain)]:
        raise ConfigError(
            f"hydra.launcher.env.{shown[0]} would send a secret in plain text; make a Runpod secret of it, "
            "and name that in hydra.launcher.secrets"
        )
    runpod = Runpod()
    prices = {
        candidate: price for candidate in settings.candidates if (price := _offered_price(runpod, candidate, settings))
    }
    if not prices:
        raise UserError(
            f"hydra.launcher.gpus: {' and '.join(settings.gpus)} are not offered in "
            f"{' or '.join(settings.clouds)} cloud"
        )
    if not any(affordable_hours(settings, 0.0, price, alone=True) for price in prices.values()):
        candidate = min(prices, key=lambda candidate: prices[candidate])
        raise UserError(
            f"hydra.launcher.max_cost={settings.max_cost:g} is less than an hour of the cheapest pod: "
            f"{candidate} costs ${prices[candidate]:g} an hour"
        )
    return runpod, Wandb(settings.entity, settings.project)


def _offered_price(runpod: Runpod, candidate: Candidate, settings: RunpodSettings) -> float | None:
    for attempt in range(4):
        try:
            return runpod.price(candidate, settings.spot)
        except Rejected as error:
            raise UserError(str(error)) from None
        except NoResponse as error:
            if attempt == 3:
                raise UserError(f"{error}; try again later") from None
            time.sleep(1)
    return None


def _check_sweeps_exist(launch: Launch, wandb: Wandb) -> None:
    """Refuse to continue a launch whose sweeps were deleted at W&B."""
    state = State.of(launch.events())
    if not state.ids:
        return
    try:
        there = {sweep.name for sweep in wandb.sweeps(launch.id)}
    except NoResponse as error:
        raise UserError(f"{error}; try again later") from None
    if gone := [name for name in state.ids if name not in there]:
        raise UserError(sweep_deleted(gone[0], launch.id))


def read_search(member: Member) -> dict[str, Any]:
    """Return the W&B search of a configuration, checked against it.

    Raises:
        ConfigError: it lacks something, or a parameter is no key of the configuration.
    """
    search = dict(resolved(member.config)["search"])
    known = ("method", "metric", "parameters", "run_cap", "early_terminate")
    if faults := [key for key in search if key not in known] or [key for key in known[:4] if not search.get(key)]:
        raise ConfigError(f"search.{faults[0]} is missing or not known; a search has {', '.join(known)}")
    for values in itertools.zip_longest(
        *(_search_overrides(key, space) for key, space in search["parameters"].items())
    ):
        compose([*member.job.overrides, *(value for value in values if value is not None)])
    return search


def _search_overrides(key: str, space: Mapping[str, Any]) -> list[str]:
    """Return overrides that a parameter may become: each of its values, or the ends of its range."""
    found = space.get("values") or [space[name] for name in ("value", "min", "max", "mu") if name in space]
    if not found:
        raise ConfigError(f"search.parameters.{key} has neither value, values, min and max, nor mu")
    if str(space.get("distribution")).removeprefix("q_") in ("log_uniform", "log_normal"):
        found = [math.exp(exponent) for exponent in found]
    return [drawn_override(key, value) for value in found]


def dry_run(plan: Plan) -> None:
    """Print what would be done, and what it could cost; only prices are asked for."""
    settings = plan.settings
    jobs = len(plan.jobs) if plan.search is None else int(plan.search["run_cap"])
    print(
        f"launch {plan.id}: {counted(jobs, 'jobs')}, at most {counted(settings.max_pods, 'pods')}, "
        f"${settings.max_cost:g}\n"
    )
    for job in plan.jobs:
        print(f"  {job.index:>4}  {job.signature}  {redacted(' '.join(job.overrides))}")
    sweep = sweep_config(plan, f"{plan.id}-1", plan.jobs)
    print("\nsweep at W&B:\n" + json.dumps(without_secrets(sweep), indent=2))
    prices: dict[Candidate, float | None] = {}
    try:
        runpod = Runpod()
        prices = {candidate: _offered_price(runpod, candidate, settings) for candidate in settings.candidates}
    except UserError as error:
        print(f"\nprices are not known: {error}")
    for candidate, price in prices.items():
        print(f"\n{candidate}: " + ("not offered" if price is None else f"${price:g} an hour"), end="")
    ceiling = min(
        settings.max_cost,
        min(settings.max_pods, jobs) * settings.max_hours * max((p or 0 for p in prices.values()), default=1e9),
    )
    print(f"\nprice ceiling: ${ceiling:.2f} (pods x hours x price, never more than max_cost)")
    name, until = "…-0-1", time.time() + settings.max_hours * 3600
    start = command(plan, f"{settings.entity or '<your default entity>'}/{settings.project}", name, until)
    env = without_secrets(environment(settings, 0.0))
    offer = Offer(name, settings.candidates[0], 0.0, until, start, env, settings)
    print("request to Runpod:\n" + redacted(creation(offer)))


def _print_ends(controller: Controller) -> None:
    """Print how pods of a detached launch end (M3), and how to attach to it."""
    state, id = controller.state, controller.launch.id
    print(
        f"\nleft {counted(len(state.live), 'pods')} of launch {id} alone, "
        f"${state.committed(time.time()):.2f} at most. Each ends\n"
        f"  - when no job is left for {controller.settings.idle_timeout:g} minutes, by its own entry;\n"
        f"  - after {controller.settings.max_hours:g} hours, by Runpod's terminateAfter;\n"
        f"  - with `wavespace pods stop {id}`.\n"
        f"`wavespace pods attach {id}` resumes it: it tries lost jobs again and gives the results."
    )


def _search_result(found: Sequence[JobResult], of: Member, search: Mapping[str, Any]) -> JobResult:
    """Return the best run's metric as the result of the whole search."""
    name, sign = search["metric"]["name"], -1 if search["metric"].get("goal") == "minimize" else 1
    done = [result.metrics for result in found if result.state == "finished" and result.metrics]
    if values := [sign * metrics[name] for metrics in done if name in metrics]:
        return JobResult(of.job.index, of.job.overrides, "finished", value=sign * max(values))
    return JobResult(of.job.index, of.job.overrides, "failed", reason=f"no run has finished with {name}")

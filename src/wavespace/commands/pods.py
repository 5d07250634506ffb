"""`wavespace pods status|attach|stop|reap|cost`: show and end launches on rented GPUs."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from wavespace.errors import BadInput, UserError
from wavespace.terminal import Arguments, folder_or_file, table_console
from wavespace.text import printable_text

if TYPE_CHECKING:
    from wavespace_launcher.controller import Controller
    from wavespace_launcher.ledger import Launch
    from wavespace_launcher.runpod_client import Pod

COMMANDS = {
    "status": "what each launch is doing; of one launch, every job and pod",
    "attach": "continue a launch: watch it, try lost jobs again, end its pods when all jobs are done",
    "stop": "end a launch: training is saved, pods are ended, its sweeps are closed",
    "reap": "end the pods of launches without a controller, as after a crash of this machine; of detached ones by name",
    "cost": "dollars spent, at most, by launch and pod",
}


def main(arguments: Sequence[str]) -> None:
    """Run `wavespace pods COMMAND [launch]`."""
    parser = Arguments(
        prog="wavespace pods",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Launches on rented GPUs (docs/runpod.md).\n\n"
        + "\n".join(f"  {command:<8}{text}" for command, text in COMMANDS.items()),
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("launch", nargs="?", help="a launch's id, or a part of it; without one: all, or the newest")
    parser.add_argument("--runs", type=folder_or_file, default=os.environ.get("WAVESPACE_RUNS", "runs"))
    given = parser.parse_args(arguments)

    from wavespace_launcher.ledger import Launch

    launches = [Launch.named(given.runs, given.launch)] if given.launch is not None else Launch.all(given.runs)
    if not launches:
        raise UserError(f"there is no launch in {given.runs / 'launches'}; --runs names another folder of runs")
    if given.command == "reap":
        return reap(launches, named=given.launch is not None)
    command = {"status": status, "attach": attach, "stop": stop, "cost": cost}[given.command]
    if given.command in ("attach", "stop"):
        launches = launches[-1:]
    command(launches)


def status(launches: Sequence[Launch]) -> None:
    """Print a table of launches by their folders alone; for a single launch, ask W&B and list jobs and pods."""
    from rich.table import Table

    from wavespace.launchfile import read_results
    from wavespace_launcher.state import State
    from wavespace_launcher.status import table

    console = table_console()
    rows = Table("launch", "state", "jobs", "done", "failed", "pods", "$", "of $", box=None)
    for launch in launches:
        try:
            plan, state, found = launch.plan, State.of(launch.events()), read_results(launch.folder)
        except BadInput as error:
            if len(launches) == 1:
                raise
            rows.add_row(printable_text(launch.id), printable_text(str(error)), *["-"] * 6)
            continue
        trouble = ""
        if len(launches) == 1 and not state.settled:
            controller = _controller(launch.read_only())
            controller.update_results()
            found, trouble = controller.results, controller.trouble
        word = "unattended" if state.live else "interrupted"
        word = "settled" if state.settled else "running" if launch.has_controller else word
        done = sum(result.state == "finished" for result in found)
        failed = sum(result.ended for result in found) - done
        money = (f"{state.spent(time.time()):.2f}", f"{plan.settings.max_cost:g}")
        jobs = "search" if plan.search else str(len(plan.jobs))
        rows.add_row(printable_text(launch.id), word, jobs, str(done), str(failed), str(len(state.live)), *money)
    console.print(rows)
    if len(launches) > 1:
        return
    if trouble:
        console.print(trouble)
    console.print(table(found, launch.plan.settings.metric))
    pods = Table("pod", "id", "machine", "state", "$ an hour", box=None)
    for pod in State.of(launch.events()).pods.values():
        word = pod.refused or ("gone" if pod.gone else pod.ending or ("up" if pod.ready else "starting"))
        about = map(printable_text, (pod.name, str(pod.id or "-"), str(pod.candidate), str(word)))
        pods.add_row(*about, f"{pod.price:g}")
    console.print(pods)


def attach(launches: Sequence[Launch]) -> None:
    """Control the launch until it is settled."""
    from wavespace_launcher.launch import reporting

    (launch,) = launches
    with launch.as_controller():
        controller = _controller(launch)
        controller.plan = replace(controller.plan, keep_pods=False)  # no sweeper is left to add jobs
        with reporting(controller):
            controller.run()


def stop(launches: Sequence[Launch]) -> None:
    """End a launch; where another process controls it, ask that process to, and wait."""
    from wavespace_launcher.launch import reporting
    from wavespace_launcher.state import State

    (launch,) = launches
    if launch.has_controller:
        print(f"launch {launch.id} is controlled by another process on this machine, which ends it now")
        launch.request_end()
        while launch.has_controller:
            time.sleep(1)
        if State.of(launch.events()).settled:
            return
    with launch.as_controller():
        controller = _controller(launch)
        with reporting(controller):
            controller.settle("`wavespace pods stop`")


def reap(launches: Sequence[Launch], named: bool = False) -> None:
    """End the pods of launches in this folder that have no controller; list others with our prefix.

    Pods of a detached launch end by themselves: unless it is `named`, those that run and are not past their date stay.
    """
    from wavespace_launcher.plan import launch_of
    from wavespace_launcher.runpod_client import NoResponse, Rejected, Runpod

    known = {launch.id: launch for launch in launches}
    runpod = Runpod()
    try:
        pods = [pod for pod in runpod.list() if (of := launch_of(pod.name)) and (of in known or not named)]
    except (NoResponse, Rejected) as error:
        raise UserError(f"{error}; nothing was ended, try again") from None
    for pod in pods:
        launch = known.get(str(launch_of(pod.name)))
        if launch is None:
            print(f"{pod.name} ({pod.id}) is of a launch that is not in this folder of runs; left alone")
        elif launch.has_controller:
            print(f"{pod.name} ({pod.id}) is of a launch that another process controls; left alone")
        elif not named and (why := _why_left(launch, pod)):
            print(f"{pod.name} ({pod.id}) {why}; `wavespace pods reap {launch.id}` ends it")
        else:
            launch.write("pod.ending", name=pod.name, why="reaped")
            try:
                runpod.terminate(pod.id)
            except (NoResponse, Rejected) as error:
                print(f"{pod.name} ({pod.id}) could not be ended: {error}; run this again")
            else:
                print(f"{pod.name} ({pod.id}) ended")
    if not pods:
        print("there are no pods of ours")


def _why_left(launch: Launch, pod: Pod) -> str | None:
    """Return why a pod without a controller is not ended, if it is not: by its ledger it will end by itself."""
    from wavespace_launcher.state import State

    try:
        state = State.of(launch.events())
    except BadInput as error:
        return f"is left alone: {error}"
    own = state.pods.get(pod.name)
    if own is None or not state.detached or state.draining or pod.exited or time.time() >= own.until:
        return None
    return f"is of a detached launch, and ends by itself, by {datetime.fromtimestamp(own.until):%Y-%m-%d %H:%M}"


def cost(launches: Sequence[Launch]) -> None:
    """Print what pods cost by the ledgers, from each request to the listing that missed the pod: never too little."""
    from rich.table import Table

    from wavespace_launcher.state import State

    rows = Table("launch", "pod", "machine", "hours", "$", box=None)
    total, now = 0.0, time.time()
    for launch in launches:
        state = State.of(launch.events())
        total += state.spent(now)
        for pod in state.pods.values():
            if spent := pod.cost(now):
                hours = spent / pod.price if pod.price else 0.0
                rows.add_row(launch.id, pod.name, str(pod.candidate), f"{hours:.2f}", f"{spent:.2f}")
    rows.add_row("total", "", "", "", f"{total:.2f}")
    table_console().print(rows)


def _controller(launch: Launch) -> Controller:
    from wavespace_launcher.controller import Controller
    from wavespace_launcher.runpod_client import Runpod
    from wavespace_launcher.wandb_client import Wandb

    settings = launch.plan.settings
    return Controller(launch, Runpod(), Wandb(settings.entity, settings.project))

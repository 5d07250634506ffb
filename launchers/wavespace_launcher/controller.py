"""The controller rents pods for the jobs that are left, watches them, issues lost jobs again, and ends every pod.

A step asks Runpod and W&B, records the answers, and acts. All of its state is in the ledger, so it may be killed
between any two lines and continues at the same step. The rules that limit the cost are marked M1 to M10, as in
docs/runpod.md; each has a test that fails without its guard.
"""

from __future__ import annotations

import itertools
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from wavespace.errors import UserError
from wavespace.launchfile import Job, JobResult
from wavespace.text import counted
from wavespace_launcher.ledger import Launch
from wavespace_launcher.plan import (
    MOST_JOBS,
    PREFIX,
    Candidate,
    Plan,
    RunpodSettings,
    launch_of,
    pod_name,
    sweep_config,
)
from wavespace_launcher.runpod_client import NoResponse, Offer, Pod, Rejected, Runpod
from wavespace_launcher.state import PodRecord, State
from wavespace_launcher.status import job_results, search_job_results
from wavespace_launcher.wandb_client import Wandb, WandbRun, WandbSweep

FAILURES = 3
"""So many failed jobs before any success, or pods in a row that did nothing, end a launch; the same command resumes."""

STUCK = 120.0
"""Seconds in which a ready pod waits for a job of an open sweep before the sweep counts as stuck."""

ISSUED = 30.0
"""Seconds after a sweep's end in which a job that it issued last shows up as a run."""

LACKING = ("queued", "starting", "preempted", "retry")
"""States of a job that no run is doing."""

GRACE = 30.0
"""Seconds that a stopped pod has for saving its training before it is ended."""

TRIES = 100
"""Listings that are asked for, at most five seconds apart, when pods are ended at once."""

ARRIVAL = 30.0
"""Seconds until listings show a pod that was rented, or whose request had no answer."""


class Clock(Protocol):
    """Seconds since 1970, and a wait; a test's clock may be its own."""

    def time(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


Show = Callable[[Sequence[JobResult], str], None]


class Controller:
    """Runs one launch, alone; the caller holds `launch.as_controller()`.

    Args:
        launch: its folder.
        runpod: the account.
        wandb: the project.
        clock: `time`, or a test's.
        show: is called with the results and a summary at each step.
    """

    def __init__(
        self, launch: Launch, runpod: Runpod, wandb: Wandb, clock: Clock = time, show: Show | None = None
    ) -> None:
        self.launch, self.runpod, self.wandb, self.clock = launch, runpod, wandb, clock
        self.show: Show = show or (lambda found, note: None)
        self.plan = launch.plan
        self.state = State.of(launch.events())
        self.runs: list[WandbRun] = []
        self.results: list[JobResult] = self._job_results()
        self.sweeps: dict[str, WandbSweep] = {}
        self.missed: dict[str, int] = {}
        self.idle_since: dict[str, float] = {}
        self.full_until = 0.0
        self.looked = False
        self.trouble = ""
        self.end_period: str | None = None
        self.gave_up = False

    @property
    def settings(self) -> RunpodSettings:
        """The settings of the launch."""
        return self.plan.settings

    # --- Running ---------------------------------------------------------------------------------------------

    def run(self) -> list[JobResult]:
        """Work until each job has ended and, unless the plan says that more may come, nothing is left that costs.

        Ctrl-C, SIGTERM and errors of ours all end the pods first; a second Ctrl-C does not wait for training to be
        saved.
        """
        self._resume()
        if self.state.detached:
            self.note("attached")
        with self._ending_pods_whatever_happens():
            while not self.step() and not (self.plan.keep_pods and self._all_ended()):
                self.clock.sleep(self.settings.poll_seconds)
        return self.results

    def rent_and_leave(self) -> None:
        """Rent every pod that can be rented, and return; the pods do their jobs and end by themselves."""
        self._resume()
        with self._ending_pods_whatever_happens():
            while not self.step() and (not self.state.live or any(pod.id is None for pod in self.state.live)):
                self.clock.sleep(self.settings.poll_seconds)
        if not self.state.settled:
            self.note("detached")

    def _resume(self) -> None:
        if self.state.settled or self.state.draining:  # the same command again, with more money or jobs
            self.launch.request_end(False)
            self.note("resumed")

    def settle(self, why: str) -> None:
        """End every pod of the launch and close its sweeps, however long that takes.

        Ctrl-C does not wait for training to be saved; once more leaves pods to their own ends.
        """
        self.end_period = "until it answers (Ctrl-C no longer waits for training to be saved, a second one gives up)"
        try:
            if not self.state.draining:
                self.note("drain", why=why)
            while not self.step():
                self.clock.sleep(self.settings.poll_seconds)
        except KeyboardInterrupt:
            self._end_all()
        except BaseException:
            self._end_all()
            raise

    def _end_all(self) -> None:
        """M1: end what a listing shows under our names, whatever our state says, and what it does not show yet."""
        wait = min(self.settings.poll_seconds, 5.0)
        self.end_period = f"for {TRIES * wait / 60:.0f} minutes or more (Ctrl-C gives up)"
        try:
            for id in [pod.id for pod in self.state.live if pod.id is not None]:
                self._terminate(id)
            asked = max((pod.begun for pod in self.state.live if pod.id is None), default=0.0)
            empty = 0
            for _ in range(TRIES):
                try:
                    found = [pod for pod in self.runpod.list() if self._ours(pod.name)]
                except (NoResponse, Rejected) as error:
                    found = None
                    self._failed_request(error)
                empty = empty + 1 if found == [] else 0
                for pod in found or []:
                    self._terminate(pod.id)
                if empty >= 2 and self.clock.time() - asked > ARRIVAL:
                    return
                self.clock.sleep(wait)
        except KeyboardInterrupt:
            self.gave_up = True
            raise
        raise UserError(
            f"pods of launch {self.launch.id} may still live: Runpod's console shows them as "
            f"{PREFIX}-{self.launch.id}-*; `wavespace pods stop {self.launch.id}` tries again"
        )

    def _failed_request(self, error: Exception) -> None:
        """Note that a request to Runpod failed; while pods are to end, print once what that means for them."""
        self.trouble = str(error)
        if self.end_period is None or not self.state.live:
            return
        names, last = ", ".join(pod.name for pod in self.state.live), max(pod.until for pod in self.state.live)
        print(
            f"{error}: still trying to end {names} {self.end_period}; by hand, `wavespace pods reap {self.launch.id}` "
            f"ends them later, and Runpod itself does at {datetime.fromtimestamp(last):%Y-%m-%d %H:%M} "
            "(terminateAfter)",
            flush=True,
        )
        self.end_period = None

    @contextmanager
    def _ending_pods_whatever_happens(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:  # M7
            self.settle("interrupted")
            raise
        except BaseException:
            self._end_all()
            raise

    def note(self, kind: str, **facts: Any) -> None:
        """Record an event in the ledger, and apply it to the state."""
        self.state.apply(self.launch.write(kind, **facts))

    # --- A step ----------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Observe, record and act; return whether the launch is settled."""
        self.trouble, self.looked = "", False
        listed = self._observe_pods()
        self.update_results()
        if not self.state.draining:
            self._check_end()
        if not self.state.draining:
            self._end_overdue(listed)
            self._create_sweeps()
            self._rent(listed)
            settled = False
        else:
            settled = self._drain(listed)
        self.show(self.results, self._summary())
        return settled

    def _summary(self) -> str:
        now = self.clock.time()
        ready = sum(pod.ready is not None for pod in self.state.live)
        money = f"${self.state.spent(now):.2f} of {self.settings.max_cost:g}"
        draining = f", ending ({self.state.draining})" if self.state.draining else ""
        return f"{ready} of {counted(len(self.state.live), 'pods')} up, {money}{draining}" + (
            f" | {self.trouble}" if self.trouble else ""
        )

    # --- Observe ---------------------------------------------------------------------------------------------

    def _observe_pods(self) -> list[Pod] | None:
        """Return our pods as Runpod lists them; None where it gave no answer (M8: that is never "none")."""
        try:
            listed = [pod for pod in self.runpod.list() if self._ours(pod.name)]
        except (NoResponse, Rejected) as error:
            self._failed_request(error)
            return None
        seen: dict[str, Pod] = {}
        for pod in listed:
            if pod.name in seen:  # rented twice by a request that was sent twice on its way
                self._terminate(pod.id)
                continue
            seen[pod.name] = pod
            self._record_listed(pod)
        for record in self.state.live:
            if record.name in seen:
                self.missed[record.name] = 0
            else:
                self._count_missing(record)
        return list(seen.values())

    def _ours(self, name: str) -> bool:
        """M10: only names of this launch."""
        return launch_of(name) == self.launch.id

    def _record_listed(self, pod: Pod) -> None:
        record = self.state.pods.get(pod.name)
        if record is None:  # a ledger that lost its last lines: what costs is ours all the same
            slot, attempt = pod.name.rsplit("-", 2)[1:]
            until = self.clock.time() + self.settings.max_hours * 3600
            facts = {"slot": int(slot), "attempt": int(attempt), "candidate": ["?", "?", None]}
            self.note("pod.intent", name=pod.name, price=pod.price, until=until, **facts)
            record = self.state.pods[pod.name]
        if record.id != pod.id or not record.live:
            self.note("pod", name=pod.name, id=pod.id)
        if pod.price and pod.price != record.price:
            self.note("pod.price", name=pod.name, price=pod.price)
        if self.clock.time() > record.until:  # Runpod has not kept to its date: it goes on costing
            self.note("pod.overdue", name=pod.name)
        if pod.up and record.ready is None:
            self.note("pod.ready", name=pod.name)
        if pod.exited and not record.stopped and record.ending is None:
            self._end(record, "Runpod stopped it")  # a stopped pod's disk still costs

    def _count_missing(self, record: PodRecord) -> None:
        """Count a listing without a pod: after two of them the pod is gone, or never came; a new one may come late."""
        self.missed[record.name] = self.missed.get(record.name, 0) + 1
        if self.missed[record.name] < 2 or (record.ready is None and self.clock.time() - record.begun <= ARRIVAL):
            return
        if record.id is not None:
            self.note("pod.gone", name=record.name)
        else:
            self.note("pod.refused", name=record.name, why="no answer, and it never appeared")

    def update_results(self) -> None:
        """Update the runs of every sweep; where W&B gives no answer they stay as they were."""
        try:
            looked = [(name, self.wandb.sweep(id)) for name, id in self.state.ids.items()]
            self.sweeps = {name: sweep for name, sweep in looked if sweep is not None}
            runs = list(itertools.chain.from_iterable(self.wandb.runs(id) for id in self.state.ids.values()))
        except NoResponse as error:
            self.trouble = str(error)
            return
        for name in self.state.ids:
            if name not in self.state.closed and not (name in self.sweeps and self.sweeps[name].open):
                self.note("sweep.closed", name=name)
        self.runs = runs
        self.results = self._job_results()
        self.looked = True

    def _job_results(self) -> list[JobResult]:
        now, metric = self.clock.time(), self.settings.metric
        if self.plan.search is not None:
            return search_job_results(self.runs, self.plan.search["parameters"], now, metric)
        return job_results(self.plan.jobs, self.runs, self.settings.retries, now, metric)

    def _all_ended(self) -> bool:
        if self.plan.search is not None:
            return bool(self.state.closed) and all(result.ended for result in self.results)
        return all(result.ended for result in self.results)

    def _left(self) -> int:
        """Return how many jobs a pod could still do."""
        if self.plan.search is not None:
            total = int(self.plan.search["run_cap"])
            return total - sum(result.ended for result in self.results)
        return sum(not result.ended for result in self.results)

    # --- Decide on an end ------------------------------------------------------------------------------------

    def _check_end(self) -> None:
        """Check whether the launch has to end."""
        if self.launch.end_requested():
            self.note("drain", why="`wavespace pods stop`")
            return
        if self._all_ended() and not self.plan.keep_pods and (self.results or self.state.closed):
            self.note("drain", why="every job has ended")
            return
        if refused := [run for run in self.runs if run.refused and self._is_of_now(run)]:  # M6: all have one image
            self.note("drain", why=f"{refused[0].summary.get('reason')}; the same command with it resumes")
            return
        # Not those from before the same command was given again: what made them fail may have been mended.
        new = [run for run in self.runs if run.created > self.state.resumed]
        tried = [run for run in new if run.state == "failed" and not (run.duplicate or run.diverged)]
        failed = {run.id if self.plan.search else run.job: run for run in tried}
        if len(failed) >= FAILURES and not any(result.state == "finished" for result in self.results):  # M6
            why = "; ".join(dict.fromkeys(str(run.summary.get("reason") or run.url) for run in failed.values()))
            self.note("drain", why=f"{counted(len(failed), 'jobs')} failed before any succeeded: {why}")
            return
        if (lazy := self._did_nothing())[:FAILURES] == [True] * FAILURES:  # M5, M6
            idle = counted(lazy.index(False) if False in lazy else len(lazy), "pods")
            self.note("drain", why=f"the last {idle} did nothing")
            return
        if self.state.committed(self.clock.time()) > self.settings.max_cost + 1e-6:  # M2: a price has risen
            known = [pod for pod in self.state.live if pod.id is not None]
            dearest = max(known, key=lambda pod: pod.price, default=None)
            if dearest is not None:
                self._end(dearest, "its price would exceed max_cost")
        if self.looked and (gone := [name for name in self.state.ids if name not in self.sweeps]):
            self.note("drain", why=sweep_deleted(gone[0], self.launch.id))

    def _is_of_now(self, run: WandbRun) -> bool:
        """Whether its pod lives, or did when the launch was last begun: the ones before may have had another image."""
        return any(pod.id == run.pod and pod.existed_after(self.state.resumed) for pod in self.state.pods.values())

    def _did_nothing(self) -> list[bool]:
        """Of the pods of now that have ended or work, newest first: whether it ended without having taken a job."""
        took = {run.pod for run in self.runs}
        now = [pod for pod in self.state.pods.values() if pod.id is not None and pod.existed_after(self.state.resumed)]
        judged = [pod for pod in now if (not pod.live and pod.ending != "surplus") or pod.id in took]
        return [pod.id not in took for pod in reversed(judged)]

    # --- End pods --------------------------------------------------------------------------------------------

    def _end_overdue(self, listed: Sequence[Pod] | None) -> None:
        """M3 and M5: end pods that are late, idle or too many, should their entry and Runpod not do so."""
        now = self.clock.time()
        busy = {run.pod for run in self.runs if run.alive(now)}
        worked = {run.pod: run.heartbeat for run in sorted(self.runs, key=lambda run: run.heartbeat)}
        for name in [name for name in self.idle_since if not self.state.pods[name].live]:
            del self.idle_since[name]
        for pod in [pod for pod in self.state.live if pod.id is not None]:
            if pod.id in busy or pod.ready is None:
                self.idle_since.pop(pod.name, None)
                idle = 0.0
            else:
                since = max(self.idle_since.get(pod.name, now), worked.get(pod.id, 0.0))  # it worked between two looks
                self.idle_since[pod.name] = min(since, now)
                idle = now - self.idle_since[pod.name]
            if now >= pod.until - 1e-3:  # the ledger rounds
                self._end(pod, "its time is over")
            elif pod.ready is None and now - pod.begun > self.settings.boot_timeout * 60:
                self._end(pod, f"it did not start in {self.settings.boot_timeout:g} minutes")
            elif idle > self.settings.idle_timeout * 60 + GRACE:
                self._end(pod, "it had no job")
            elif pod.ending:  # an end that was asked for and did not come
                self._end(pod, pod.ending)
        if listed is not None and not self.plan.keep_pods:  # M4: slots shrink as jobs end
            surplus = len(self.state.live) - min(self.settings.max_pods, self._left())
            spare = [pod for pod in reversed(self.state.live) if pod.id is not None and pod.ready is None]
            # A pod that has just been given a job shows it some seconds later; till then the job's run has no pod.
            given = any(run.state == "pending" for run in self.runs)
            waits = {name: since for name, since in self.idle_since.items() if now - since > GRACE and not given}
            spare += [self.state.pods[name] for name in sorted(waits, key=lambda name: waits[name])]
            for pod in spare[: max(surplus, 0)]:
                self._end(pod, "surplus")

    def _end(self, pod: PodRecord, why: str) -> None:
        if pod.ending != why:
            self.note("pod.ending", name=pod.name, why=why)
        assert pod.id is not None
        self._terminate(pod.id)

    def _terminate(self, pod: str) -> None:
        """Request a pod's end; the next listings show whether it came."""
        try:
            self.runpod.terminate(pod)
        except (NoResponse, Rejected) as error:
            self._failed_request(error)

    def _drain(self, listed: Sequence[Pod] | None) -> bool:
        """End what costs: training first saved (SIGTERM), then the pods, then the sweeps; True when all is over."""
        now = self.clock.time()
        busy = {run.pod for run in self.runs if run.alive(now)}
        for pod in [pod for pod in self.state.live if pod.id is not None]:
            if pod.id in busy and not pod.stopped:
                self.note("pod.stopped", name=pod.name)
                self.idle_since[pod.name] = now
                try:
                    self.runpod.stop(str(pod.id))
                except (NoResponse, Rejected) as error:
                    self.trouble = str(error)
            elif pod.id not in busy or now - self.idle_since.get(pod.name, 0.0) > GRACE:
                self._end(pod, self.state.draining or "")
        if listed is None or listed or self.state.live:
            return False
        # After the pods: an agent kills what it runs, unsaved, when its sweep is cancelled.
        try:
            for sweep in self.wandb.sweeps(self.launch.id):
                self.wandb.close(sweep)
        except NoResponse as error:
            self.trouble = str(error)
            return False
        self.update_results()
        self.note("settled", why=self.state.draining, spent=round(self.state.spent(now), 4))
        return True

    # --- Make sweeps -----------------------------------------------------------------------------------------

    def _create_sweeps(self) -> None:
        """Make sweeps for jobs that no open sweep issues: all at first, later the lost ones, once for each attempt."""
        if self.plan.search is not None:
            if not self.state.sweeps:
                self.note("sweep.intent", name=f"{self.launch.id}-1", jobs=[0])
        else:
            lost = self._never_issued() | {
                result.index for result in self.results if result.state == "retry" and self._over(result)
            }
            planned = self._newest()
            new = {result.index for result in self.results if result.index not in planned and not result.ended}
            waiting = sorted(new | lost)
            for start in range(0, len(waiting), MOST_JOBS):
                name = f"{self.launch.id}-{len(self.state.sweeps) + 1}"
                self.note("sweep.intent", name=name, jobs=waiting[start : start + MOST_JOBS])
        jobs = {job.index: job for job in self.plan.jobs}
        for name in [name for name in self.state.sweeps if name not in self.state.ids]:
            config = sweep_config(self.plan, name, [jobs[index] for index in self.state.sweeps[name]])
            try:
                sweep = self.wandb.create(config)
            except NoResponse as error:
                self.trouble = str(error)
                return
            self.note("sweep", name=name, id=sweep.id)

    def _newest(self) -> dict[int, str]:
        """Return the last sweep that has a job, by the job's index."""
        return {index: name for name, indexes in self.state.sweeps.items() for index in indexes}

    def _over(self, result: JobResult) -> bool:
        """Whether a job's dead run came from the newest sweep that has the job: no other attempt is on its way."""
        run = next((run for run in self.runs if run.id == result.run), None)
        return run is not None and run.sweep == self.state.ids.get(self._newest()[result.index])

    def _never_issued(self) -> set[int]:
        """Jobs without a living run whose newest sweep has closed, or is stuck: it gives a ready pod nothing."""
        now = self.clock.time()
        lacking = {result.index for result in self.results if result.state in LACKING}
        newest = {index: name for index, name in self._newest().items() if index in lacking}
        patience = min(STUCK, self.settings.idle_timeout * 30)
        waits = max((now - since for since in self.idle_since.values()), default=0.0)
        lost: set[int] = set()
        for name in set(newest.values()):
            closed = self.state.closed.get(name)
            if closed is not None:
                # What was issued last shows up as a run some seconds after its sweep has closed.
                if now - closed > min(ISSUED, patience) or not self.state.live:
                    lost |= {index for index, of in newest.items() if of == name}
            elif name in self.sweeps and min(waits, now - self.state.made[name]) > patience:
                try:
                    self.wandb.close(self.sweeps[name])  # what runs goes on; nothing more is issued
                except NoResponse as error:
                    self.trouble = str(error)
        return lost

    # --- Rent pods -------------------------------------------------------------------------------------------

    def _rent(self, listed: Sequence[Pod] | None) -> None:
        """Rent a pod for each job that has none, within M2 and M4; its name is in the ledger before (M1)."""
        if listed is None or not self.state.ids or self.clock.time() < self.full_until:
            return
        if any(pod.unsure for pod in self.state.live):  # one at a time: an unknown answer is cleared up first
            return
        while len(self.state.live) < min(self.settings.max_pods, self._left()):
            slot = next(n for n in itertools.count() if all(pod.slot != n for pod in self.state.live))
            if not self._rent_one(slot):
                return

    def _rent_one(self, slot: int) -> bool:
        """Request one pod, candidate after candidate; return whether one was rented."""
        earlier = [pod for pod in self.state.pods.values() if pod.slot == slot]
        slow = sum(pod.ending is not None and pod.ready is None for pod in earlier)
        candidates = self.settings.candidates
        refusals: list[Rejected] = []
        for candidate in candidates[slow % len(candidates) :] + candidates[: slow % len(candidates)]:
            offer = self._offer(slot, candidate)
            if offer is None:
                continue
            if isinstance(offer, Rejected):
                refusals.append(offer)
                continue
            facts = {"slot": slot, "attempt": int(offer.name.rsplit("-", 1)[1]), "candidate": list(candidate)}
            self.note("pod.intent", name=offer.name, price=offer.price, until=offer.until, **facts)
            try:
                id = self.runpod.create(offer)
            except Rejected as error:
                self.note("pod.refused", name=offer.name, why=str(error))
                refusals.append(Rejected(f"{candidate}: {error}", fatal=error.fatal))
                if error.fatal:
                    break
            except NoResponse as error:
                self.note("pod.unsure", name=offer.name, why=str(error))
                self.trouble = str(error)
                return False
            else:
                self.note("pod", name=offer.name, id=id)
                return True
        self._not_rented(refusals)
        return False

    def _not_rented(self, refusals: Sequence[Rejected]) -> None:
        """Wait before the next request; end a launch without pods for which waiting would not help."""
        now = self.clock.time()
        self.full_until = now + 2 * self.settings.poll_seconds
        if refusals:
            self.trouble = str(refusals[-1])
        if self.state.live:
            return
        if not refusals:
            left = self.settings.max_cost - self.state.spent(now)
            undone = counted(self._left(), "jobs are")
            why = f"${left:.2f} of max_cost are left, too little for another pod; {undone} not done"
            self.note("drain", why=f"{why}: raise hydra.launcher.max_cost and run the same command again")
        elif refusals[-1].fatal:
            self.note("drain", why=self.trouble)
        elif now - self._last_pod() > self.settings.max_hours * 3600:
            self.note("drain", why=f"nothing could be rented for {self.settings.max_hours:g} hours: {self.trouble}")

    def _last_pod(self) -> float:
        """Return when the launch last had a pod, or began."""
        ends = [pod.gone for pod in self.state.pods.values() if pod.id is not None and pod.gone is not None]
        begun = [pod.begun for pod in self.state.pods.values()]
        return max(ends, default=min(begun, default=self.clock.time()))

    def _offer(self, slot: int, candidate: Candidate) -> Offer | Rejected | None:
        """Return what to request: None where the money does not reach (M2), why not where there is no price."""
        now = self.clock.time()
        try:
            price = self.runpod.price(candidate, self.settings.spot)
        except (NoResponse, Rejected, UserError) as error:
            return Rejected(f"{candidate}: {error}", fatal=isinstance(error, Rejected) and error.fatal)
        if price is None:
            return Rejected(f"{candidate}: not offered")
        hours = affordable_hours(self.settings, self.state.committed(now), price, alone=not self.state.live)
        if not hours:
            return None
        attempts = [pod.attempt for pod in self.state.pods.values() if pod.slot == slot]
        name = pod_name(self.launch.id, slot, max(attempts, default=0) + 1)
        until = now + hours * 3600
        start = command(self.plan, self.wandb.path, name, until)
        return Offer(name, candidate, price, until, start, environment(self.settings, price), self.settings)


def command(plan: Plan, path: str, name: str, until: float) -> str:
    """Return a pod's start command, which holds no secret (M9)."""
    words = ["wavespace", "pod-entry", plan.id, "--name", name, "--path", path]
    words += ["--until", f"{until:.0f}", "--idle", f"{plan.settings.idle_timeout:g}"]
    return shlex.join(words + ["--stay"] * plan.keep_pods)


def environment(settings: RunpodSettings, price: float) -> dict[str, str]:
    """Return a pod's variables: Runpod's own secrets by name, never a secret's value (M9)."""
    hosts = {name: os.environ[name] for name in ("WANDB_BASE_URL", "RUNPOD_API_BASE_URL") if name in os.environ}
    secrets = {name: f"{{{{ RUNPOD_SECRET_{secret} }}}}" for name, secret in settings.secrets.items()}
    volume = {"WAVESPACE_RUNS": "/workspace/runs"} if settings.volume else {}
    return hosts | volume | {"WAVESPACE_POD_PRICE": f"{price:g}"} | dict(settings.env) | secrets


def sweep_deleted(sweep: str, launch: str) -> str:
    """Return what to do where a sweep is missing."""
    return (
        f"sweep {sweep} was deleted at W&B, and the runs' results with it; remove the launch's folder "
        f"launches/{launch} and run the command again to begin anew"
    )


def affordable_hours(settings: RunpodSettings, committed: float, price: float, *, alone: bool) -> float:
    """Return the hours that one more pod may live: `max_hours`, or less for a launch's only pod if money ends before.

    0 where that is less than an hour (or than `max_hours`, if those are fewer): it would be spent on starting.
    """
    hours = min(settings.max_hours, (settings.max_cost - committed) / price)
    enough = settings.max_hours if not alone else min(1.0, settings.max_hours)
    return hours if hours >= enough * (1 - 1e-9) else 0.0


def add_jobs(launch: Launch, jobs: Sequence[Job]) -> None:
    """Add to a launch's plan the jobs that it does not have."""
    plan = launch.plan
    known = {job.index for job in plan.jobs}
    if new := [job for job in jobs if job.index not in known]:
        launch.save(replace(plan, jobs=(*plan.jobs, *new)))

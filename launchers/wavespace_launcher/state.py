"""The state of a launch, computed from the events of its ledger: the same live and after a kill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wavespace.errors import BadInput
from wavespace_launcher.plan import Candidate


@dataclass
class PodRecord:
    """A pod that was requested.

    Its name was on disk before the request. `id` comes with the answer, or when a listing shows the name.

    Attributes:
        price: dollars an hour; what was offered, then what the listing says.
        until: when Runpod itself ends it, or when it was last seen after that.
        begun: since when it may cost: the time of asking.
        gone: since when two listings have not shown it, or the time at which it was refused.
        refused: it was not rented, and why.
        ending: why we end it.
    """

    name: str
    slot: int
    attempt: int
    candidate: Candidate
    price: float
    until: float
    begun: float
    id: str | None = None
    ready: float | None = None
    stopped: bool = False
    ending: str | None = None
    gone: float | None = None
    refused: str | None = None
    unsure: bool = False

    @property
    def live(self) -> bool:
        """Whether it may exist, and cost."""
        return self.gone is None and self.refused is None

    def existed_after(self, when: float) -> bool:
        """Whether it lives, or was gone only later."""
        return self.gone is None or self.gone > when

    def cost(self, now: float) -> float:
        """Return dollars until now, at most: from the request to the listing that missed it, but not beyond `until`."""
        if self.id is None and not self.live:
            return 0.0
        end = min(self.until, now if self.gone is None else self.gone)
        return max(end - self.begun, 0.0) / 3600 * self.price

    def reserve(self, now: float) -> float:
        """Return dollars that it may still cost."""
        return max(self.until - now, 0.0) / 3600 * self.price if self.live else 0.0


@dataclass
class State:
    """The state of a launch after some events of its ledger.

    Attributes:
        sweeps: by name, the indexes of the jobs that it issues.
        ids: by name, the id of a sweep that was made.
        made: by name, when that was.
        closed: by name, since when a sweep issues nothing more.
        pods: by name.
        draining: why no more pods are rented; None while the launch goes on.
        settled: nothing of it is left that costs.
        resumed: when it was begun again after its end.
        detached: its controller has left it to its pods, which end by themselves.
    """

    sweeps: dict[str, list[int]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    made: dict[str, float] = field(default_factory=dict)
    closed: dict[str, float] = field(default_factory=dict)
    pods: dict[str, PodRecord] = field(default_factory=dict)
    draining: str | None = None
    settled: bool = False
    resumed: float = 0.0
    detached: bool = False

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> State:
        """Return the state after all events."""
        state = cls()
        for event in events:
            try:
                state.apply(event)
            except (KeyError, TypeError) as error:
                raise BadInput(f"an event of the launch's ledger.jsonl is damaged: it lacks {error}") from None
        return state

    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply one more event."""
        kind, name = event["kind"], event.get("name", "")
        pod = self.pods.get(name)
        if kind == "sweep.intent":
            self.sweeps[name] = list(event["jobs"])
        elif kind == "sweep":
            self.ids[name], self.made[name] = event["id"], event["t"]
        elif kind == "sweep.closed":
            self.closed.setdefault(name, event["t"])
        elif kind == "drain":
            self.draining = event["why"]
        elif kind == "settled":
            self.settled = True
        elif kind == "resumed":
            self.draining, self.settled, self.resumed = None, False, event["t"]
        elif kind in ("detached", "attached"):
            self.detached = kind == "detached"
        elif kind == "pod.intent":
            candidate = Candidate(*event["candidate"])
            self.pods[name] = PodRecord(
                name, event["slot"], event["attempt"], candidate, event["price"], event["until"], event["t"]
            )
        elif pod is None:
            pass
        elif kind == "pod.refused":
            pod.refused, pod.gone = event["why"], event["t"]
        elif kind == "pod.unsure":
            pod.unsure = True
        elif kind == "pod":  # rented, or found by its name
            pod.id, pod.refused, pod.gone, pod.unsure = event["id"], None, None, False
        elif kind == "pod.price":
            pod.price = event["price"]
        elif kind == "pod.overdue":
            pod.until = event["t"]
        elif kind == "pod.ready":
            pod.ready = event["t"]
        elif kind == "pod.stopped":
            pod.stopped = True
        elif kind == "pod.ending":
            pod.ending = event["why"]
        elif kind == "pod.gone":
            pod.gone = event["t"]

    @property
    def live(self) -> list[PodRecord]:
        """Pods that may exist."""
        return [pod for pod in self.pods.values() if pod.live]

    def spent(self, now: float) -> float:
        """Return dollars until now, at most."""
        return sum(pod.cost(now) for pod in self.pods.values())

    def committed(self, now: float) -> float:
        """Return dollars that the launch may cost in all if nothing more is rented."""
        return self.spent(now) + sum(pod.reserve(now) for pod in self.pods.values())

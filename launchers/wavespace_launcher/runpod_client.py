"""Rent, list and end pods of Runpod. Every call can fail, time out, or succeed without an answer.

The SDK's transport carries our own queries: its `create_pod` pastes strings without escaping and has no
`terminateAfter`, the date at which Runpod itself ends a pod. https://docs.runpod.io
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from wavespace.errors import UserError
from wavespace_launcher.ledger import redacted
from wavespace_launcher.plan import Candidate, RunpodSettings


class NoResponse(Exception):
    """No answer, or none that can be read: what was requested may have happened."""


class Rejected(Exception):
    """The service refused the request. `fatal` where no other machine would change that: no key, no balance."""

    def __init__(self, why: str, *, fatal: bool = False) -> None:
        super().__init__(why)
        self.fatal = fatal


@dataclass(frozen=True)
class Pod:
    """A pod as Runpod lists it.

    Attributes:
        price: dollars an hour.
        up: its container runs.
        exited: its container was stopped, by us or by Runpod (spot); it still costs.
    """

    id: str
    name: str
    price: float
    up: bool
    exited: bool


class Offer(NamedTuple):
    """What is sent to rent a pod."""

    name: str
    candidate: Candidate
    price: float
    until: float
    command: str
    env: Mapping[str, str]
    settings: RunpodSettings


class Runpod:
    """The account whose key is `RUNPOD_API_KEY`, or that `runpod config` has stored."""

    def __init__(self) -> None:
        import runpod

        key = os.environ.get("RUNPOD_API_KEY") or runpod.api_key
        if not key:
            raise UserError(
                "there is no Runpod key: set RUNPOD_API_KEY (from Runpod's console, Settings, API keys), "
                "or run `runpod config`"
            )
        runpod.api_key = key  # the SDK does not read the variable
        self._sdk = runpod
        self._gpus: dict[str, dict[str, Any]] = {}

    def list(self) -> list[Pod]:
        """Return every pod of the account.

        Raises:
            NoResponse: no answer; never read it as "no pods".
            Rejected: the key is wrong.
        """
        found = _ask(self._sdk.get_pods)
        if not isinstance(found, list):
            raise NoResponse("Runpod listed no pods, nor said that there are none")
        return [_pod(pod) for pod in found]

    def create(self, offer: Offer) -> str:
        """Rent a pod; return its id.

        Raises:
            Rejected: it was not rented.
            NoResponse: it may have been; look for it by its name.
        """
        from runpod.api.graphql import run_graphql_query

        answer = _ask(lambda: run_graphql_query(creation(offer))["data"][_mutation(offer.settings)])
        if not (isinstance(answer, dict) and answer.get("id")):
            raise NoResponse("Runpod answered without a pod's id")
        return str(answer["id"])

    def terminate(self, pod: str) -> None:
        """End a pod; one that is not there has ended.

        Raises:
            NoResponse: it may live.
            Rejected: Runpod won't end it.
        """
        from runpod.api.graphql import run_graphql_query  # the SDK's own call takes any answer for a yes

        mutation = f"mutation {{ podTerminate(input: {_literal({'podId': pod})}) }}"
        try:
            _ask(lambda: run_graphql_query(mutation)["data"])
        except Rejected as error:
            if not re.search(r"not found|does not exist", str(error), re.IGNORECASE):
                raise

    def stop(self, pod: str) -> None:
        """Send SIGTERM to a pod's processes, so that training is saved; the pod still costs until terminated."""
        _ask(lambda: self._sdk.stop_pod(pod))

    def price(self, candidate: Candidate, spot: bool) -> float | None:
        """Return dollars an hour, as listed; None where this GPU is not offered in that cloud.

        Raises:
            UserError: there is no such GPU; the message names the nearest.
        """
        gpu = candidate.gpu
        if gpu not in self._gpus:
            try:
                self._gpus[gpu] = _ask(lambda: self._sdk.get_gpu(gpu))
            except _NoGpu:
                raise UserError(_no_gpu(gpu, [known["id"] for known in _ask(self._sdk.get_gpus)])) from None
        offered = self._gpus[gpu]
        value = offered.get(f"{candidate.cloud}{'SpotPrice' if spot else 'Price'}")
        return float(value) if value else None


class _NoGpu(Exception):
    """The SDK's ValueError for a GPU that is not in Runpod's list."""


def _ask(call: Callable[[], Any]) -> Any:
    """Call the SDK; its exceptions become `Rejected` or `NoResponse`."""
    import requests
    from runpod.error import AuthenticationError, QueryError

    try:
        return call()
    except AuthenticationError:
        raise Rejected("Runpod does not accept the key in RUNPOD_API_KEY", fatal=True) from None
    except QueryError as error:
        why = redacted(str(error.message))  # not its `query`, which holds all that was sent
        fatal = bool(re.search(r"balance|insufficient funds|spend(ing)? limit|unauthori[sz]ed", why, re.IGNORECASE))
        raise Rejected(why, fatal=fatal) from None
    except requests.RequestException as error:  # also a body that is no JSON, as a gateway's page
        raise NoResponse(f"Runpod gave no answer ({type(error).__name__})") from None
    except (KeyError, TypeError, ValueError) as error:  # 429 has no `data`
        if "No GPU found" in str(error):
            raise _NoGpu from None
        raise NoResponse(f"Runpod's answer can't be read ({type(error).__name__})") from None


def creation(offer: Offer) -> str:
    """Return the GraphQL text that rents a pod."""
    settings, candidate = offer.settings, offer.candidate
    fields: dict[str, Any] = {
        "name": offer.name,
        "imageName": settings.image,
        "cloudType": _Word(candidate.cloud.upper()),
        "gpuTypeId": candidate.gpu,
        "gpuCount": 1,
        "containerDiskInGb": settings.disk,
        "volumeInGb": 0,
        "dockerArgs": offer.command,
        "terminateAfter": datetime.fromtimestamp(offer.until, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "env": [{"key": name, "value": value} for name, value in offer.env.items()],
    }
    if candidate.center:
        fields["dataCenterId"] = candidate.center
    if settings.cuda:
        fields["allowedCudaVersions"] = settings.cuda
    if settings.volume:
        fields |= {"networkVolumeId": settings.volume, "volumeMountPath": "/workspace"}
    if settings.spot:
        fields["bidPerGpu"] = offer.price
    return f"mutation {{ {_mutation(settings)}(input: {_literal(fields)}) {{ id machineId }} }}"


def _mutation(settings: RunpodSettings) -> str:
    return "podRentInterruptable" if settings.spot else "podFindAndDeployOnDemand"


class _Word(str):
    """A GraphQL enum, which has no quotes."""


def _literal(value: Any) -> str:
    if isinstance(value, _Word):
        return value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value)


def _pod(data: Mapping[str, Any]) -> Pod:
    try:
        return Pod(
            str(data["id"]),
            str(data.get("name") or ""),
            float(data.get("costPerHr") or 0.0),
            bool(data.get("runtime")),
            str(data.get("desiredStatus")).upper() in ("EXITED", "TERMINATED"),
        )
    except (KeyError, TypeError, ValueError):
        raise NoResponse("Runpod listed a pod that can't be read") from None


def _no_gpu(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f", did you mean '{close[0]}'?" if close else ""
    return f"hydra.launcher.gpus: Runpod has no GPU '{name}'{hint or '.'} It has: {', '.join(sorted(known))}"

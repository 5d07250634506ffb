"""A Runpod of our own on the loopback interface: pods are process trees, the meter runs, and things go wrong on demand.

Two layers. `RunpodCore` is the account as plain state, on any clock, for tests in virtual time. `RunpodServer` puts the
GraphQL service of Runpod over it, for the unmodified SDK; what the real service is not known to have is an error there.
What is known stands in the SDK 1.12.0, Runpod's documentation and public clients; guesses are marked by (?).
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self
from urllib.parse import parse_qs, urlsplit

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)
from graphql import validation as rules

NO_INSTANCES = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
NO_SPOT = "There are no longer any instances available with the request specifications. Please try again later."
HOST_FULL = "There are not enough free GPUs on the host machine to start this pod."
NOT_FOUND = "pod not found to terminate"
NOT_ALLOWED = "You are not allowed to do this with this API key."  # (?)

Cloud = Literal["SECURE", "COMMUNITY"]


class Refused(Exception):
    """What the service answers in `errors`."""


class Runtime(Protocol):
    """A pod's container."""

    def alive(self) -> bool:
        """Whether the start command runs."""

    def terminate(self) -> None:
        """SIGTERM to the main process alone, as containers are stopped."""

    def kill(self) -> None:
        """End every process that is left."""


class Idle:
    """A container that does nothing until it is told to end."""

    def __init__(self, pod: Pod | None = None) -> None:
        self._alive = True

    def alive(self) -> bool:
        return self._alive

    def terminate(self) -> None:
        self._alive = False

    kill = terminate


@dataclass
class GpuType:
    """Prices in dollars an hour for one GPU; None where there is none of that kind."""

    id: str
    memory: int
    secure: float | None
    community: float | None
    secure_spot: float | None
    community_spot: float | None
    boot_seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.id.removeprefix("NVIDIA ").removeprefix("GeForce ")

    def price(self, cloud: Cloud, spot: bool) -> float | None:
        return {
            ("SECURE", False): self.secure,
            ("SECURE", True): self.secure_spot,
            ("COMMUNITY", False): self.community,
            ("COMMUNITY", True): self.community_spot,
        }[cloud, spot]


def gpu_types() -> list[GpuType]:
    """Some cards, with prices of the usual order."""
    return [
        GpuType("NVIDIA RTX A4000", 16, 0.25, 0.17, 0.13, 0.09),
        GpuType("NVIDIA RTX A5000", 24, 0.27, 0.16, 0.14, 0.09),
        GpuType("NVIDIA GeForce RTX 3090", 24, 0.43, 0.22, 0.22, 0.14),
        GpuType("NVIDIA A40", 48, 0.40, None, 0.20, None),
        GpuType("NVIDIA GeForce RTX 4090", 24, 0.69, 0.34, 0.35, 0.20),
        GpuType("NVIDIA H100 80GB HBM3", 80, 2.99, 2.69, 1.75, 1.50),
    ]


@dataclass
class Volume:
    """A network volume: secure cloud only, and only in its data centre."""

    id: str
    name: str
    size: int
    data_center: str


@dataclass(eq=False)
class Pod:
    """A rented pod.

    Attributes:
        env: as it was sent, so with placeholders of secrets.
        price: dollars an hour for the whole pod.
        key: the pod-scoped API key that its processes get.
        created, up, gone: clock times; up: the container started; gone: it left the account.
        terminate_after, stop_after: clock times at which Runpod itself ends or stops it.
        status: what is wanted: RUNNING, EXITED or TERMINATED.
        ended_by: what took it from the account: "account" or "pod" by the key that asked, "deadline" or "loss".
        starts: how often the start command was started.
        billed: (from, to) of each time on the meter; to is None while it runs.
        runtime: the container.
    """

    id: str
    name: str
    gpu: str | None
    gpu_count: int
    cloud: Cloud
    data_center: str
    price: float
    created: float
    key: str
    image: str = ""
    args: str = ""
    env: dict[str, str] = field(default_factory=dict)
    bid: float | None = None
    terminate_after: float = math.inf
    stop_after: float = math.inf
    volume: str | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    status: str = "RUNNING"
    changed: float = 0.0
    up: float | None = None
    gone: float | None = None
    ended_by: str | None = None
    starts: int = 0
    billed: list[tuple[float, float | None]] = field(default_factory=list)
    runtime: Runtime | None = None
    boot_at: float = 0.0
    kill_at: float | None = None
    restart_at: float | None = None


class Creation(NamedTuple):
    """A pod that was created, when, and how many lived just after."""

    time: float
    pod: Pod
    live: int


class RunpodCore:
    """One account: its pods, what they cost, and where there is room.

    Attributes:
        gpus: by id.
        capacity: GPUs by (GPU id, cloud, data centre) that pods can be put on; 1000 where nothing is said. See `limit`.
        secrets: what `{{ RUNPOD_SECRET_name }}` in a value of the environment stands for, once the pod starts.
        keys: the account's API keys.
        volumes: network volumes by id.
        boot: seconds from a pod's creation to its container's start; infinity is for ever.
        grace: seconds from SIGTERM to SIGKILL.
        restart_seconds: from the end of a start command to its next start.
        list_lag: seconds for which a new pod is missing from `list`, and a pod that is gone still stands there.
        balance: dollars in the account before anything was rented.
        pods: all that ever were, by id.
        created: every creation, in order.
        most_live: the largest number of pods that lived at a time.
    """

    def __init__(
        self,
        start: Callable[[Pod], Runtime] = Idle,
        clock: Callable[[], float] = time.time,
        gpus: Iterable[GpuType] | None = None,
        data_centers: Iterable[str] = ("EU-RO-1", "US-TX-3"),
        keys: Iterable[str] = ("rpa_account",),
    ) -> None:
        self.start = start
        self.clock = clock
        self.gpus = {gpu.id: gpu for gpu in (gpu_types() if gpus is None else gpus)}
        self.data_centers = tuple(data_centers)
        self.keys = set(keys)
        self.capacity: dict[tuple[str, Cloud, str], int] = {}
        self.secrets: dict[str, str] = {}
        self.volumes: dict[str, Volume] = {}
        self.boot: Callable[[Pod], float] = lambda pod: self.gpus[pod.gpu].boot_seconds if pod.gpu else 0.0
        self.grace = 5.0
        self.restart_seconds = 1.0
        self.list_lag = 0.0
        self.balance = 100.0
        self.pods: dict[str, Pod] = {}
        self.created: list[Creation] = []
        self.most_live = 0
        self.lock = threading.RLock()
        # Processes are found by pod ids, so servers side by side need different ones.
        self._token = uuid.uuid4().hex[:9]
        self._closed = self._ticking = False

    # What clients do.

    def create(
        self,
        name: str,
        gpu: str | None,
        *,
        cloud: Literal["SECURE", "COMMUNITY", "ALL"] = "ALL",
        data_center: str | None = None,
        gpu_count: int = 1,
        image: str = "",
        args: str = "",
        env: Mapping[str, str] | None = None,
        bid: float | None = None,
        terminate_after: float | None = None,
        stop_after: float | None = None,
        volume: str | None = None,
        sizes: Mapping[str, Any] | None = None,
    ) -> Pod:
        """Rent a pod: interruptable with a `bid` (dollars an hour per GPU), without GPUs if `gpu` is None."""
        with self.lock:
            self.tick()
            if len(env or {}) > 50:
                raise Refused("A pod can have at most 50 environment variables.")  # (?)
            if volume is not None:
                if volume not in self.volumes:
                    raise Refused("Network volume not found.")  # (?)
                if cloud == "COMMUNITY" or data_center not in (None, self.volumes[volume].data_center):
                    raise Refused(NO_INSTANCES)
                cloud, data_center = "SECURE", self.volumes[volume].data_center
            cloud, data_center, price = self._place(gpu, gpu_count, cloud, data_center, bid)
            number, now = len(self.pods), self.clock()
            pod = Pod(
                id=f"{self._token}{number:05}",
                name=name,
                gpu=gpu,
                gpu_count=gpu_count if gpu else 0,
                cloud=cloud,
                data_center=data_center,
                price=price,
                created=now,
                changed=now,
                key=f"rpa_pod_{uuid.uuid4().hex}",
                image=image,
                args=args,
                env=dict(env or {}),
                bid=bid,
                terminate_after=math.inf if terminate_after is None else terminate_after,
                stop_after=math.inf if stop_after is None else stop_after,
                volume=volume,
                sizes=dict(sizes or {}),
                billed=[(now, None)],
            )
            pod.boot_at = now + self.boot(pod)
            self.pods[pod.id] = pod
            self.created.append(Creation(now, pod, len(self.live())))
            self.most_live = max(self.most_live, self.created[-1].live)
            self.tick()
            return pod

    def list(self) -> list[Pod]:
        """The account's pods, those that were stopped included."""
        with self.lock:
            self.tick()
            lag, now = self.list_lag, self.clock()
            return [
                pod
                for pod in self.pods.values()
                if (pod.gone is None or now < pod.gone + lag) and now >= pod.created + lag
            ]

    def get(self, pod_id: str) -> Pod | None:
        with self.lock:
            self.tick()
            pod = self.pods.get(pod_id)
            return pod if pod and pod.gone is None else None

    def terminate(self, pod_id: str, by: str = "account") -> None:
        """End a pod for good: off the meter and the list at once, SIGTERM now and SIGKILL after the grace."""
        with self.lock:
            pod = self.get(pod_id)
            if pod is None:
                raise Refused(NOT_FOUND)
            self._end(pod, "TERMINATED", self.clock())
            pod.ended_by = by

    def stop(self, pod_id: str) -> Pod:
        with self.lock:
            pod = self.get(pod_id)
            if pod is None:
                raise Refused("pod not found to stop")  # (?)
            self._end(pod, "EXITED", self.clock())
            return pod

    def resume(self, pod_id: str, gpu_count: int = 1) -> Pod:
        with self.lock:
            pod = self.get(pod_id)
            if pod is None:
                raise Refused("pod not found to resume")  # (?)
            if pod.status != "RUNNING":
                if pod.gpu and self._room(pod.gpu, pod.cloud, pod.data_center) < gpu_count:
                    raise Refused(HOST_FULL)
                if pod.runtime:
                    pod.runtime.kill()
                now = self.clock()
                pod.status, pod.changed, pod.runtime, pod.kill_at, pod.up = "RUNNING", now, None, None, None
                pod.billed.append((now, None))
                pod.boot_at = now + self.boot(pod)
                self.most_live = max(self.most_live, len(self.live()))
                self.tick()
            return pod

    # What happens to pods.

    def lose(self, pod: Pod) -> None:
        """The host is gone, and the pod with it: no signal, no trace in the list."""
        with self.lock:
            if pod.runtime:
                pod.runtime.kill()
                pod.runtime = pod.kill_at = None
            if pod.gone is None:
                self._end(pod, "TERMINATED", self.clock())
                pod.ended_by = "loss"

    def spot_stop(self, pod: Pod) -> None:
        """Somebody bid more: SIGTERM, SIGKILL after the grace, and the pod stays in the list, stopped."""
        with self.lock:
            if pod.gone is None and pod.status == "RUNNING":
                self._end(pod, "EXITED", self.clock())

    def limit(self, gpu: str, count: int, *, cloud: Cloud | None = None, data_center: str | None = None) -> None:
        """There is room for `count` GPUs of that type in each place that fits."""
        clouds: tuple[Cloud, ...] = ("SECURE", "COMMUNITY") if cloud is None else (cloud,)
        for place in clouds:
            for center in self.data_centers if data_center is None else (data_center,):
                self.capacity[gpu, place, center] = count

    # What is read off afterwards.

    def live(self) -> list[Pod]:
        """Pods on the meter: wanted RUNNING, whether or not their container is up."""
        with self.lock:
            return [pod for pod in self.pods.values() if pod.gone is None and pod.status == "RUNNING"]

    def cost(self, pod: Pod) -> float:
        """Dollars that one pod cost so far."""
        with self.lock:
            now = self.clock()
            seconds = sum((now if stop is None else stop) - start for start, stop in pod.billed)
            return seconds * pod.price / 3600

    def spent(self) -> float:
        """Dollars that all pods cost so far."""
        with self.lock:
            self.tick()
            return sum(self.cost(pod) for pod in self.pods.values())

    def processes(self) -> list[int]:
        """Processes of pods of this account that are still there."""
        return [pid for pid, mark in _marked() if mark in self.pods]

    # Time.

    def tick(self) -> None:
        """Let happen what is due: ends by the clock, boots, restarts, SIGKILLs."""
        with self.lock:
            if self._closed or self._ticking:  # a start may ask the account things
                return
            self._ticking = True
            try:
                now = self.clock()
                for pod in [*self.pods.values()]:
                    if pod.gone is None or pod.runtime:
                        self._due(pod, now)
            finally:
                self._ticking = False

    def close(self) -> None:
        """End every process at once."""
        with self.lock:
            self._closed = True
            for pod in self.pods.values():
                if pod.runtime:
                    pod.runtime.kill()
                    pod.runtime = None

    def _due(self, pod: Pod, now: float) -> None:
        if pod.gone is None and now >= pod.terminate_after:  # off the meter then, whenever it is seen
            self._end(pod, "TERMINATED", pod.terminate_after)
            pod.ended_by = "deadline"
        elif pod.status == "RUNNING" and now >= pod.stop_after:
            self._end(pod, "EXITED", pod.stop_after)
        if pod.status == "RUNNING":
            self._run(pod, now)
        elif pod.runtime and (now >= (pod.kill_at or 0) or not pod.runtime.alive()):
            pod.runtime.kill()  # with the main process, a container's other processes end
            pod.runtime = pod.kill_at = None

    def _run(self, pod: Pod, now: float) -> None:
        if pod.runtime is None and now >= pod.boot_at:
            pod.up = pod.boot_at
        elif pod.runtime is None or pod.runtime.alive():
            return
        elif pod.restart_at is None:  # the start command ended: it is started again, for ever, and billed
            pod.runtime.kill()
            pod.restart_at = now + self.restart_seconds
            return
        elif now < pod.restart_at:
            return
        pod.restart_at = None
        pod.starts += 1
        pod.runtime = self.start(pod)

    def _end(self, pod: Pod, status: str, when: float) -> None:
        if pod.status == "RUNNING":
            start, _ = pod.billed[-1]
            pod.billed[-1] = (start, max(start, when))
        pod.status, pod.changed, pod.restart_at = status, when, None
        pod.stop_after = math.inf
        if status == "TERMINATED":
            pod.gone = when
        if pod.runtime and pod.kill_at is None:
            pod.kill_at = self.clock() + self.grace
            pod.runtime.terminate()

    def _room(self, gpu: str, cloud: Cloud, data_center: str) -> int:
        taken = sum(
            pod.gpu_count for pod in self.live() if (pod.gpu, pod.cloud, pod.data_center) == (gpu, cloud, data_center)
        )
        return self.capacity.get((gpu, cloud, data_center), 1000) - taken

    def _place(
        self, gpu: str | None, count: int, cloud: str, data_center: str | None, bid: float | None
    ) -> tuple[Cloud, str, float]:
        """The cheapest place with room, and the price of the whole pod there; a bid is what is paid."""
        if gpu is None:
            return "SECURE", data_center or self.data_centers[0], 0.06
        if gpu not in self.gpus:
            raise Refused(NO_INSTANCES)
        places: list[tuple[float, Cloud, str]] = []
        clouds: tuple[Cloud, ...] = ("SECURE", "COMMUNITY")
        for kind in clouds:
            price = self.gpus[gpu].price(kind, bid is not None)
            if cloud in ("ALL", kind) and price is not None and (bid is None or bid >= price):
                for center in self.data_centers:
                    if data_center in (None, center) and self._room(gpu, kind, center) >= count:
                        places.append((price, kind, center))
        if not places:
            raise Refused(NO_INSTANCES if bid is None else NO_SPOT)
        price, kind, center = min(places)
        return kind, center, (price if bid is None else bid) * count

    # Pod-scoped keys.

    def caller(self, key: str) -> Pod | None:
        """The pod that a key is scoped to, or None for the account; KeyError for any other key."""
        with self.lock:
            if key in self.keys:
                return None
            return next(pod for pod in self.pods.values() if pod.key == key and pod.gone is None)


class ProcessRuntime:
    """Containers that are process trees of this machine: give it to `RunpodCore` as `start`.

    A container's disk is a folder: working directory, HOME and TMPDIR, kept from start to start. Its output is appended
    to `<folder>/<pod id>.log`.

    Args:
        folder: for disks and logs.
        base: environment that the image would give, such as PATH.
        core: whose secrets are filled in; it may be set later.
    """

    def __init__(self, folder: Path, base: Mapping[str, str], core: RunpodCore | None = None) -> None:
        self.folder = folder
        self.base = dict(base)
        self.core = core

    def log(self, pod: Pod) -> str:
        """What a pod's processes wrote."""
        path = self.folder / f"{pod.id}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def environment(self, pod: Pod) -> dict[str, str]:
        """What the start command gets."""
        secrets = self.core.secrets if self.core else {}
        disk = str(self.folder / pod.id)
        filled = {
            key: re.sub(r"\{\{\s*RUNPOD_SECRET_(\w+)\s*\}\}", lambda found: secrets.get(found[1], found[0]), value)
            for key, value in pod.env.items()
        }
        runpod = {
            "RUNPOD_POD_ID": pod.id,
            "RUNPOD_API_KEY": pod.key,
            "RUNPOD_GPU_COUNT": str(pod.gpu_count),
            "RUNPOD_DC_ID": pod.data_center,
        } | ({"RUNPOD_VOLUME_ID": pod.volume} if pod.volume else {})
        return {"HOME": disk, "TMPDIR": disk} | self.base | filled | runpod

    def command(self, pod: Pod) -> list[str]:
        """What is started on this machine: the start command itself."""
        return start_command(pod.args)

    def __call__(self, pod: Pod) -> _Tree:
        (self.folder / pod.id).mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{pod.id}.log").open("ab", buffering=0) as log:
            try:
                main = subprocess.Popen(
                    self.command(pod),
                    env=self.environment(pod),
                    cwd=self.folder / pod.id,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except (OSError, ValueError, IndexError) as error:  # the container can't be started, again and again
                log.write(f"OCI runtime create failed: {error}\n".encode())
                main = None
        return _Tree(pod.id, main)


def start_command(args: str) -> list[str]:
    """`dockerArgs` as words: shell-quoted text, or `{"cmd": […], "entrypoint": […]}`."""
    if args.lstrip().startswith("{"):
        parts = json.loads(args)
        return [*parts.get("entrypoint", []), *parts.get("cmd", [])]
    return shlex.split(args)


class _Tree:
    """A main process and whatever came of it, found by RUNPOD_POD_ID in the environment or by its session."""

    def __init__(self, pod_id: str, main: subprocess.Popen[bytes] | None) -> None:
        self.pod_id = pod_id
        self.main = main

    def alive(self) -> bool:
        return self.main is not None and self.main.poll() is None

    def terminate(self) -> None:
        if self.main and self.main.poll() is None:
            self.main.terminate()

    def kill(self) -> None:
        for _ in range(200):  # a process may fork while the others are looked for
            session = self.main.pid if self.main else None
            left = [pid for pid, mark in _marked() if mark == self.pod_id or (session and _session(pid) == session)]
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.main:
                try:
                    self.main.wait(0.01)
                except subprocess.TimeoutExpired:
                    continue
            if not left:
                return
            time.sleep(0.005)


def _marked() -> list[tuple[int, str | None]]:
    """Each process of this machine but ours, with its RUNPOD_POD_ID."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry.name}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:  # it ended, or is another user's
            continue
        if variables == [b""]:  # the kernel's, or a zombie
            continue
        mark = next((text[14:].decode() for text in variables if text.startswith(b"RUNPOD_POD_ID=")), None)
        found.append((int(entry.name), mark))
    return found


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


# The service.

CREATE_FIELDS = """
  name: String imageName: String cloudType: CloudTypeEnum gpuTypeId: String gpuCount: Int
  dataCenterId: String countryCode: String allowedCudaVersions: [String] env: [EnvironmentVariableInput]
  dockerArgs: String ports: String startSsh: Boolean supportPublicIp: Boolean templateId: String
  containerRegistryAuthId: String networkVolumeId: String volumeInGb: Int volumeMountPath: String volumeKey: String
  containerDiskInGb: Int minVcpuCount: Int minMemoryInGb: Int minDownload: Int minUpload: Int minDisk: Int
  stopAfter: DateTime terminateAfter: DateTime
"""
SCHEMA = """
scalar DateTime
enum CloudTypeEnum { ALL SECURE COMMUNITY }
enum PodStatus { CREATED RUNNING RESTARTING EXITED PAUSED DEAD TERMINATED }
enum PodType { INTERRUPTABLE RESERVED BID BACKGROUND }

type Query {
  myself: User
  pod(input: PodFilter): Pod
  gpuTypes(input: GpuTypeFilter): [GpuType]
}
type Mutation {
  podFindAndDeployOnDemand(input: PodFindAndDeployOnDemandInput): Pod
  podRentInterruptable(input: PodRentInterruptableInput!): Pod
  deployCpuPod(input: deployCpuPodInput!): Pod
  podTerminate(input: PodTerminateInput!): Void
  podStop(input: PodStopInput!): Pod
  podResume(input: PodResumeInput!): Pod
}
scalar Void
type User {
  id: ID
  pubKey: String
  clientBalance: Float
  currentSpendPerHr: Float
  networkVolumes: [NetworkVolume]
  pods: [Pod]
}
type NetworkVolume { id: String name: String size: Int dataCenterId: String }
type Pod {
  id: String!
  name: String!
  imageName: String!
  env: [String]
  desiredStatus: PodStatus!
  costPerHr: Float!
  adjustedCostPerHr: Float
  gpuCount: Int!
  dockerArgs: String
  dockerId: String
  machineId: String!
  memoryInGb: Float
  vcpuCount: Float
  podType: PodType
  port: Int
  ports: String
  templateId: String
  uptimeSeconds: Int
  containerDiskInGb: Int
  volumeInGb: Float
  volumeMountPath: String
  createdAt: DateTime
  lastStartedAt: DateTime
  lastStatusChange: String
  networkVolumeId: String
  networkVolume: NetworkVolume
  runtime: PodRuntime
  machine: PodMachineInfo
}
type PodRuntime { uptimeInSeconds: Int ports: [PodRuntimePorts] }
type PodRuntimePorts { ip: String isIpPublic: Boolean privatePort: Int publicPort: Int type: String }
type PodMachineInfo {
  podHostId: String gpuTypeId: String gpuDisplayName: String location: String secureCloud: Boolean dataCenterId: String
}
type GpuType {
  id: String
  displayName: String
  manufacturer: String
  memoryInGb: Int
  maxGpuCount: Int
  cudaCores: Int
  secureCloud: Boolean
  communityCloud: Boolean
  securePrice: Float
  communityPrice: Float
  oneMonthPrice: Float
  threeMonthPrice: Float
  oneWeekPrice: Float
  communitySpotPrice: Float
  secureSpotPrice: Float
  lowestPrice(input: GpuLowestPriceInput): LowestPrice
}
type LowestPrice { minimumBidPrice: Float uninterruptablePrice: Float stockStatus: String }
input GpuTypeFilter { id: String }
input GpuLowestPriceInput { gpuCount: Int! secureCloud: Boolean dataCenterId: String }
input PodFilter { podId: String! }
input PodTerminateInput { podId: String! }
input PodStopInput { podId: String! }
input PodResumeInput { podId: String! gpuCount: Int }
input EnvironmentVariableInput { key: String! value: String! }
input PodFindAndDeployOnDemandInput {
  CREATE_FIELDS
}
input PodRentInterruptableInput {
  bidPerGpu: Float!
  CREATE_FIELDS
}
input deployCpuPodInput {
  instanceId: String
  CREATE_FIELDS
}
""".replace("CREATE_FIELDS", CREATE_FIELDS.strip())

Kind = Literal["lost", "refuse", "429", "500", "html", "slow", "capacity", "no_data"]


@dataclass
class Fault:
    """What shall go wrong, with which operation, and how often."""

    operation: str
    kind: Kind
    times: float
    after: int
    probability: float
    seconds: float


RULES = (  # those that tell of drift; all of GraphQL's would take 3 ms a request
    rules.FieldsOnCorrectTypeRule,
    rules.KnownArgumentNamesRule,
    rules.KnownTypeNamesRule,
    rules.ProvidedRequiredArgumentsRule,
    rules.ScalarLeafsRule,
    rules.UniqueInputFieldNamesRule,
    rules.ValuesOfCorrectTypeRule,
)


class Faults:
    """Faults that wait for their request.

    Attributes:
        fired: those that happened, as (operation, kind), in order.
    """

    def __init__(self, seed: int = 0) -> None:
        self.fired: list[tuple[str, str]] = []
        self._rng = random.Random(seed)
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def fail(
        self,
        operation: str = "*",
        kind: Kind = "500",
        *,
        times: float = 1,
        after: int = 0,
        probability: float = 1.0,
        seconds: float = 0.0,
    ) -> None:
        """Let requests go wrong.

        Args:
            operation: a top-level field, a field of `myself` such as "pods", or "*" for all.
            kind: "lost": it happens, but the answer is cut off. "refuse": it does not happen either.
                "429", "500": that status. "html": a page with 502. "slow": it comes late. "capacity": the sentence that
                there are no instances. "no_data": a null.
            times: how many; infinity for ever.
            after: how many that match go well first.
            probability: of each that then matches.
            seconds: how late "slow" is.
        """
        with self._lock:
            self._waiting.append(Fault(operation, kind, times, after, probability, seconds))

    def clear(self) -> None:
        """No faults from now on."""
        with self._lock:
            self._waiting.clear()

    def pick(self, operations: Iterable[str]) -> Fault | None:
        """The fault that this request gets; it is then used up by one."""
        names = {*operations, "*"}
        with self._lock:
            for fault in self._waiting:
                if fault.operation not in names or fault.times <= 0:
                    continue
                if fault.after > 0:
                    fault.after -= 1
                elif self._rng.random() < fault.probability:
                    fault.times -= 1
                    self.fired.append((fault.operation, fault.kind))
                    return fault
            return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # such as of a client that has gone
            super().handle_error(request, client_address)


class RunpodServer:
    """The GraphQL service of an account, as long as a `with` block lasts; pods that are left then are killed.

    Attributes:
        url: for RUNPOD_API_BASE_URL.
        env: what a client needs: address and account key.
        faults: see `fail`.
        counts: requests by operation.
        requests: their bodies as they came, in order.
        drift: messages of requests that the real service is not known to understand.
    """

    def __init__(self, core: RunpodCore, *, seed: int = 0, tick: float = 0.05) -> None:
        self.core = core
        self.faults = Faults(seed)
        self.fail = self.faults.fail
        self.counts: Counter[str] = Counter()
        self.requests: list[str] = []
        self.drift: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._tick = tick

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60
            disable_nagle_algorithm = True
            server_: RunpodServer = self

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.server_._answer(self, body.decode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.env = {"RUNPOD_API_BASE_URL": self.url, "RUNPOD_API_KEY": min(core.keys)}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self.core.close()

    def _run(self) -> None:
        while not self._stop.wait(self._tick):
            self.core.tick()

    def _answer(self, handler: BaseHTTPRequestHandler, body: str) -> None:
        asked = urlsplit(handler.path)
        query = str(json.loads(body).get("query", ""))
        document, problems = _document(query)
        operations = _operations(document) if document else ["?"]
        with self._lock:
            self.requests.append(body)
            self.counts.update(operations)
        fault = self.faults.pick(operations)
        kind = fault.kind if fault else None
        key = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        key = key or parse_qs(asked.query).get("api_key", [""])[0]
        try:
            caller = self.core.caller(key)
        except StopIteration:
            return _send(handler, 401, {"message": "Unauthorized"})
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        if kind == "refuse":
            return _cut(handler)
        if kind == "429":
            return _send(handler, 429, {"message": "Too many requests"}, {"Retry-After": "1"})
        if kind == "500":
            return _send(handler, 500, {"message": "Internal server error"})
        if kind == "html":
            return _send(handler, 502, "<html><body><h1>502 Bad Gateway</h1></body></html>")
        if kind == "capacity":
            return _send(handler, 200, {"errors": [{"message": NO_INSTANCES}], "data": None})
        if kind == "no_data":
            return _send(handler, 200, {"data": dict.fromkeys(_operations(document, False) if document else [])})
        if asked.path != "/graphql":
            return _send(handler, 404, "<html><body>404 Not Found</body></html>")
        if document is None or problems:
            self._drifted(problems)
            return _send(handler, 200, {"errors": [problem.formatted for problem in problems]})
        result = execute_sync(
            _SCHEMA, document, context_value=(self.core, caller), variable_values=json.loads(body).get("variables")
        )
        assert isinstance(result, ExecutionResult)
        self._drifted([error for error in result.errors or [] if not isinstance(error.original_error, Refused)])
        if kind == "lost":
            return _cut(handler)
        _send(handler, 200, dict(result.formatted))

    def _drifted(self, problems: list[GraphQLError]) -> None:
        with self._lock:
            self.drift += [problem.message for problem in problems]


@lru_cache(1000)
def _document(query: str) -> tuple[DocumentNode | None, list[GraphQLError]]:
    try:
        document = parse(query, no_location=True)
    except GraphQLError as error:
        return None, [error]
    return document, validate(_SCHEMA, document, RULES)


def _operations(document: DocumentNode, deep: bool = True) -> list[str]:
    """Names of the top-level fields, and `deep` of those under `myself`."""
    names = []
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            for node in definition.selection_set.selections:
                if isinstance(node, FieldNode):
                    names.append(node.name.value)
                    if deep and node.name.value == "myself" and node.selection_set:
                        inner = node.selection_set.selections
                        names += [field.name.value for field in inner if isinstance(field, FieldNode)]
    return names


def _send(
    handler: BaseHTTPRequestHandler, status: int, body: dict[str, Any] | str, headers: Mapping[str, str] | None = None
) -> None:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
    handler.send_header("Content-Length", str(len(data)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def _cut(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


# Resolvers: GraphQL's names on the one side, the core's on the other.


def _iso(when: float | None) -> str | None:
    return None if when is None else datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(f"'{text}' is not a time.") from None  # (?)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _volume_seen(volume: Volume) -> dict[str, Any]:
    return {"id": volume.id, "name": volume.name, "size": volume.size, "dataCenterId": volume.data_center}


def _pod_seen(core: RunpodCore, pod: Pod) -> dict[str, Any]:
    now = core.clock()
    uptime = 0 if pod.up is None or pod.status != "RUNNING" else int(now - pod.up)
    gpu = core.gpus.get(pod.gpu or "")
    return pod.sizes | {
        "id": pod.id,
        "name": pod.name,
        "imageName": pod.image,
        "env": [f"{key}={value}" for key, value in pod.env.items()],
        "desiredStatus": pod.status,
        "costPerHr": pod.price,
        "adjustedCostPerHr": pod.price,
        "gpuCount": pod.gpu_count,
        "dockerArgs": pod.args,
        "machineId": f"m{pod.id[-8:]}",
        "memoryInGb": 31,
        "vcpuCount": 8,
        "podType": "RESERVED" if pod.bid is None else "INTERRUPTABLE",
        "uptimeSeconds": uptime,
        "createdAt": _iso(pod.created),
        "lastStartedAt": _iso(pod.up or pod.created),
        "lastStatusChange": f"{pod.status}: {_iso(pod.changed)}",
        "networkVolumeId": pod.volume,
        "networkVolume": _volume_seen(core.volumes[pod.volume]) if pod.volume else None,
        "runtime": {"uptimeInSeconds": uptime, "ports": []} if pod.up is not None and pod.status == "RUNNING" else None,
        "machine": {
            "podHostId": f"{pod.id}-64410000",
            "gpuTypeId": pod.gpu,
            "gpuDisplayName": gpu.name if gpu else None,
            "location": pod.data_center[:2],
            "secureCloud": pod.cloud == "SECURE",
            "dataCenterId": pod.data_center,
        },
    }


def _gpu_seen(gpu: GpuType) -> dict[str, Any]:
    return {
        "gpu": gpu,
        "id": gpu.id,
        "displayName": gpu.name,
        "manufacturer": "Nvidia",
        "memoryInGb": gpu.memory,
        "maxGpuCount": 8,
        "cudaCores": 0,
        "secureCloud": gpu.secure is not None,
        "communityCloud": gpu.community is not None,
        "securePrice": gpu.secure,
        "communityPrice": gpu.community,
        "communitySpotPrice": gpu.community_spot,
        "secureSpotPrice": gpu.secure_spot,
    }


def _myself(_: Any, info: Any) -> dict[str, Any]:
    core, caller = info.context
    return {
        "id": "user_standin",
        "pubKey": None,
        "clientBalance": lambda _: core.balance - core.spent(),
        "currentSpendPerHr": lambda _: sum(pod.price for pod in core.live()),
        "networkVolumes": [_volume_seen(volume) for volume in core.volumes.values()],
        "pods": lambda _: [_pod_seen(core, pod) for pod in core.list() if caller in (None, pod)],
    }


def _own(info: Any, pod_id: str) -> None:
    _, caller = info.context
    if caller is not None and caller.id != pod_id:
        raise Refused(NOT_ALLOWED)


def _pod(_: Any, info: Any, input: dict[str, Any] | None = None) -> dict[str, Any] | None:
    core, caller = info.context
    pod = core.get((input or {}).get("podId", ""))
    return _pod_seen(core, pod) if pod and caller in (None, pod) else None


def _gpu_types(_: Any, info: Any, input: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    core, _caller = info.context
    wanted = (input or {}).get("id")
    return [_gpu_seen(gpu) for gpu in core.gpus.values() if wanted in (None, gpu.id)]


def _lowest_price(seen: dict[str, Any], info: Any, input: dict[str, Any] | None = None) -> dict[str, Any]:
    """Per GPU, where there is room; nulls where there is none (?)."""
    core, _caller = info.context
    wanted, gpu = input or {}, seen["gpu"]
    clouds = {None: "ALL", True: "SECURE", False: "COMMUNITY"}[wanted.get("secureCloud")]
    prices: list[float | None] = []
    for bid in (None, math.inf):
        try:
            cloud, _, _ = core._place(gpu.id, wanted.get("gpuCount", 1), clouds, wanted.get("dataCenterId"), bid)
            prices.append(gpu.price(cloud, bid is not None))
        except Refused:
            prices.append(None)
    stock = None if prices == [None, None] else "High"
    return {"uninterruptablePrice": prices[0], "minimumBidPrice": prices[1], "stockStatus": stock}


def _deploy(_: Any, info: Any, input: dict[str, Any]) -> dict[str, Any]:
    core, caller = info.context
    if caller is not None:
        raise Refused(NOT_ALLOWED)
    sizes = {
        key: input[key]
        for key in ("containerDiskInGb", "volumeInGb", "volumeMountPath", "ports", "templateId")
        if key in input
    }
    pod = core.create(
        input.get("name", ""),
        input.get("gpuTypeId"),
        cloud=input.get("cloudType") or "ALL",
        data_center=input.get("dataCenterId"),
        gpu_count=input.get("gpuCount") or 1,
        image=input.get("imageName", ""),
        args=input.get("dockerArgs") or "",
        env={item["key"]: item["value"] for item in input.get("env") or []},
        bid=input.get("bidPerGpu"),
        terminate_after=_seconds(input.get("terminateAfter")),
        stop_after=_seconds(input.get("stopAfter")),
        volume=input.get("networkVolumeId"),
        sizes=sizes,
    )
    return _pod_seen(core, pod)


def _terminate(_: Any, info: Any, input: dict[str, Any]) -> None:
    _own(info, input["podId"])
    core, caller = info.context
    core.terminate(input["podId"], by="account" if caller is None else "pod")


def _stop(_: Any, info: Any, input: dict[str, Any]) -> dict[str, Any]:
    _own(info, input["podId"])
    core = info.context[0]
    return _pod_seen(core, core.stop(input["podId"]))


def _resume(_: Any, info: Any, input: dict[str, Any]) -> dict[str, Any]:
    _own(info, input["podId"])
    core = info.context[0]
    return _pod_seen(core, core.resume(input["podId"], input.get("gpuCount") or 1))


_SCHEMA = build_schema(SCHEMA)
for _type, _resolvers in {
    "Query": {"myself": _myself, "pod": _pod, "gpuTypes": _gpu_types},
    "Mutation": {
        "podFindAndDeployOnDemand": _deploy,
        "podRentInterruptable": _deploy,
        "deployCpuPod": _deploy,
        "podTerminate": _terminate,
        "podStop": _stop,
        "podResume": _resume,
    },
    "GpuType": {"lowestPrice": _lowest_price},
}.items():
    for _name, _resolver in _resolvers.items():
        _SCHEMA.type_map[_type].fields[_name].resolve = _resolver  # type: ignore[attr-defined]

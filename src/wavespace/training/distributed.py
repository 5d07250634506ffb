"""One run on several devices of a machine: a process each, of which the first keeps the run folder and decides.

Lightning's own launcher guesses how the command was given; here the others are started from the run's config.yaml.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socket import socket
from threading import Event, Thread
from typing import Any

from omegaconf import DictConfig

from wavespace.errors import Incompatible, UserError
from wavespace.runfolder import RunFolder
from wavespace.signals import SIGTERM_EXIT, STOPS, exit_at_once, set_stop_handler
from wavespace.terminal import guarded

PATIENCE = 20.0
"""Seconds that a process of several waits for the others where one of them has failed."""


def check_devices(cfg: DictConfig, data: Any, trainer: Any) -> None:
    """Refuse what several processes can't train.

    Raises:
        Incompatible: it can't be done with these devices, or with the processes that torchrun has started.
    """
    from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
    from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

    world, strategy = trainer.world_size, trainer.strategy
    plain = type(strategy) is DDPStrategy and isinstance(strategy.launcher, _SubprocessScriptLauncher)
    if not (plain or isinstance(strategy, SingleDeviceStrategy)):
        raise Incompatible(
            f"trainer.strategy={cfg.trainer.strategy} is not supported; several devices train with trainer.strategy=ddp"
        )
    if "RANK" in os.environ and (started := int(os.environ.get("WORLD_SIZE", 1))) != world:
        raise Incompatible(
            f"torchrun has started {started} processes, and trainer.devices and trainer.num_nodes make {world}; "
            "set trainer.devices to the processes of a node, and trainer.num_nodes to the nodes"
        )
    if "RANK" not in os.environ and trainer.num_nodes > 1:
        raise Incompatible(
            f"trainer.num_nodes={trainer.num_nodes} takes processes that torchrun has started: on each node "
            f"torchrun --nnodes {trainer.num_nodes} --nproc-per-node {trainer.num_devices} … -m wavespace train …"
        )
    if data.batch_size % world:
        raise Incompatible(
            f"data.batch_size={data.batch_size} can't be shared evenly by {world} devices; take a multiple of {world}"
        )
    if world > 1 and not isinstance(cfg.trainer.val_check_interval, int | float):
        raise Incompatible(
            f"trainer.val_check_interval={cfg.trainer.val_check_interval} goes by the clock of each device; "
            "set it to a number of steps"
        )


def fix_buckets(strategy: Any, world: int) -> None:
    """Have gradients reduced to the same bits after a resume, on the CPU.

    DDP puts them into buckets in another order after its first step, unless it looks for unused parameters. How a sum
    of three or more numbers is grouped depends on its place in a bucket; that of two is the same either way.
    """
    if world > 2 and strategy.root_device.type == "cpu":
        strategy._ddp_kwargs["find_unused_parameters"] = True


@contextmanager
def spawn_ranks(folder: RunFolder, world: int) -> Iterator[None]:
    """Start the other processes of a run on several devices, unless torchrun has; this process is rank 0.

    They read the run's own config.yaml, so it doesn't matter how this one was started. They end when it ends, in
    whatever way. Where one fails while this one is blocked in a call that waits for it, the run is ended.

    Raises:
        ChildProcessError: one of them failed.
    """
    import torch

    if world == 1 or "RANK" in os.environ:
        yield
        return
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    processes = _start_ranks(folder, world, shared)
    # Lightning sets the last one, and a later run of this process would keep to it: sums depend on it.
    before = {name: os.environ.get(name) for name in (*shared, "LOCAL_RANK", "OMP_NUM_THREADS")}
    os.environ.update(shared | {"LOCAL_RANK": "0"})  # else Lightning would start them as well
    over = Event()

    def failure() -> str | None:
        for rank, process in enumerate(processes, start=1):
            if process.poll() not in (None, 0, SIGTERM_EXIT):
                return f"rank {rank} of {world} ended with code {process.returncode} (its message is above)"
        return None

    def watch() -> None:
        while not over.wait(1.0):
            if (reason := failure()) and not over.wait(PATIENCE):
                folder.update(state="failed", reason=f"ChildProcessError: {reason}")
                print(f"wavespace: {reason}", file=sys.stderr, flush=True)
                exit_at_once(1)

    Thread(target=watch, daemon=True).start()
    try:
        yield
    except UserError:  # of which each rank has the same
        raise
    except Exception as error:
        time.sleep(1.0)  # a rank that fails breaks its connections first, and then exits
        if reason := failure():
            raise ChildProcessError(f"{reason}, and this one with {type(error).__name__}: {error}") from error
        raise
    finally:
        over.set()
        for process in processes:
            assert process.stdin
            process.stdin.close()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
            process.wait()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _start_ranks(folder: RunFolder, world: int, shared: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    """Start ranks 1 to `world` - 1, with `shared` in their environment."""
    code = "import sys; from wavespace.training.fit import train_rank; train_rank(sys.argv[1])"
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # which they inherit, so that no signal ends them while they import
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder.path)],
            stdin=subprocess.PIPE,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(1, world)
    ]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    return processes


def run_rank(work: Callable[[], None]) -> None:
    """Do the work of a rank that `spawn_ranks` has started, until rank 0 ends; only rank 0 acts on signals."""
    set_stop_handler(signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    Thread(target=_end_with_the_first, daemon=True).start()
    try:
        guarded(work)
    except Exception:
        traceback.print_exc()
        exit_at_once(1)  # at once, so that the first, whose connection breaks, sees why


def _end_with_the_first() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end is closed, or its process is gone
    exit_at_once(1)

"""One function over many shards: in this process, in a pool of processes of this machine, or on a Ray cluster.

A shard is a slice of a sorted list that becomes one file, which is whole or absent (`files.replacing`). So done means
that the file is there: a killed run goes on with the others, a shard that is worked on twice ends the same, and the
result depends neither on the engine nor on the number and order of the workers.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch

from gan_mask.errors import GanMaskError
from gan_mask.values import Range

R = TypeVar("R")  # what is told of a shard: of how many photos it was, or a little more
Work = Callable[[int, Any], Any]  # number and content of a shard -> that
EngineName = Literal["local", "ray"]
WORKERS = Range(1, 1024)

RETRIES = 3  # of a shard whose worker or machine is lost, or that cannot read or write there
LATE = 2.0  # a second copy of a shard begins when it takes so many times the median, and nothing else is left to begin
RECENT = 1000  # shards, of which that median is
PATIENCE = 1.0  # seconds until stragglers are looked for again
REFRESH = 10.0  # seconds until the size of the cluster is asked for again
CGROUP = Path("/sys/fs/cgroup")
TIDY = 30.0  # seconds until a process hands back memory again: after each batch it would cost 4 % of the time
OBJECT_STORE = 100_000_000  # bytes, of a cluster that is started here: nothing but numbers is sent back

AGAIN = "Run the same command again to continue"


def cores() -> int:
    """That this process may use."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = _of_the_container("cpu.max") or ("max", "")
    return here if quota == "max" else min(here, math.ceil(int(quota) / int(period)))


def memory() -> int:
    """Bytes of this machine that this process may use."""
    known = hasattr(os, "sysconf")  # not on Windows
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 8 << 30
    (most,) = _of_the_container("memory.max") or ("max",)
    return here if most == "max" else min(here, int(most))


def _of_the_container(limit: str) -> list[str]:
    """What Docker and Kubernetes allow, by Linux' cgroups (version 2); nothing where there are none."""
    try:
        return (CGROUP / limit).read_text().split()
    except OSError:
        return []


@dataclass(frozen=True)
class Engine:
    name: EngineName = "local"
    workers: int = 1  # processes of this machine; a running Ray cluster has its own
    address: str = ""  # of a running Ray cluster; empty: what RAY_ADDRESS says, or one that is started here
    device: str = "cpu"  # what a worker needs


def run(
    engine: Engine,
    make: Callable[..., Callable[[int, Any], R]],
    arguments: tuple[Any, ...],
    shards: Mapping[int, Any],
    done: Callable[[R], Any],
) -> None:
    """Work on all shards by `make(*arguments)`, made once per process; `done` gets what it returns for each.

    make, arguments and shards can be pickled. Each process has one thread for the arithmetic, hence the same sums in
    the same order. GanMaskError and OSError of a worker are raised here, the first of them.
    """
    if not shards:
        return
    if engine.name == "ray":
        with _ray(engine, make, arguments, shards) as cluster:
            schedule(shards, cluster, done)
    elif engine.workers == 1:
        with _one_thread():
            work = make(*arguments)
            for number, shard in shards.items():
                done(work(number, shard))
                give_back()
    else:
        with _pool(min(engine.workers, len(shards)), make, arguments, shards) as pool:
            schedule(shards, pool, done, copies=1)  # on this machine a second one would be no faster


# -------------------------------------------------------------------------------------------- who does what when


class Backend(Protocol):
    """What shards are started on. A task is one copy of a shard, begun at once where a slot is free."""

    def slots(self) -> int:
        """Tasks at a time."""

    def start(self, number: int) -> Any:
        """A task, to be compared and hashed."""

    def wait(self, tasks: list[Any], seconds: float) -> Iterable[Any]:
        """Those that have ended; some, unless none does in this time."""

    def result(self, task: Any) -> Any:
        """Of a task that has ended; or its exception."""

    def stop(self, task: Any) -> None:
        """Its result is not wanted any more."""

    def now(self) -> float:
        """Seconds, from whenever."""


def schedule(shards: Iterable[int], backend: Backend, done: Callable[[Any], Any], copies: int = 2) -> None:
    """Work on all shards, in order, as many at a time as there are slots: so the memory does not grow with them.

    When all have begun, free slots take a second copy (unless there is to be one alone) of those that take LATE times
    the median; the first of the two to end counts, and the other is stopped.
    """
    left = deque(shards)
    begun: dict[Any, tuple[int, float]] = {}  # task -> shard, when
    took: deque[float] = deque(maxlen=RECENT)
    twice: set[int] = set()  # shards with a second copy

    def begin(number: int) -> None:
        begun[backend.start(number)] = number, backend.now()

    while left or begun:
        slots = max(backend.slots(), 1)
        while left and len(begun) < slots:
            begin(left.popleft())
        if copies > 1 and took and not left and len(begun) < slots:
            stragglers = late(begun.values(), backend.now() - LATE * statistics.median(took))
            for number in stragglers[: slots - len(begun)]:
                begin(number)
                twice.add(number)
        for task in backend.wait(list(begun), PATIENCE):
            if task not in begun:  # the other copy has ended
                continue
            number, since = begun.pop(task)
            result = backend.result(task)
            took.append(backend.now() - since)
            for other in [other for other, (same, _) in begun.items() if same == number] if number in twice else ():
                del begun[other]
                backend.stop(other)
            done(result)


def late(begun: Iterable[tuple[int, float]], before: float) -> list[int]:
    """Shards of which there is one copy that began before this time, the earliest first."""
    times: dict[int, list[float]] = {}
    for number, since in begun:
        times.setdefault(number, []).append(since)
    alone = sorted((since[0], number) for number, since in times.items() if len(since) == 1)
    return [number for since, number in alone if since < before]


# -------------------------------------------------------------------------------------------- in a worker

_made: tuple[Any, Work] | None = None  # by what, and what


def _work(make: Callable[..., Work], arguments: tuple[Any, ...], number: int, shard: Any) -> Any:
    """Makes what works on the first shard, so that its errors reach the caller, and keeps it for the next."""
    global _made
    if _made is None or _made[0] != (make, arguments):
        torch.set_num_threads(1)
        _made = (make, arguments), make(*arguments)
    give_back()
    return _made[1](number, shard)


_given_back = time.monotonic()


def give_back() -> None:
    """Hand freed memory back to the system, where the C library can (glibc), but not more often than it is worth.

    It keeps what is free between pieces in use, and while photos of many sizes come and go that becomes ever more.
    """
    global _given_back
    if time.monotonic() - _given_back < TIDY:
        return
    _given_back = time.monotonic()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# -------------------------------------------------------------------------------------------- this machine


def _begin() -> None:
    """In a new process of the pool: Ctrl-C is the parent's affair, and a killed parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait_for_end([parent.sentinel]), os._exit(1)), daemon=True).start()


class _Pool:
    def __init__(self, executor: ProcessPoolExecutor, workers: int, begin: Callable[[int], Future[Any]]) -> None:
        self.executor, self.workers, self.start = executor, workers, begin

    def slots(self) -> int:
        return self.workers

    def wait(self, tasks: list[Future[Any]], seconds: float) -> Iterable[Future[Any]]:
        return wait_for(tasks, seconds, FIRST_COMPLETED).done

    def result(self, task: Future[Any]) -> Any:
        return task.result()

    def stop(self, task: Future[Any]) -> None:
        task.cancel()

    def now(self) -> float:
        return time.monotonic()


@contextmanager
def _pool(
    workers: int, make: Callable[..., Work], arguments: tuple[Any, ...], shards: Mapping[int, Any]
) -> Iterator[_Pool]:
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, context, _begin)
    try:
        yield _Pool(executor, workers, lambda number: executor.submit(_work, make, arguments, number, shards[number]))
        executor.shutdown()
    except BrokenProcessPool as error:
        raise GanMaskError(
            f"a worker process died (out of memory?). {AGAIN}; if it repeats, with fewer --workers"
        ) from error
    finally:
        for child in set(multiprocessing.active_children()) - others:  # left after an error or Ctrl-C
            child.terminate()
        executor.shutdown(cancel_futures=True)


# -------------------------------------------------------------------------------------------- Ray


class _Cluster:
    def __init__(self, ray: Any, gpu: bool, begin: Callable[[int], Any]) -> None:
        self.ray, self.kind, self.start = ray, "GPU" if gpu else "CPU", begin
        self._slots, self._asked = 0, -REFRESH

    def slots(self) -> int:
        """Of all its machines that are there now: they come and go."""
        if self.now() - self._asked >= REFRESH:
            self._slots, self._asked = int(self.ray.cluster_resources().get(self.kind, 0)), self.now()
        return self._slots

    def wait(self, tasks: list[Any], seconds: float) -> Iterable[Any]:
        return self.ray.wait(tasks, num_returns=1, timeout=seconds)[0]

    def result(self, task: Any) -> Any:
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            raise GanMaskError(
                f"a shard lost its worker {RETRIES + 1} times (out of memory?): {str(error).splitlines()[0]}. {AGAIN}"
            ) from error

    def stop(self, task: Any) -> None:
        self.ray.cancel(task, force=True)  # it may hang

    def now(self) -> float:
        return time.monotonic()


@contextmanager
def _ray(
    engine: Engine, make: Callable[..., Work], arguments: tuple[Any, ...], shards: Mapping[int, Any]
) -> Iterator[_Cluster]:
    """A cluster that lives before and after, or one of this machine for as long as it is needed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that is started here, which has nothing else to do
    try:
        import ray
    except ImportError:
        raise GanMaskError("--engine ray needs the extra [ray]: pip install 'gan_mask[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        running = engine.address or os.environ.get("RAY_ADDRESS")
        here: dict[str, Any] = {"num_cpus": engine.workers, "object_store_memory": OBJECT_STORE}
        try:
            ray.init(
                engine.address or None, include_dashboard=None if running else False, log_to_driver=False,
                logging_level="warning", **({} if running else here),
            )  # fmt: skip
        except (OSError, RuntimeError, ValueError) as error:
            raise GanMaskError(f"--ray-address {running}: no Ray cluster to work on ({error})") from error
    gpu = engine.device != "cpu"
    task = ray.remote(
        num_cpus=1, num_gpus=int(gpu), max_retries=RETRIES, retry_exceptions=[OSError], scheduling_strategy="SPREAD"
    )(_work)
    try:
        yield _Cluster(ray, gpu, lambda number: task.remote(make, arguments, number, shards[number]))
    finally:
        if ours:
            ray.shutdown()

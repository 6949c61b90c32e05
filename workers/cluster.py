"""Connect to a Ray cluster, or start one on this machine, and check that it can give what is asked for."""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ray

from autoft.errors import ClusterError

# The object store holds no data of ours: images are memory-mapped from each node's cache, and events are small.
OBJECT_STORE_BYTES = 128 * 1024**2
CONNECT_SECONDS = 5.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")  # and an empty SETTINGS frame (RFC 9113, 3.4)


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How many workers there are and what each is given."""

    count: int
    device: str  # "cpu" or "cuda"
    cpus: int  # CPU cores reserved for a worker, and its threads
    gpus: float  # share of a GPU


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Mapping[str, float]]:
    """Connect to `address` ("HOST:PORT" or "auto"), or start Ray on this machine if it is None; disconnects at the end.

    Yields the cluster's resources: "CPU" cores, "GPU"s.

    Raises:
        ClusterError: no cluster answers at `address`, or none can be started.
    """
    try:
        _connect(address)
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    if address is not None:
        check_answers(address)
    options = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        where = f"reached at {address}" if address else "started on this machine"
        hint = "; if it asks for a token, see RAY_AUTH_TOKEN in Ray's documentation" if address else ""
        raise ClusterError(f"no Ray cluster could be {where}: {first_line(error)}{hint}") from None


def plan_workers(
    have: Mapping[str, float], workers: int | None, gpus_per_worker: float | None, threads: int | None, device: str
) -> WorkerSpec:
    """How many workers a cluster runs, and what each is given.

    Args:
        have: the cluster's "CPU" cores and "GPU"s, as `ray.cluster_resources()` counts them.
        workers: how many; None: one per GPU (or share of one), on CPU one per core.
        gpus_per_worker: share of a GPU a worker gets, for instance 0.5; None: 1 where there are GPUs and device is not cpu.
        threads: CPU threads a worker uses; None: the cluster's cores divided among the workers.
        device: auto, cpu or cuda.

    Raises:
        ClusterError: the cluster has fewer GPUs or cores than asked for, or none at all.
    """
    cores, gpus = int(have.get("CPU", 0)), have.get("GPU", 0.0)
    require_gpu(gpus, gpus_per_worker, device, "the cluster")
    if device != "cpu" and gpus > 0 and gpus_per_worker != 0:
        return _on_gpus(cores, gpus, workers, gpus_per_worker or 1.0, threads)
    count = workers or max(1, cores // (threads or 1))
    each = threads or max(1, cores // count)
    if count * each > cores:
        raise ClusterError(
            f"{plural(count, 'worker')} with {plural(each, 'thread')} each need {count * each} CPU cores; the cluster has {cores}"
        )
    return WorkerSpec(count=count, device="cpu", cpus=each, gpus=0.0)


def require_gpu(gpus: float, gpus_per_worker: float | None, device: str, where: str) -> None:
    """Raise ClusterError if the flags ask for a GPU and there is none."""
    if gpus == 0 and ((gpus_per_worker or 0) > 0 or device.startswith("cuda")):
        asked = f"--gpus-per-worker {gpus_per_worker:g}" if gpus_per_worker else f"--device {device}"
        raise ClusterError(f"{asked} asks for a GPU, and {where} has none")


def first_line(error: BaseException) -> str:
    """What an error says, shortened to one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _on_gpus(cores: int, gpus: float, workers: int | None, share: float, threads: int | None) -> WorkerSpec:
    fits = math.floor(gpus / share) if share >= 1 else math.floor(gpus) * math.floor(1 / share + 1e-9)
    count = workers or min(fits, max(1, cores // (threads or 1)))
    if count > fits or fits == 0:
        count = max(1, count)
        raise ClusterError(f"{plural(count, 'worker')} with {share:g} GPU each need {count * share:g} GPUs; the cluster has {gpus:g}")
    each = threads or max(1, min(8, cores // count))
    if count * each > cores:
        raise ClusterError(
            f"{plural(count, 'worker')} with {plural(each, 'thread')} each need {count * each} CPU cores; the cluster has {cores}"
        )
    return WorkerSpec(count=count, device="cuda", cpus=each, gpus=share)


def check_answers(address: str, source: str = "RAY_ADDRESS") -> None:
    """Find out in seconds whether a cluster is there; `ray.init` waits for minutes, and cannot be interrupted.

    Raises:
        ClusterError: naming `source`, where the address came from.
    """
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not colon or "/" in host or not port.isdigit():
        raise ClusterError(f"{source} = {address!r}: valid are HOST:PORT of the cluster's head (its port is 6379 by default), auto and local")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(connection):
                raise ClusterError(f"what answers at {source} = {address} is not the head of a Ray cluster")
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {source} = {address}: {first_line(error)}") from None


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other end begins HTTP/2, as gRPC and with it the head of a cluster does."""
    connection.settimeout(CONNECT_SECONDS)
    connection.sendall(_HTTP2_PREFACE)
    answer = connection.recv(9)
    return len(answer) >= 4 and answer[3] == 4  # its first frame must be SETTINGS


def plural(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"

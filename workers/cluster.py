"""Connect to a Ray cluster, or start one on this machine, and check that it can give what is asked for."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from autoft.errors import ClusterError

# The object store holds no data of ours: images are memory-mapped from each node's cache, and events are small.
OBJECT_STORE_BYTES = 128 * 1024**2
CONNECT_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How many workers there are and what each is given."""

    count: int
    device: str  # "cpu" or "cuda"
    cpus: int  # CPU cores reserved for a worker, and its threads
    gpus: float  # share of a GPU


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to `address`, or start Ray on this machine if it is None; disconnects at the end.

    Raises:
        ClusterError: no cluster answers at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        where = f"at {address}" if address else "on this machine"
        raise ClusterError(f"no Ray cluster could be reached {where}: {str(error).strip().splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def plan_workers(workers: int | None, gpus_per_worker: float | None, threads: int | None, device: str) -> WorkerSpec:
    """How many workers the connected cluster runs, and what each is given.

    Args:
        workers: how many; None: one per GPU (or share of one), on CPU one per core.
        gpus_per_worker: share of a GPU a worker gets, for instance 0.5; None: 1 where there are GPUs and device is not cpu.
        threads: CPU threads a worker uses; None: the cluster's cores divided among the workers.
        device: auto, cpu or cuda.

    Raises:
        ClusterError: the cluster has fewer GPUs or cores than asked for, or none at all.
    """
    have = ray.cluster_resources()
    cores, gpus = int(have.get("CPU", 0)), have.get("GPU", 0.0)
    wants_gpu = device.startswith("cuda") or (gpus_per_worker or 0) > 0
    if wants_gpu and gpus == 0:
        asked = f"--gpus-per-worker {gpus_per_worker:g}" if gpus_per_worker else f"--device {device}"
        raise ClusterError(f"{asked} asks for a GPU, and the cluster has none")
    if device != "cpu" and gpus > 0 and gpus_per_worker != 0:
        share = gpus_per_worker or 1.0
        fits = math.floor(gpus / share) if share >= 1 else math.floor(gpus) * math.floor(1 / share + 1e-9)
        count = workers or fits
        if count > fits or fits == 0:
            raise ClusterError(f"{count} workers with {share:g} GPU each need {count * share:g} GPUs; the cluster has {gpus:g}")
        return WorkerSpec(count=count, device="cuda", cpus=threads or max(1, min(8, cores // count)), gpus=share)
    count = workers or max(1, cores // (threads or 1))
    each = threads or max(1, cores // count)
    if count * each > cores:
        raise ClusterError(f"{count} workers with {each} threads each need {count * each} CPU cores; the cluster has {cores}")
    return WorkerSpec(count=count, device="cpu", cpus=each, gpus=0.0)


def describe_resources() -> dict[str, float]:
    """CPU cores, GPUs and nodes of the connected cluster."""
    have = ray.cluster_resources()
    return {"cpus": have.get("CPU", 0.0), "gpus": have.get("GPU", 0.0), "nodes": float(len([n for n in ray.nodes() if n["Alive"]]))}

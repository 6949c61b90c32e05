"""What a cluster's nodes can hold: how many workers fit, and in words why one does not."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import ray

from autoft.errors import ClusterError
from workers.cluster import WorkerSpec, plan_workers, plural

_SHOWN_NODES = 8


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster, and what it offers in all, free or not."""

    id: str
    address: str
    cpus: float
    gpus: float
    leaving: bool = False  # it is being drained: what runs there may end, nothing new starts


def cluster_nodes() -> list[Node]:
    """The nodes of the connected cluster that are alive."""
    leaving = _leaving()
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            leaving=node["NodeID"] in leaving,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _leaving() -> frozenset[str]:
    """Nodes that are being drained. Ray Serve asks for them in this way; there is no public one."""
    try:
        return frozenset(ray._private.state.state.get_draining_nodes())
    except AttributeError:  # another release of Ray
        return frozenset()


def room(nodes: Iterable[Node], spec: WorkerSpec) -> int:
    """How many workers like those of `spec` the nodes hold together; a worker lies on one node."""
    return sum(_room_on(node, spec) for node in nodes if not node.leaving)


def plan_on_nodes(nodes: Sequence[Node], workers: int | None, gpus_per_worker: float | None, threads: int | None, device: str) -> WorkerSpec:
    """`plan_workers`, where a worker also has to lie on one node: threads nobody asked for become fewer until all fit.

    Raises:
        ClusterError: the workers asked for do not fit the nodes; says which nodes there are.
    """
    staying = [node for node in nodes if not node.leaving]
    have = {"CPU": sum(node.cpus for node in staying), "GPU": sum(node.gpus for node in staying)}
    spec = plan_workers(have, workers, gpus_per_worker, threads, device)
    for cpus in range(spec.cpus, 0, -1) if threads is None else (spec.cpus,):
        fewer = replace(spec, cpus=cpus)
        if room(staying, fewer) >= spec.count:
            return fewer
    fits = room(staying, fewer)
    if workers is None and fits > 0:
        return replace(fewer, count=fits)
    raise ClusterError(f"there is room for {fits} of {plural(spec.count, 'worker')}: {shortage(staying, fewer)}")


def shortage(nodes: Sequence[Node], spec: WorkerSpec) -> str:
    """What each worker needs, and what there is: "each needs 2 CPUs and 1 GPU; the cluster has 4 CPUs on 1 node (10.0.0.1: 4 CPUs)"."""
    staying = sorted((node for node in nodes if not node.leaving and (node.cpus or node.gpus)), key=lambda node: node.address)
    needs = f"each needs {_amount(spec.cpus, spec.gpus)}"
    going = sum(node.leaving for node in nodes)
    and_going = f", and {plural(going, 'node')} about to leave" if going else ""
    if not staying:
        return f"{needs}; the cluster has no node that offers any{and_going}"
    total = _amount(sum(node.cpus for node in staying), sum(node.gpus for node in staying))
    shown = "; ".join(f"{node.address}: {_amount(node.cpus, node.gpus)}" for node in staying[:_SHOWN_NODES])
    more = f"; and {len(staying) - _SHOWN_NODES} more" if len(staying) > _SHOWN_NODES else ""
    return f"{needs}; the cluster has {total} on {plural(len(staying), 'node')} ({shown}{more}){and_going}"


def _room_on(node: Node, spec: WorkerSpec) -> int:
    by_cpus = math.floor(node.cpus / spec.cpus)
    if not spec.gpus:
        return by_cpus
    share = spec.gpus
    by_gpus = math.floor(node.gpus / share) if share >= 1 else math.floor(node.gpus) * math.floor(1 / share + 1e-9)
    return min(by_cpus, by_gpus)


def _amount(cpus: float, gpus: float) -> str:
    words = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"] if cpus or not gpus else []
    if gpus:
        words.append(f"{gpus:g} GPU{'' if gpus <= 1 else 's'}")
    return " and ".join(words)

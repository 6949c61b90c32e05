"""`autoft worker`: this machine as a node of a Ray cluster, for as long as the command runs."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from autoft.cli.runtime import ray_address
from autoft.errors import ClusterError, ConfigError

_NVIDIA = Path("/proc/driver/nvidia/gpus")


def worker(args: argparse.Namespace) -> int:
    """Join a cluster, or start one with --head, and stay until a signal comes."""
    address = None if args.head else args.address or ray_address()
    _check_flags(args, address)
    from workers.tokens import use_token

    token = use_token(args.token_file, make=args.head)
    cpus, gpus = offered(args.cpus, args.gpus)
    from workers.node import Node, NodeOffer

    node = Node(NodeOffer(cpus=cpus, gpus=gpus, address=address, port=args.port, job_server=args.job_server), args.drain)
    node.start()
    for line in _welcome(args, node, token, f"{_count(cpus, 'CPU')} and {_count(gpus, 'GPU')}"):
        print(line, flush=True)
    node.run()
    print("stopped", flush=True)
    return 0


def offered(cpus: int | None, gpus: int | None) -> tuple[int, int]:
    """Cores and GPUs to offer: what is asked for, else what there is.

    Raises:
        ClusterError: torch does not see the GPUs asked for, or those of this machine.
    """
    import torch

    seen = torch.cuda.device_count()
    there = len(list(_NVIDIA.iterdir())) if _NVIDIA.is_dir() else 0
    hint = f"torch {torch.__version__} may be a build without CUDA, or newer than the driver" if there else "torch finds no driver"
    if gpus is not None and gpus > seen:
        raise ClusterError(f"--gpus {gpus}: torch sees {_count(seen, 'GPU')} on this machine" + (f"; {hint}" if not seen else ""))
    if gpus is None and seen == 0 and there and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
        raise ClusterError(f"this machine has {_count(there, 'GPU')} and torch sees none: {hint}. To offer CPU cores only: --gpus 0")
    return len(os.sched_getaffinity(0)) if cpus is None else cpus, seen if gpus is None else gpus


def _check_flags(args: argparse.Namespace, address: str | None) -> None:
    if args.head and args.address:
        raise ConfigError(f"--head starts a cluster and --address {args.address} joins one; give one of them")
    if not args.head and address is None:
        raise ConfigError("--address HOST:PORT (or RAY_ADDRESS) says which cluster to join; --head starts one")
    if address == "auto":
        raise ConfigError("RAY_ADDRESS=auto looks for a cluster on this machine; to join one as a node, give --address HOST:PORT")
    host, colon, port = args.job_server.rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ConfigError(f"--job-server {args.job_server}: valid is HOST:PORT, for instance 127.0.0.1:8265")


def _welcome(args: argparse.Namespace, node: Any, token: str | None, offer: str) -> list[str]:
    stop = "Stop it with Ctrl-C or SIGTERM; trials that run here have --drain seconds to end, and run again elsewhere otherwise."
    if token is None:
        print("WARNING: no token guards this cluster: whoever reaches its ports can run programs on it", file=sys.stderr)
    if not args.head:
        return [f"joined the cluster at {node.address}; offers {offer}", stop]
    guard = [f"the token is in {token}; copy it to the other machines"] if token else []
    return [
        f"the head of a cluster at {node.address}; offers {offer}",
        *guard,
        f"add a machine:   autoft worker --address {node.address} --token-file FILE",
        f"run a study:     RAY_ADDRESS={node.address} autoft launch FILE",
        f"job server:      {node.job_server}, for autoft launch --detach",
        "Stop it with Ctrl-C or SIGTERM; the cluster ends with it.",
    ]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

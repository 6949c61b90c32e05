"""Several processes that compute together over gloo on this machine."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """`work(collective, *args)` in so many processes at once; what each returned, made of tensors and plain values, by rank.

    `work` is a function of a test module.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, args=(count, folder, work, args), nprocs=count)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _run(rank: int, count: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    from autoft.distributed import TorchCollective
    from autoft.workspace import configure_torch

    configure_torch(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    try:
        torch.save(work(TorchCollective(), *args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()

"""What it costs that glibc gives a step's memory back to the system, and that it is kept: `python -m benches.page_faults`.

Page faults, processor time of the system and of the program for a training step of a small convolutional network on one CPU thread, with
and without `autoft.memory.keep_freed_memory`: in the main thread of a process, and in an actor of a local Ray as a worker has it. Faults are
counted, and processor time is that of the thread, so other work on the machine disturbs little. Prints JSON lines and writes nothing.
"""

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import torch
from torch import nn

from autoft.memory import keep_freed_memory

WARM_UP = 5  # steps in which memory is taken for the first time


def main() -> None:
    """Measure each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--case", choices=["main", "ray"], help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        figures = steps(args.steps, args.keep) if args.case == "main" else in_actor(args.steps, args.keep)
        print(json.dumps({"where": args.case, "kept": args.keep, **figures}))
        return
    for case in ["main"] if args.without_ray else ["main", "ray"]:
        for keep in ([], ["--keep"]):
            command = [sys.executable, "-m", "benches.page_faults", "--case", case, "--steps", str(args.steps), *keep]
            print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1], flush=True)


def steps(count: int, keep: bool, batch: int = 64) -> dict[str, float]:
    """Train on batches of random images; figures a step, of the calling thread."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    layers = [nn.Sequential(nn.Conv2d(width, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()) for width in (3, 32, 32)]
    net = nn.Sequential(*layers)
    images = torch.randn(batch, 3, 64, 64)
    for step in range(WARM_UP + count):
        if step == WARM_UP:
            before = resource.getrusage(resource.RUSAGE_THREAD)
        net(images).square().mean().backward()
        net.zero_grad(set_to_none=True)
    after = resource.getrusage(resource.RUSAGE_THREAD)
    return {
        "page_faults": (after.ru_minflt - before.ru_minflt) / count,
        "system_seconds": (after.ru_stime - before.ru_stime) / count,
        "user_seconds": (after.ru_utime - before.ru_utime) / count,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_actor(count: int, keep: bool) -> dict[str, float]:
    """The same in a Ray actor with two threads, of which one trains; Ray is started here as the service starts it, or without its settings."""
    if keep:
        import workers  # noqa: F401
    import ray

    @ray.remote(max_concurrency=2)
    class Trainer:
        def train(self) -> dict[str, Any]:
            return steps(count, keep)

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        found: dict[str, float] = ray.get(Trainer.remote().train.remote())  # type: ignore[attr-defined]
        return found
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()

"""What an epoch over TRAIN's images costs, as batches of augmented model inputs: `python -m benches.decode`.

    image_folder   torchvision's ImageFolder with open_clip's training transform and a DataLoader: every epoch decodes
    cache_first    the first epoch with AutoFT's cache: decode into it, then draw and augment all batches
    cache_second   a later epoch: draw and augment
    stream_first   the first epoch of a set that is streamed: look through it once, then decode ahead
    stream_second  a later epoch: decode ahead, draw and augment

on PACS, and on JPEGs made for it of a camera's usual proportions. All five take turns in one run, each in a process of its own, in an order
drawn for the round; all have the same number of decoding processes and of threads. Told are images per second, the ratio to `image_folder`
(the median over rounds, and its quartiles) and the peak memory of the process and its children together, where each one's resident memory
is counted whole though they share pages. The files are in the page cache: they are read once before anything is measured.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoft.threads import wait_briefly

wait_briefly(os.environ)  # as the service does; read when torch is imported

import numpy as np
import torch
from PIL import Image

from autoft.config import DataConfig, FolderDataset
from autoft.data import load_study_data
from autoft.data.room import limit_cache
from autoft.data.transforms import TrainTransform
from autoft.finetune import batch_examples, step_generator
from autoft.pipeline import package_versions
from autoft.workspace import DeviceImages, configure_torch
from benches.figures import CORES, HERE, hardware, write

WAYS = ("image_folder", "cache_first", "cache_second", "stream_first", "stream_second")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's OPENAI_DATASET_MEAN and _STD


def main() -> None:
    """Measure, print a table, and write the record."""
    args = _arguments()
    configure_torch(args.threads)
    if args.one is not None:
        print(json.dumps(measure(args.one, args.folder, args.work, args)))
        return
    with tempfile.TemporaryDirectory(prefix="autoft-bench-") as work:
        folders = {"made": make_jpegs(Path(work) / "made", args.made, args.pixels)}
        if args.pacs.is_dir():
            folders["pacs"] = args.pacs
        else:
            print(f"pacs is skipped: there is no folder {args.pacs}; give one with --pacs")
        figures = {name: compare(folder, Path(work), args) for name, folder in folders.items()}
    print(table(figures))
    if not args.dry_run:
        setting = {"size": args.size, "batch": args.batch, "threads": args.threads, "rounds": args.rounds, "made": args.made, "pixels": args.pixels}
        record = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware(args.device), "versions": package_versions(), "setting": setting, "figures": figures}
        print(f"written to {write(record, f'decode-{args.device}', {})}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacs", type=Path, default=HERE.parents[1] / "shared" / "data" / "pacs" / "photo" / "train", help="one folder a class")
    parser.add_argument("--made", type=int, default=2000, help="JPEGs to make (default: 2000)")
    parser.add_argument("--pixels", type=int, default=500, help="their longer side (default: 500, as ImageNet's usual one)")
    parser.add_argument("--size", type=int, default=224, help="side of the model's input (default: 224)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=CORES, help="threads, and processes that decode (default: all cores)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="60 small JPEGs, 2 rounds; write nothing")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dry_run and args.one is None:
        args.made, args.pixels, args.rounds, args.size, args.batch = 60, 160, 2, 64, 16
    return args


def make_jpegs(root: Path, count: int, longer: int) -> Path:
    """Two classes of random smooth pictures with some noise, three by four, so that a JPEG has about the bytes of a photograph."""
    rng = np.random.default_rng(0)
    height, width = longer * 3 // 4, longer
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (height, width, 3), dtype=np.int16)
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:06}.jpg", quality=90)
    return root


def compare(folder: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of every way over one folder of images."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    total = sum(len(path.read_bytes()) for path in files)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    rng = random.Random(0)
    for _ in range(args.rounds):
        for way in rng.sample(WAYS, len(WAYS)):
            runs[way].append(_in_process(way, folder, work, args))
    found: dict[str, Any] = {"images": len(files), "bytes": total}
    for way, of in runs.items():
        ratios = [one["images_per_second"] / naive["images_per_second"] for one, naive in zip(of, runs["image_folder"], strict=True)]
        found[way] = {
            "images_per_second": statistics.median(one["images_per_second"] for one in of),
            "over_image_folder": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2,
            "peak_bytes": max(one["peak_bytes"] for one in of),
        }
    return found


def _in_process(way: str, folder: Path, work: Path, args: argparse.Namespace) -> dict[str, float]:
    """Measure one way in a process of its own, with a cache of its own."""
    with tempfile.TemporaryDirectory(dir=work, prefix=f"{way}-") as cache:
        options = {"--size": args.size, "--batch": args.batch, "--threads": args.threads, "--device": args.device}
        flags = [str(part) for option in options.items() for part in option]
        command = [sys.executable, "-m", "benches.decode", "--one", way, "--folder", str(folder), "--work", cache, *flags]
        found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        return found


def measure(way: str, folder: Path, cache: Path, args: argparse.Namespace) -> dict[str, float]:
    """Images per second of one epoch, the incomplete last batch left out, and peak memory, in this process."""
    device = torch.device(args.device)
    if way.endswith("_second"):  # what the first epoch leaves
        for _ in _epoch(way, folder, cache, args, device):
            pass
    with _Peak() as peak:
        started = time.perf_counter()
        images = sum(len(batch) for batch in _epoch(way, folder, cache, args, device))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return {"images_per_second": images / seconds, "peak_bytes": peak.bytes}


def _epoch(way: str, folder: Path, cache: Path, args: argparse.Namespace, device: torch.device) -> Iterator[torch.Tensor]:
    if way == "image_folder":
        yield from _naive(folder, args, device)
        return
    limit_cache(0 if way.startswith("stream") else None)
    dataset = FolderDataset(layout="folder", path=folder)
    data = load_study_data(DataConfig(train=dataset, val_id=dataset, val_ood=dataset), args.size, "bicubic", "shortest", cache, splits=["train"])
    train, transform = DeviceImages(data.train, device), TrainTransform(args.size, MEAN, STD)
    size = min(args.batch, len(train))

    def drawn(step: int) -> torch.Tensor:
        return batch_examples(len(train), size, 0, step)

    for step in train.ahead(range(len(train) // size), drawn, size):
        yield transform(train.take(drawn(step)), step_generator(0, step))


def _naive(folder: Path, args: argparse.Namespace, device: torch.device) -> Iterator[torch.Tensor]:
    """What most training programs do: decode and augment in the DataLoader's processes."""
    import open_clip
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    transform = open_clip.image_transform(args.size, is_train=True, mean=MEAN, std=STD)
    loader: Any = DataLoader(
        ImageFolder(str(folder), transform), args.batch, shuffle=True, drop_last=True, num_workers=args.threads, pin_memory=device.type == "cuda"
    )
    for images, _ in loader:
        yield images.to(device, non_blocking=True)


class _Peak:
    """The most memory this process and its children held together, looked at every 20 ms."""

    def __enter__(self) -> "_Peak":
        self.bytes, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, _resident(os.getpid()))
            if self._done.wait(0.02):
                return


def _resident(pid: int) -> int:
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text(encoding="ascii").split()]
    except OSError:  # it has ended
        return 0
    return own + sum(map(_resident, children))


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| set | way | images per second | over image_folder | [quartiles] | peak memory, MiB |", "|---|---|---|---|---|---|"]
    for name, found in figures.items():
        for way in WAYS:
            one = found[way]
            low, high = one["quartiles"]
            lines.append(
                f"| {name} ({found['images']:,}) | {way} | {one['images_per_second']:.0f} | {one['over_image_folder']:.2f} | [{low:.2f}, {high:.2f}] "
                f"| {one['peak_bytes'] / 2**20:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""What one worker holds while it lives: model, zero-shot state, data and texts, loaded once, on one device."""

import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from autoft.batch_split import fitting, is_out_of_memory
from autoft.collective import ALONE, Collective, share, share_of, together
from autoft.compiled import CompiledTowers, Tower
from autoft.config import StudyConfig
from autoft.core_features import read_descriptions
from autoft.data import ImageSet, StudyData, load_study_data
from autoft.data.stream import Stream
from autoft.data.streamed import StreamedImages
from autoft.data.transforms import TrainTransform, eval_transform
from autoft.errors import ConfigError
from autoft.evaluate import metric_fn, pool_index, pooled_logits
from autoft.memory import keep_freed_memory
from autoft.models import ClipClassifier, LoadedModel, TextBank, ZeroShotState, build_classifier, load_model
from autoft.models.load import resolve_device
from autoft.models.shards import is_sharded
from autoft.on_device import sent

# Images, and affinities to descriptions, are kept on a GPU if they take less than this share of its free memory, else copied batch by
# batch from pinned memory.
RESIDENT_SHARE = 0.25

T = TypeVar("T")


def configure_torch(threads: int) -> None:
    """Set this process up for training on the CPU: thread count, denormal numbers flushed to zero, and freed memory kept for the next step.

    With strong weight decay some weights sink below 1e-38, where a CPU computes an order of magnitude slower. These two settings belong to
    the calling thread and are inherited by the threads it starts, so this is called before any work, in every thread that trains.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


@functools.cache
def _computes_bf16(device: torch.device) -> bool:
    """Whether a device has units for bf16 that are worth their rounding: GPUs from NVIDIA's Ampere on, and AMD's.

    Not CPUs, even those with bf16 instructions; see docs/performance.md.
    """
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def resident_device(nbytes: int, device: torch.device) -> torch.device:
    """Where so many bytes are kept: on a GPU with room for them, else on the CPU."""
    fits = device.type == "cuda" and nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
    return device if fits else torch.device("cpu")


class DeviceImages:
    """An image set that hands out uint8 batches on a device: kept there, copied from the memory map, or streamed from the set's files."""

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self.set = images
        self.device = device
        self.labels_cpu = torch.from_numpy(np.ascontiguousarray(images.labels))
        self._stream = self._pixels = None
        if isinstance(images.images, StreamedImages):
            self._stream = Stream(images.images, device)
        else:
            self._pixels = _as_tensor(images.images).to(resident_device(images.images.nbytes, device))
        self.labels = self.labels_cpu.to(device)
        self.groups = None if images.groups is None else torch.from_numpy(np.ascontiguousarray(images.groups)).to(device)
        self.pools = None if images.projection is None else pool_index(images.projection).to(device)

    def __len__(self) -> int:
        return len(self.labels_cpu)

    def take(self, examples: Tensor) -> Tensor:
        """Pixels (batch, side, side, 3) uint8 on the device of `examples`, (batch,) int64 on the CPU."""
        if self._pixels is None:
            return self._streamed.take(examples)
        if self._pixels.device.type == self.device.type:
            return self._pixels[sent(examples, self.device)]
        return sent(self._pixels[examples], self.device)

    def batches(self, size: int, only: slice = slice(None)) -> Iterator[Tensor]:
        """All pixels in order, `size` at a time; or some of these batches."""
        if self._pixels is None:
            yield from self._streamed.batches(size, only)
            return
        for start in range(0, len(self), size)[only]:
            chunk = self._pixels[start : start + size]
            yield chunk if chunk.device.type == self.device.type else sent(chunk, self.device)


    def ahead(self, steps: Sequence[int], examples: Callable[[int], Tensor], batch_size: int) -> Iterator[int]:
        """The steps; meanwhile, of a streamed set, the examples of those to come are decoded.

        Args:
            examples: of a step, what it will `take`; of `batch_size` at most.
        """
        if self._pixels is not None or not steps:
            yield from steps
            return
        with self._streamed.foresee(map(examples, steps), batch_size):
            yield from steps

    @property
    def _streamed(self) -> Stream:
        assert self._stream is not None
        return self._stream


def _as_tensor(images: np.ndarray[Any, Any]) -> Tensor:
    """A tensor over a memory map that is only ever read, without the warning that it could be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(images))


@dataclass(kw_only=True)
class Workspace:
    """A worker's warm state. `model` changes while it trains; everything else stays as it was loaded.

    batch_split: parts a step's batch is computed in, 1 until one did not fit the memory. It changes rounding only, but for models with
        BatchNorm in training mode or dropout; see `autoft.gradients`.
    evaluation_split: likewise of batches in evaluation, which never changes more than rounding.
    collective: the processes that fine-tune and score this model together, each with a workspace of its own.
    """

    config: StudyConfig
    device: torch.device
    loaded: LoadedModel
    model: ClipClassifier
    zero_shot: ZeroShotState
    data: StudyData
    train: DeviceImages
    texts: TextBank
    train_transform: TrainTransform
    sets: dict[str, DeviceImages]
    towers: CompiledTowers
    batch_split: int = 1
    evaluation_split: int = 1
    collective: Collective = ALONE
    cached: dict[str, Any] = field(default_factory=dict, init=False)  # what is computed at its first use, by name; see `forget`

    @classmethod
    def load(
        cls,
        config: StudyConfig,
        device: str,
        cache_dir: Path,
        splits: Collection[str] = ("train", "val_ood"),
        progress: Callable[[str, int, int], None] | None = None,
        arrange: Callable[[ClipClassifier], None] | None = None,
    ) -> "Workspace":
        """Load model and data.

        Args:
            progress: called with (field, images done, images in all) while images are decoded.
            arrange: changes the model in place when its weights are on the device and nothing else is, as `shard_towers` does.

        Raises:
            ConfigError, DataError, ModelError.
        """
        target = resolve_device(device)
        loaded = load_model(config.model)
        pixels = loaded.preprocess
        data = load_study_data(config.data, pixels.size, pixels.interpolation, pixels.resize_mode, cache_dir, splits=splits, progress=progress)
        return cls.of(config, target, loaded, data, arrange)

    @classmethod
    def of(
        cls,
        config: StudyConfig,
        target: torch.device,
        loaded: LoadedModel,
        data: StudyData,
        arrange: Callable[[ClipClassifier], None] | None = None,
    ) -> "Workspace":
        """Bring a loaded model and data to a device. On a GPU the model is compiled at its first use. Raises ConfigError or ModelError."""
        pixels = loaded.preprocess
        loaded.clip.to(target)  # before the head, whose prompts may be tens of thousands
        descriptions = read_descriptions(config.data, data.classes, loaded.tokenizer)
        model = build_classifier(loaded, data.classes.names, config.data.templates, descriptions)
        if arrange is not None:
            arrange(model)
        captions = data.train.captions
        if captions is not None:
            texts = TextBank.of_captions(loaded.tokenizer, captions, target)
        else:
            texts = TextBank.of_prompts(loaded.tokenizer, data.classes.names, config.data.templates, target)
        return cls(
            config=config,
            device=target,
            loaded=loaded,
            model=model,
            zero_shot=ZeroShotState.of(model),
            data=data,
            train=DeviceImages(data.train, target),
            texts=texts,
            train_transform=TrainTransform(pixels.size, pixels.mean, pixels.std),
            sets={},
            towers=CompiledTowers(model, "inductor" if target.type == "cuda" else None),
        )

    @property
    def sharded(self) -> bool:
        """Whether the processes share the model's weights out among them; then all must make the same passes through its towers."""
        return is_sharded(self.model)

    def together(self, compute: Callable[[], T]) -> T:
        """`autoft.collective.together`: `compute()`, which waits for no other process, in all or in none where memory runs out.

        Not of sharded weights: there it waits for the others in itself, so that none can ask whether another one has failed.
        """
        return compute() if self.sharded else together(self.collective, compute)

    @property
    def own_towers(self) -> CompiledTowers:
        """`towers` of the model that is there now: whoever scores a checkpoint puts another model in its place."""
        if self.towers.model is not self.model:
            self.towers = CompiledTowers(self.model, self.towers.backend)
        return self.towers

    def fitting(self, compute: Callable[[int], T], most: int, undo: Callable[[], None] = lambda: None) -> T:
        """`compute` a batch in as few parts as fit the memory, and remember how many; see `autoft.batch_split.fitting`.

        Without compiled towers, from then on, if `compute` fails with them. Sharded weights take whole batches only.

        Raises:
            ConfigError: of sharded weights, in place of `torch.OutOfMemoryError`.
        """
        if self.sharded:
            return self._whole(lambda: compute(1), "final", self.config.final.batch_size)
        found, self.batch_split = self.own_towers.or_eager(lambda: fitting(compute, self.batch_split, most, self.device, undo), undo)
        return found

    def _whole(self, compute: Callable[[], T], section: str, batch_size: int) -> T:
        """`compute()` of a batch that cannot be split, since the other processes would not know."""
        try:
            return compute()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"{section}.batch_size = {batch_size} does not fit the memory of {self.device}, and with --final-sharded no batch is computed in "
                f"parts; take more --final-workers or a smaller {section}.batch_size"
            ) from None

    def autocast(self, cache: bool = True) -> Any:
        """bf16 autocast where the study's precision asks for it, else nothing; `cache`: each weight is cast once within it."""
        precision = self.config.model.precision
        if precision == "bf16" or (precision == "auto" and _computes_bf16(self.device)):
            return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=cache)
        return nullcontext()

    def images(self, name: str) -> DeviceImages:
        """The evaluation images of `val_id`, `val_ood` or a test set's name, kept on the device from the first use on."""
        if name not in self.sets:
            found: Mapping[str, ImageSet | None] = {
                "val_id": self.data.val_id,
                "val_ood": self.data.val_ood,
                **{test: images for test, (_, images) in self.data.tests.items()},
            }
            images = found.get(name)
            if images is None:
                loaded = ", ".join(known for known, present in found.items() if present is not None)
                raise ConfigError(f"{name} is not a loaded set of study {self.config.study}; loaded are {loaded}")
            self.sets[name] = DeviceImages(images, self.device)
        return self.sets[name]

    def forget(self) -> None:
        """Drop what was made on the way, the images of evaluation sets on the device among it; it is made again when it is needed."""
        self.sets.clear()
        self.cached.clear()

    def logits(self, name: str) -> Tensor:
        """The model's logits (n, the set's classes), fp32, under the evaluation transform. Leaves the model in evaluation mode.

        Of a model with two heads, log probabilities: each head's logits are brought to the set's classes before the two are mixed. Batches
        are of `evaluate.batch_size`, or smaller ones where those do not fit the memory. Several processes share them, so all must ask.

        Raises:
            torch.OutOfMemoryError: nor does a single image.
            ConfigError: of sharded weights, a batch does not.
        """
        most = self.config.evaluate.batch_size
        if self.sharded:
            return self._whole(lambda: self._all_logits(name, most, None), "evaluate", most)

        def logits(parts: int) -> Tensor:
            return self._all_logits(name, -(-most // parts), self.own_towers.evaluation(most) if parts == 1 else None)

        found, self.evaluation_split = self.own_towers.or_eager(
            lambda: fitting(logits, self.evaluation_split, most, self.device), undo=lambda: None
        )
        return found

    def _all_logits(self, name: str, batch_size: int, tower: Tower | None) -> Tensor:
        """Of the whole set. Processes share whole batches, so that each is computed as one process alone would."""
        total = len(self.images(name))
        batches = -(-total // batch_size)
        if self.collective.size == 1 or batches < self.collective.size:
            return self.together(lambda: self._logits(name, batch_size, slice(None), tower))
        only = share_of(self.collective, batches)
        more = self._passes_to_make_up(batches)
        own = self.together(lambda: self._logits(name, batch_size, slice(only.start - more, only.stop), None)[more * batch_size :])
        padded = own.new_zeros((only.stop - only.start) * batch_size, own.shape[1])  # the last batch of the set may be a short one
        padded[: len(own)] = own
        shape = (batches, batch_size, own.shape[1])
        return self.collective.gathered(padded.view(-1, *shape[1:]), batches).view(-1, shape[2])[:total]

    def _passes_to_make_up(self, batches: int) -> int:
        """How many batches of others this process computes as well, so that all make as many passes through sharded towers: 0 or 1."""
        own, largest = (len(range(batches)[share(batches, rank, self.collective.size)]) for rank in (self.collective.rank, 0))
        return largest - own if self.sharded else 0

    @torch.no_grad()
    def _logits(self, name: str, batch_size: int, only: slice, tower: Tower | None) -> Tensor:
        """Of some of its batches; at least one."""
        self.model.eval()
        pixels = self.loaded.preprocess
        images = self.images(name)
        project = None if images.pools is None else functools.partial(pooled_logits, pools=images.pools)
        parts = []
        with self.autocast():
            for batch in images.batches(batch_size, only):
                parts.append(self.model(eval_transform(batch, pixels.mean, pixels.std), project, tower).float())
        return torch.cat(parts)

    def score(self, name: str) -> float:
        """The study's metric on a set; waits for the device. Raises `NonFiniteScore`."""
        images = self.images(name)
        metric = metric_fn(self.config.metric)
        return float(metric(self.logits(name), images.labels, images.groups, images.set.class_count))

"""What the authors' scripts and README say of trials, steps and batches, and what that costs, to check a preset's budget against.

Source of trials, steps and batches: scripts and README of the authors' release (github.com/cchoi1/auto-ft), or where that has none its
history. Costs are computed from them: samples of a search are trials x steps x batch; samples of a final fine-tune are epochs x caption
rows, since an epoch of the released code is one pass over a table with a row for each image and prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a search and a final fine-tune cost, as printed: rounded to three digits, the ratio to whole percent.

    search_over_final: with the final fine-tune counted in caption rows, as the released code runs it.
    by_images: the same with it counted in images; None where that is the same or was not worked out.
    """

    search_samples: float
    final_samples: float
    search_over_final: float
    by_images: float | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One published setting. source: script, README or history. repeats: how often the search is run. cost: None where unpublished."""

    source: str
    n_trials: int
    steps: int
    batch_size: int
    repeats: int = 1
    cost: Cost | None = None

    @property
    def text(self) -> str:
        """The setting in a few words."""
        repeats = f", {self.repeats} times" if self.repeats > 1 else ""
        return f"{self.source}: {self.n_trials} x {self.steps} x {self.batch_size}{repeats}"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A preset's published settings; the first is the preset's own. rows_per_image: caption rows of an image in a released epoch."""

    rows_per_image: int
    settings: tuple[Setting, ...]


def _setting(source: str, n_trials: int, steps: int, batch_size: int, *, repeats: int = 1, cost: Cost | None = None) -> Setting:
    return Setting(source=source, n_trials=n_trials, steps=steps, batch_size=batch_size, repeats=repeats, cost=cost)


def _few(n_trials: int, steps: int, images_a_class: int) -> Setting:
    """Few-shot of two classes: all labelled images are one batch, and the search is repeated five times."""
    return _setting(f"history, {images_a_class} a class", n_trials, steps, 2 * images_a_class, repeats=5)


_IWILDCAM = 5.19e6  # 20 epochs x 2 rows x 129,809 images
_IMAGENET = 12.8e6  # 10 epochs x 1,281,167 images; its table has a row an image
PUBLISHED: Mapping[str, Published] = {
    "iwildcam": Published(
        rows_per_image=2,
        settings=(
            _setting("script", 500, 10, 256, cost=Cost(search_samples=1.28e6, final_samples=_IWILDCAM, search_over_final=0.25, by_images=0.49)),
            _setting("README", 500, 100, 256, cost=Cost(search_samples=12.8e6, final_samples=_IWILDCAM, search_over_final=2.46)),
        ),
    ),
    "fmow": Published(
        rows_per_image=16,
        settings=(
            # 20 epochs x 16 rows x 76,863 images
            _setting("script", 500, 10, 256, cost=Cost(search_samples=1.28e6, final_samples=24.6e6, search_over_final=0.052, by_images=0.83)),
            _setting("README", 500, 100, 256),
        ),
    ),
    "imagenet": Published(
        rows_per_image=1,
        settings=(
            _setting("README", 100, 5, 512, cost=Cost(search_samples=0.256e6, final_samples=_IMAGENET, search_over_final=0.02)),
            _setting("script", 500, 100, 512, cost=Cost(search_samples=25.6e6, final_samples=_IMAGENET, search_over_final=2.0)),
        ),
    ),
    "imagenet-fewshot": Published(
        rows_per_image=1,
        settings=tuple(_setting(f"script, {k} a class", 100, steps, 512) for k, steps in ((4, 5), (16, 20), (32, 50))),
    ),
    "cifar10": Published(rows_per_image=1, settings=(_setting("history", 100, 10, 256),)),
    "sst2": Published(rows_per_image=1, settings=(_few(50, 10, 4), _few(50, 10, 16), _few(20, 5, 32))),
    "patchcamelyon": Published(rows_per_image=1, settings=(_few(50, 10, 4), _few(50, 10, 16), _few(50, 10, 32))),
    "caltech101": Published(rows_per_image=34, settings=(_setting("script", 100, 10, 256), _setting("history", 200, 50, 256))),
    "cars": Published(rows_per_image=8, settings=(_setting("script", 500, 50, 256),)),
    "flowers": Published(rows_per_image=1, settings=(_setting("script", 500, 350, 256),)),
}

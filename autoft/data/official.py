"""How many examples the published data sets have, so that an incomplete copy is noticed before any work."""

from collections.abc import Mapping

from autoft.config import CifarCDataset, ImageNetCDataset, OfficialDataset
from autoft.errors import DataError

# The 15 test corruptions of ImageNet-C (Hendrycks and Dietterich 2019); the set's four `extra` ones are for tuning.
IMAGENET_C_TYPES = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)

# Examples by (layout, split). A set without splits has its test images under the split its section defaults to; of ImageNet-C and
# CIFAR-10-C it is those of one corruption at one severity, under "test". Checked: against a second source; the others are what
# the named paper says, as remembered.
OFFICIAL_SIZES: Mapping[tuple[str, str], int] = {
    ("imagenet", "train"): 1_281_167,  # Russakovsky et al. 2015, table 1
    ("imagenet", "val"): 50_000,
    ("imagenet_v2", "val"): 10_000,  # Recht et al. 2019: ten images a class
    ("imagenet_r", "val"): 30_000,  # Hendrycks et al. 2021a; checked: the set's dataset card
    ("imagenet_a", "val"): 7_500,  # Hendrycks et al. 2021b
    ("imagenet_sketch", "val"): 50_889,  # Wang et al. 2019
    ("objectnet", "val"): 18_574,  # Barbu et al. 2019, the 113 classes it shares with ImageNet of 50,273 images in all
    ("imagenet_c", "test"): 50_000,
    ("iwildcam", "train"): 129_809,  # Koh et al. 2021; checked: a mirror's card counts the same five splits of v2.0
    ("iwildcam", "val"): 14_961,
    ("iwildcam", "test"): 42_791,
    ("iwildcam", "id_val"): 7_314,
    ("iwildcam", "id_test"): 8_154,
    ("fmow", "train"): 76_863,  # Koh et al. 2021; checked: the five add up to 141,696, which others count in v1.1 without `seq`
    ("fmow", "val"): 19_915,
    ("fmow", "test"): 22_108,
    ("fmow", "id_val"): 11_483,
    ("fmow", "id_test"): 11_327,
    ("cifar10", "train"): 50_000,  # Krizhevsky 2009
    ("cifar10", "test"): 10_000,
    ("cifar10_1", "test"): 2_000,  # Recht et al. 2018, v6
    ("cifar10_2", "train"): 10_000,  # Lu et al. 2020
    ("cifar10_2", "test"): 2_000,
    ("cifar10_c", "test"): 10_000,  # Hendrycks and Dietterich 2019
    ("patchcamelyon", "train"): 262_144,  # Veeling et al. 2018
    ("patchcamelyon", "valid"): 32_768,
    ("patchcamelyon", "test"): 32_768,
    ("stanford_cars", "train+val"): 8_144,  # Krause et al. 2013: the official train split, of which a part is our val
    ("stanford_cars", "test"): 8_041,
    ("flowers102", "train"): 1_020,  # Nilsback and Zisserman 2008
    ("flowers102", "val"): 1_020,
    ("flowers102", "test"): 6_149,
    ("caltech101", "train+val+test"): 8_677,  # Fei-Fei et al. 2004, without BACKGROUND_Google; it has no official split
}


def official_size(dataset: OfficialDataset) -> int | None:
    """The published number of examples of a set as its section selects it, before slices and draws; None where none is known."""
    layout: str = dataset.layout  # type: ignore[attr-defined]  # every concrete section has one
    if isinstance(dataset, ImageNetCDataset):
        return OFFICIAL_SIZES[layout, "test"] * len(set(dataset.types or IMAGENET_C_TYPES))
    if isinstance(dataset, CifarCDataset):
        return OFFICIAL_SIZES[layout, "test"] * (len(set(dataset.types)) if dataset.types else 19)
    return OFFICIAL_SIZES.get((layout, getattr(dataset, "split", "test")))


def check_official_size(dataset: OfficialDataset, field: str, found: int) -> None:
    """Compare a listing's length with the published one, unless `check_size` is false.

    Raises:
        DataError: with both numbers.
    """
    published = official_size(dataset)
    if not dataset.check_size or published is None or found == published:
        return
    layout: str = dataset.layout  # type: ignore[attr-defined]
    several = sum(name == layout for name, _ in OFFICIAL_SIZES) > 1
    name = f"{layout} {getattr(dataset, 'split', '')}" if several else layout
    problem = "this is an incomplete copy" if found < published else "this is not the published set"
    raise DataError(
        f"{field}.path = {dataset.path}: {problem}: {found:,} images found, {published:,} published for {name}; "
        "check_size: false uses it as it is"
    )

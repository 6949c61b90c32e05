"""DRM-style, reconstructed: what dual risk minimisation (Xie et al. 2024, arXiv 2411.19757) needs of descriptions of the classes.

Its idea: fine-tuning keeps close to what the zero-shot model makes of an image's core features, which sentences describe, as a stand-in for
the worst case over domains. Its released code is for inference only, from which come the two heads and how their probabilities are mixed
(`ClipClassifier`). Training is reconstructed: a second head over the fine-tuned image features is trained towards probabilities that come
from the frozen model's affinity, cos(image, description), normalised. The paper has such a normalisation; over what, we do not know.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from autoft.config import DataConfig, DrmConfig, StudyConfig
from autoft.data import ClassTable
from autoft.data.descriptions import Descriptions, load_descriptions
from autoft.errors import ConfigError
from autoft.models.lengths import check_lengths
from autoft.models.load import Tokenizer
from autoft.on_device import sent
from autoft.search_space import Hyperparameters

TERM = "drm"
_SMALLEST_SUM = 1e-12  # of a row of normalised affinities that still says something


def core_beta(hyperparameters: Hyperparameters) -> float | None:
    """The share of the first head in the predictions of a model fine-tuned with these; None: it predicts alone."""
    return hyperparameters.drm_beta if TERM in hyperparameters.loss_weights else None


def check_terms_available(config: StudyConfig, hyperparameters: Hyperparameters) -> None:
    """Raise ConfigError if a loss term needs something the study does not have."""
    if TERM in hyperparameters.loss_weights and config.data.descriptions is None:
        raise ConfigError(
            f"loss_weights.{TERM} = {hyperparameters.loss_weights[TERM]:g} needs data.descriptions, a file with descriptions of the "
            f"classes, and study {config.study} has none; `autoft describe` writes one"
        )


def read_descriptions(data: DataConfig, classes: ClassTable, tokenizer: Tokenizer) -> Descriptions | None:
    """The sentences of each class, in the class table's order; None in a study without `data.descriptions`.

    Raises:
        DataError: naming what is wrong in the file, or the sentence that is too long for the model.
    """
    if data.descriptions is None:
        return None
    descriptions = load_descriptions(Path(data.descriptions), classes)
    check_lengths(tokenizer, descriptions, classes.names)
    return descriptions


def affinities(image_features: Tensor, core_weight: Tensor) -> Tensor:
    """cos(image, description), (n, classes) fp32.

    Args:
        image_features: (n, dim) of length 1.
        core_weight: (classes, dim), the zero-shot head of the descriptions: their mean embeddings at any length.
    """
    directions = nn.functional.normalize(core_weight.float(), dim=1)
    with torch.autocast(image_features.device.type, enabled=False):
        return image_features.float() @ directions.T.to(image_features.device)


def core_probabilities(affinity: Tensor, config: DrmConfig, low: Tensor, high: Tensor) -> Tensor:
    """Affinities as probabilities over the classes, (n, classes), rows summing to 1. Reconstructed.

    First each class's column (`per_class`) or each image's row (`per_image`) is brought to [0, 1] by its minimum and maximum, or nothing is
    (`none`); then a row is divided by its sum, or with a temperature goes through a softmax. Where the minimum is the maximum there is
    nothing to tell, and the affinity counts as 0; an image without any affinity left gets equal probabilities.

    Args:
        affinity: (n, classes) fp32, of any images.
        low, high: (classes,), the smallest and the largest affinity of each class over all of TRAIN; used by `per_class`.
    """
    if config.normalization == "per_image":
        low, high = affinity.amin(dim=1, keepdim=True), affinity.amax(dim=1, keepdim=True)
    if config.normalization != "none":
        affinity = torch.where(high > low, (affinity - low) / (high - low), 0.0)
    if config.temperature is not None:
        return (affinity / config.temperature).softmax(dim=1)
    total = affinity.sum(dim=1, keepdim=True)
    return torch.where(total > _SMALLEST_SUM, affinity / total, 1 / affinity.shape[1])


class CoreTargets:
    """What the head of descriptions is trained towards: probabilities of TRAIN's examples, made from their affinities when asked for."""

    def __init__(self, affinity: Tensor, config: DrmConfig, device: torch.device) -> None:
        """affinity: (n, classes) fp32 of all of TRAIN, 4 n classes bytes, on `device` or on the CPU."""
        self._affinity, self._config, self._device = affinity, config, device
        self._low, self._high = (bound.to(device) for bound in (affinity.amin(dim=0), affinity.amax(dim=0)))

    def of(self, examples: Tensor) -> Tensor:
        """(batch, classes) probabilities on the device, for (batch,) int64 on the CPU. Does not wait for the device."""
        if self._affinity.device.type == self._device.type:
            rows = self._affinity[sent(examples, self._device)]
        else:
            rows = sent(self._affinity[examples], self._device)
        return core_probabilities(rows, self._config, self._low, self._high)

"""Effective robustness: how far a model's OOD accuracy lies above what its ID accuracy alone would lead one to expect.

Taori et al. 2020, arXiv 2007.00644, and WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903): rho(f) = acc_ood(f) - beta(acc_id(f)), where
beta is a line through baseline models on logit axes (probit there too), fitted by least squares. All accuracies are shares in [0, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from autoft.errors import DataError
from autoft.evaluate import clopper_pearson
from autoft.report.results import Score

Scale = Literal["logit", "probit"]
# Baselines whose ID accuracies, in logits, lie closer together than this determine no slope; 0.1 is 2.5 points at 50 % and 0.9 points
# at 90 %, about the noise of a test set of a thousand images. Ours.
MIN_SPREAD = 0.1
UNKNOWN_IMAGES = 1000  # what an accuracy of exactly 0 or 1 is taken to be measured on where nobody says


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """beta: scale(expected OOD accuracy) = slope * scale(ID accuracy) + intercept.

    slope_fitted: False where the baselines are too few or too alike to fit a slope, or the line would fall; it is 1 then, through
        their mean.
    models: how many baselines there were.
    """

    slope: float
    intercept: float
    scale: Scale
    slope_fitted: bool
    models: int

    def expected(self, id_accuracy: float, images: int = UNKNOWN_IMAGES) -> float:
        """The OOD accuracy that goes with an ID accuracy over so many images, in (0, 1)."""
        place = self.slope * _place(id_accuracy, self.scale, images) + self.intercept
        return float(special.expit(place) if self.scale == "logit" else special.ndtr(place))


def fit_baseline(
    points: Sequence[tuple[float, float]], scale: Scale = "logit", id_images: int = UNKNOWN_IMAGES, ood_images: int = UNKNOWN_IMAGES
) -> Baseline:
    """The least-squares line of OOD over ID accuracy on logit or probit axes, every model counting the same.

    With fewer than two different ID accuracies, or ID accuracies within `MIN_SPREAD` logits of each other, no slope can be told from
    noise: then slope 1 through the mean, and `slope_fitted` is False. The same where the line falls: that better models in distribution are
    worse out of it is what noise, or two kinds of models, make of a narrow range, and no rule to hold others against.

    Args:
        points: (ID, OOD) accuracy of each baseline model.
        id_images, ood_images: how many images they are of; used for accuracies of exactly 0 and 1 alone.

    Raises:
        DataError: there are no points, or one is not a pair of accuracies.
    """
    if not points:
        raise DataError("effective robustness needs at least one baseline model, such as the zero-shot or the plainly fine-tuned one")
    x = np.array([_place(point[0], scale, id_images) for point in points])
    y = np.array([_place(point[1], scale, ood_images) for point in points])
    logits = [_place(point[0], "logit", id_images) for point in points]
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred)) if max(logits) - min(logits) >= MIN_SPREAD else 0.0
    fitted = slope > 0
    slope = slope if fitted else 1.0
    return Baseline(slope=slope, intercept=float(y.mean() - slope * x.mean()), scale=scale, slope_fitted=fitted, models=len(points))


def effective_robustness(id_accuracy: float, ood_accuracy: float, baseline: Baseline, id_images: int = UNKNOWN_IMAGES) -> float:
    """rho = OOD accuracy - beta(ID accuracy), a difference of shares: 0.02 is two percentage points. Raises DataError as `fit_baseline`."""
    _check(ood_accuracy)
    return ood_accuracy - baseline.expected(id_accuracy, id_images)


def robustness_interval(
    id_accuracy: float, ood_interval: tuple[float, float], baseline: Baseline, id_images: int = UNKNOWN_IMAGES
) -> tuple[float, float]:
    """The OOD accuracy's interval, shifted by what was expected.

    It ignores that the ID accuracy and the baseline are uncertain too, so it is too narrow, the more so the fewer baselines there are.
    """
    expected = baseline.expected(id_accuracy, id_images)
    return ood_interval[0] - expected, ood_interval[1] - expected


def accuracy_score(accuracy: float, n: int, confidence: float = 0.95) -> Score:
    """An accuracy over `n` images with its exact interval (Clopper and Pearson 1934). Raises DataError if no count over n is that."""
    correct = round(accuracy * n)
    if n < 1 or not 0 <= accuracy <= 1 or abs(accuracy * n - correct) > 0.01:
        raise DataError(f"an accuracy of {accuracy} over {n} images: no number of right answers gives that")
    tail = (1 - confidence) / 2
    low, high = clopper_pearson(np.array(correct), np.array(n), tail, tail)
    return Score(accuracy, float(low), float(high), n)


def _place(accuracy: float, scale: Scale, images: int) -> float:
    """An accuracy's logit or probit. k = 0 and k = n right answers out of n count as (k + 0.5) / (n + 1); other accuracies as they are."""
    _check(accuracy)
    share = (images * accuracy + 0.5) / (images + 1) if accuracy in (0.0, 1.0) else accuracy
    return math.log(share / (1 - share)) if scale == "logit" else float(special.ndtri(share))


def _check(accuracy: float) -> None:
    if not 0 <= accuracy <= 1:
        raise DataError(f"effective robustness needs accuracies in [0, 1], got {accuracy}")

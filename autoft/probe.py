"""The linear probe: logistic regression on the frozen image features, where LP-FT starts from (Kumar et al. 2022, arXiv 2202.10054).

Their released code takes scikit-learn's LogisticRegression with C out of logspace(-7, 2, 100) and at most 200 iterations, and keeps the C
that is best on validation data. Here the same regression runs on the device, over fewer C. Reconstructed: the grid, since our features have
length 1 and theirs are many times longer, so that their weights need less freedom; and what C is chosen on. A trial loads VAL_OOD alone,
which the probe must not see, so C is chosen on a tenth of TRAIN, the same way everywhere, and the regression then fitted to all of TRAIN.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from autoft.errors import ModelError
from autoft.evaluate import NO_GROUP, metric_fn
from autoft.frozen import train_features
from autoft.workspace import Workspace

logger = logging.getLogger(__name__)

GRID = tuple(10 ** (exponent / 2) for exponent in range(-4, 11))  # C from 0.01 to 100,000, two a decade
HELD_OUT = 0.1  # share of each class that C is chosen on
MAX_ITERATIONS = 200
TOLERANCE = 1e-6  # of the largest entry of the gradient of the mean loss
_LOGITS_AT_ONCE = 2**24  # bounds memory: 128 MB in float64


@dataclass(frozen=True)
class Probe:
    """A linear classifier over image features of length 1: logits = features @ weight.T + bias, without a temperature.

    weight: (classes, dim) fp32; bias: (classes,) fp32; both on the workspace's device.
    c: the inverse strength of the penalty, out of `GRID`.
    score: the study's metric on the held-out part of TRAIN, of the regression fitted to the rest with that C.
    """

    weight: Tensor
    bias: Tensor
    c: float
    score: float


def fit_probe(workspace: Workspace) -> Probe:
    """The linear probe of a workspace's zero-shot model, fitted to TRAIN under the evaluation transform; fitted once, then remembered.

    C is the best of `GRID` under the study's metric on the held-out tenth of TRAIN (see `split`), the smaller one in a tie. Leaves the
    workspace's model as it was, whatever it was: weights and mode. Waits for the device.

    Raises:
        ModelError: features are not finite.
    """
    if "linear_probe" not in workspace.cached:
        features, labels = _finite(train_features(workspace)).to(workspace.device), workspace.train.labels
        classes = workspace.model.head.out_features
        with torch.autocast(workspace.device.type, enabled=False):
            weight, bias, c, score = _choose(workspace, features, labels, classes)
            weight, bias = fit_logistic(features, labels, classes, c, start=(weight, bias))
        logger.info("linear probe: C %g, %s %.4f on a tenth of TRAIN", c, workspace.config.metric, score)
        workspace.cached["linear_probe"] = Probe(weight.float(), bias.float(), c, score)
    probe: Probe = workspace.cached["linear_probe"]
    return probe


def _finite(features: Tensor) -> Tensor:
    if not bool(torch.isfinite(features).all()):
        raise ModelError(
            f"the zero-shot model's features of the {len(features)} images of TRAIN are not all finite: no linear probe can be fitted"
        )
    return features


def split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The examples to fit on and those to choose C on, both (k,) int64, ascending: of each class a tenth, and at least one, is held out.

    A class with a single example keeps it; if all classes are like that, C is chosen on what was fitted. Drawn with a fixed seed.

    Args:
        labels: (n,) int64 on the CPU.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - first.repeat_interleave(counts)  # of each entry of by_class within its class
    wanted = (counts * HELD_OUT).round().long().clamp(min=1).where(counts > 1, 0).repeat_interleave(counts)
    kept, held_out = by_class[rank >= wanted].sort().values, by_class[rank < wanted].sort().values
    return kept, held_out if len(held_out) else kept


def _choose(workspace: Workspace, features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, float, float]:
    """Weight, bias, C and score of the best regression over `GRID`, each fit warm-started by the one before."""
    kept, held_out = (examples.to(features.device) for examples in split(workspace.train.labels_cpu))
    groups = None if workspace.train.groups is None else workspace.train.groups[held_out]
    if groups is not None and not bool((groups != NO_GROUP).any()):
        groups = None  # then the metric's groups are the classes
    metric, sign = metric_fn(workspace.config.metric), 1 if workspace.config.direction == "maximize" else -1
    shown, answers = features[kept], labels[kept]
    start: tuple[Tensor, Tensor] | None = None
    best: tuple[Tensor, Tensor, float, float] | None = None
    for c in GRID:
        start = weight, bias = fit_logistic(shown, answers, classes, c, start)
        logits = features[held_out].to(weight.dtype) @ weight.T + bias
        score = float(metric(logits, labels[held_out], groups, classes))
        if best is None or sign * score > sign * best[3]:
            best = weight, bias, c, score
    assert best is not None
    return best


@torch.no_grad()
def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    c: float,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression as scikit-learn defines it: minimises |weight|^2 / 2 + c * (sum of cross-entropies).

    The bias is not penalised. L-BFGS with a strong Wolfe line search over all examples at once, in float64 on a CPU and float32 elsewhere.
    Features are centred first, and the bias corrected for it afterwards: the same optimum in far fewer iterations, since CLIP's features
    share most of their direction. The bias of a class without examples has no optimum: it ends where its gradient is below the tolerance.

    Args:
        features: (n, dim) of any float type. labels: (n,) int64 in [0, classes), on the same device.
        start: weight and bias to start from instead of zeros.
        tolerance: stop where no entry of the gradient of the objective over c * n is larger.

    Returns:
        weight (classes, dim) and bias (classes,).
    """
    dtype = torch.float64 if features.device.type == "cpu" else torch.float32
    centre = features.mean(dim=0, dtype=dtype)
    design = torch.cat([features.to(dtype) - centre, features.new_ones(len(features), 1, dtype=dtype)], dim=1)
    solution = torch.zeros(classes, design.shape[1], dtype=dtype, device=design.device, requires_grad=True)
    if start is not None:
        weight, bias = (part.to(dtype) for part in start)
        solution.copy_(torch.cat([weight, (bias + weight @ centre)[:, None]], dim=1))
    optimizer = torch.optim.LBFGS(
        [solution],
        max_iter=max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-14 if dtype == torch.float64 else 1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        value, solution.grad = _objective(design, labels, solution, c)
        return value

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    weight = solution[:, :-1].detach().clone()
    return weight, solution[:, -1].detach() - weight @ centre


def _objective(design: Tensor, labels: Tensor, solution: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """The objective over c * n, a scalar, and its gradient (classes, dim + 1); the last column of `solution` is the bias."""
    n, rows = len(design), max(1, _LOGITS_AT_ONCE // len(solution))
    weight = solution[:, :-1]
    value = weight.square().sum() / (2 * c)
    gradient = torch.zeros_like(solution)
    gradient[:, :-1] = weight / c
    for start in range(0, n, rows):
        part, answers = design[start : start + rows], labels[start : start + rows, None]
        log_p = (part @ solution.T).log_softmax(dim=1)
        value -= log_p.gather(1, answers).sum()
        residual = log_p.exp_()
        residual.scatter_add_(1, answers, residual.new_full(answers.shape, -1.0))
        gradient += residual.T @ part
    return value / n, gradient / n

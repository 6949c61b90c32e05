"""Loss terms of other robust fine-tuning methods, by name. Published strengths are a method's weights, not part of a term."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from autoft.losses import core_tuning, distillation, other_heads
from autoft.losses.outputs import LossTerm, MethodOutputs, StepOutputs

T = TypeVar("T")


def _more(outputs: StepOutputs) -> MethodOutputs:
    return _there(outputs.more, "more")


def _there(part: T | None, name: str) -> T:
    if part is None:
        raise ValueError(f"a loss term needs `{name}` of a step's outputs; see needs_of")
    return part


def _drm(outputs: StepOutputs) -> Tensor:
    more = _more(outputs)
    return other_heads.soft_cross_entropy(_there(more.core_logits, "core_logits"), _there(more.core_targets, "core_targets"))


def _feature_mixup(outputs: StepOutputs) -> Tensor:
    return core_tuning.feature_mixup(outputs.logits, outputs.labels, _there(_more(outputs).mixtures, "mixtures"))


def _focal_contrastive(outputs: StepOutputs) -> Tensor:
    return core_tuning.focal_contrastive(outputs.image_features, outputs.labels, _there(_more(outputs).mixtures, "mixtures"))


def _ldifs(outputs: StepOutputs) -> Tensor:
    more = _more(outputs)
    return distillation.ldifs(_there(more.slices, "slices"), _there(more.teacher_slices, "teacher_slices"))


def _car_ft(outputs: StepOutputs) -> Tensor:
    more = _more(outputs)
    teacher, contexts = _there(more.teacher_features, "teacher_features"), _there(more.contexts, "contexts")
    return distillation.car_ft(outputs.image_features, teacher, contexts, more.scale)


def _lipsum(outputs: StepOutputs) -> Tensor:
    more = _more(outputs)
    teacher, texts = _there(more.teacher_features, "teacher_features"), _there(more.random_texts, "random_texts")
    return distillation.lipsum(outputs.image_features, teacher, texts, more.scale)


def _margin(outputs: StepOutputs) -> Tensor:
    more = _more(outputs)
    return other_heads.margin_cross_entropy(outputs.image_features, outputs.labels, more.initial_head, more.margin)


METHOD_TERMS: Mapping[str, LossTerm] = {
    "drm": LossTerm(
        "drm",
        _drm,
        needs=frozenset({"core"}),
        description="cross-entropy of the core-feature head with the frozen model's affinities to the descriptions; stands for the worst case",
        source="dual risk minimisation, arXiv 2411.19757; reconstructed",
    ),
    "feature_mixup": LossTerm(
        "feature_mixup",
        _feature_mixup,
        couples_examples=True,
        needs=frozenset({"mixtures"}),
        description="cross-entropy with mixed labels on mixtures of hard pairs of image features",
        source="Core-tuning, Zhang et al. 2021, arXiv 2102.06605; its projector and head reconstructed for CLIP",
    ),
    "focal_contrastive": LossTerm(
        "focal_contrastive",
        _focal_contrastive,
        couples_examples=True,
        needs=frozenset({"mixtures"}),
        description="supervised contrastive loss over image features and their mixtures, weighted towards pairs that are far apart",
        source="Core-tuning, Zhang et al. 2021, arXiv 2102.06605; its projector and head reconstructed for CLIP",
    ),
    "ldifs": LossTerm(
        "ldifs",
        _ldifs,
        needs=frozenset({"slices"}),
        description="squared distance of intermediate features to those of the frozen image tower",
        source="LDIFS, Mukhoti et al., arXiv 2308.13320; slices of towers other than its ViT reconstructed",
    ),
    "car_ft": LossTerm(
        "car_ft",
        _car_ft,
        needs=frozenset({"teacher", "contexts"}),
        description="divergence from the frozen model's distribution over contexts (photo, sketch, ...)",
        source="CAR-FT, Mao et al. 2024, arXiv 2211.16175",
    ),
    "lipsum": LossTerm(
        "lipsum",
        _lipsum,
        needs=frozenset({"teacher", "random_texts"}),
        description="squared change of the logits of random texts against the frozen model",
        source="Lipsum-FT, Nam et al. 2024, arXiv 2404.00860; its pool of texts reconstructed",
    ),
    "margin": LossTerm(
        "margin",
        _margin,
        description="cross-entropy of the frozen zero-shot head, with a margin that grows with the unlikeness of two classes' texts",
        source="CLIPood, Shu et al. 2023, arXiv 2302.00864",
    ),
}

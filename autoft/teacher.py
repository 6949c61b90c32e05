"""What other methods' loss terms need beside the model's own forward pass: above all one forward pass of the frozen model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autoft.config.vocabulary import fill, templates
from autoft.core_features import CoreTargets, affinities
from autoft.errors import ModelError
from autoft.frozen import frozen_clip, train_features
from autoft.losses import MethodOutputs, Need
from autoft.losses.mixtures import draw_mixtures
from autoft.models import ClipClassifier, LoadedModel
from autoft.models import slices as tower_slices
from autoft.on_device import sent
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace, resident_device

FEWEST_TEMPLATES = 8  # with so many templates of its own a study's are the contexts; ours
TEXT_POOL = 1024  # random texts embedded once; ours, see `random_texts`
TEXTS = 80  # of them in a step; the published number (arXiv 2404.00860)
WORDS = 8  # tokens of a random text, likewise
_POOL_SEED = 0x11_9503  # one pool for all studies and seeds
_CHUNK = 256


@contextmanager
def captured_slices(model: ClipClassifier, wanted: bool) -> Iterator[list[Tensor] | None]:
    """Collects intermediate features of the image tower while it runs within the block; None where they are not wanted."""
    if not wanted:
        yield None
        return
    with tower_slices.captured(model.clip.visual) as found:  # type: ignore[arg-type]
        yield found


def method_outputs(
    workspace: Workspace,
    hyperparameters: Hyperparameters,
    needs: frozenset[Need],
    images: Tensor,
    examples: Tensor,
    image_features: Tensor,
    slices: Sequence[Tensor] | None,
    rng: torch.Generator,
) -> MethodOutputs:
    """What the active terms of other methods look at, computed once for all of them. Call it under the workspace's autocast.

    The first call of a workspace builds the frozen model and embeds texts; no later one waits for the device.

    Args:
        needs: of the active terms; nothing else is computed.
        images: (batch, 3, size, size), as the model has seen them. examples: (batch,) int64 on the CPU, of TRAIN.
        image_features: (batch, dim), the model's. slices: its `captured_slices`.
        rng: the step's own stream, on the CPU.

    Raises:
        ModelError: the model's slices are of other shapes than the frozen one's, or its tokenizer cannot be used for random texts.
    """
    zero_shot, device = workspace.zero_shot.tensors, workspace.device
    parts: dict[str, Any] = {}
    if "core" in needs:
        parts["core_logits"], parts["core_targets"] = core_outputs(workspace, image_features, examples)
    if "mixtures" in needs:
        labels = workspace.train.labels[sent(examples, device)]
        parts["mixtures"] = draw_mixtures(image_features.detach(), labels, rng)
    if needs & {"teacher", "slices"}:
        parts["teacher_features"], parts["teacher_slices"] = _frozen_forward(workspace, images, wanted="slices" in needs)
        _check_shapes(slices, parts["teacher_slices"])
    if "contexts" in needs:
        parts["contexts"] = contexts(workspace)
    if "random_texts" in needs:
        drawn = torch.randperm(TEXT_POOL, generator=rng)[:TEXTS]
        parts["random_texts"] = random_texts(workspace)[sent(drawn, device)]
    return MethodOutputs(
        initial_head=zero_shot["head.weight"],
        scale=zero_shot["clip.logit_scale"].exp(),
        margin=hyperparameters.margin,
        slices=slices,
        **parts,
    )


def core_outputs(workspace: Workspace, image_features: Tensor, examples: Tensor) -> tuple[Tensor, Tensor]:
    """Of a batch of TRAIN, the logits of the head of descriptions and what they are trained towards (DRM-style, reconstructed).

    The first call goes once through TRAIN with the frozen model.

    Args:
        image_features: (batch, dim) of length 1, by the model as it trains.
        examples: (batch,) int64 on the CPU.

    Returns:
        logits (batch, classes), and probabilities (batch, classes) fp32 without gradients.
    """
    if "core_targets" not in workspace.cached:
        found = affinities(train_features(workspace), workspace.zero_shot.tensors["core_head.weight"])
        kept = found.to(resident_device(found.nbytes, workspace.device))
        workspace.cached["core_targets"] = CoreTargets(kept, workspace.config.drm, workspace.device)
    targets: CoreTargets = workspace.cached["core_targets"]
    return workspace.model.core_logits(image_features), targets.of(examples)


@torch.no_grad()
def _frozen_forward(workspace: Workspace, images: Tensor, wanted: bool) -> tuple[Tensor, list[Tensor] | None]:
    """The frozen model's image features, (batch, dim) of length 1, and the image tower's slices if they are wanted."""
    clip = frozen_clip(workspace)
    if not wanted:
        return clip.encode_image(images, normalize=True), None  # type: ignore[operator]
    with tower_slices.captured(clip.visual) as found:  # type: ignore[arg-type]
        return clip.encode_image(images, normalize=True), found  # type: ignore[operator]


def _check_shapes(own: Sequence[Tensor] | None, frozen: Sequence[Tensor] | None) -> None:
    if own is None or frozen is None:
        return
    shapes, expected = [tuple(part.shape) for part in own], [tuple(part.shape) for part in frozen]
    if shapes != expected:
        raise ModelError(
            f"loss_weights.ldifs: while it trains, the model's intermediate features are of the shapes {shapes}, those of the frozen model "
            f"of {expected}; use a model without patch dropout (vision_cfg.patch_dropout = 0)"
        )


def contexts(workspace: Workspace) -> Tensor:
    """(contexts, dim) of length 1: each prompt template's embedding by the frozen model, mean over the study's classes (CAR-FT).

    The templates are the study's own if it has at least 8; else there are too few contexts to tell apart, and they are the 80 of
    ImageNet, filled with the study's class names. Reconstructed: the published ones are ImageNet's.
    """
    if "contexts" not in workspace.cached:
        own = workspace.config.data.templates
        chosen = own if len(own) >= FEWEST_TEMPLATES else templates("imagenet")
        tokenizer, names = workspace.loaded.tokenizer, workspace.data.classes.names
        rows = [_embedded(workspace, tokenizer([fill(template, name) for name in names])).mean(dim=0) for template in chosen]
        workspace.cached["contexts"] = functional.normalize(torch.stack(rows), dim=1)
    found: Tensor = workspace.cached["contexts"]
    return found


def random_texts(workspace: Workspace) -> Tensor:
    """(1024, dim) of length 1: the pool of random texts, embedded by the frozen model.

    Reconstructed simplification: Lipsum-FT embeds new texts at every step; here a step draws 80 of a fixed pool.
    """
    if "random_texts" not in workspace.cached:
        workspace.cached["random_texts"] = _embedded(workspace, random_tokens(workspace.loaded, TEXT_POOL))
    found: Tensor = workspace.cached["random_texts"]
    return found


def random_tokens(loaded: LoadedModel, texts: int) -> Tensor:
    """(texts, context) int64: texts of 8 random tokens each, or as many as fit, within whatever the tokenizer puts around a text.

    Where the tokens go is where two texts of different words differ, which holds for any tokenizer. Special tokens are not drawn.

    Raises:
        ModelError: the tokenizer does not tell how many tokens there are, or two texts of different words are the same to it.
    """
    one, other, empty = loaded.tokenizer([" ".join("a" * WORDS), " ".join("b" * WORDS), ""])
    places = one != other
    hf = getattr(loaded.tokenizer, "tokenizer", None)
    sizes = [loaded.open_clip_config["model_cfg"]["text_cfg"].get("vocab_size"), getattr(loaded.tokenizer, "vocab_size", None)]
    known = [size for size in [*sizes, None if hf is None else len(hf)] if size is not None]
    if not known or not places.any():
        raise ModelError("loss_weights.lipsum: the model's tokenizer cannot be used to make random texts; leave the term out")
    special = {*one[~places].tolist(), *empty.tolist(), *getattr(hf, "all_special_ids", ())}
    words = torch.tensor(sorted(set(range(min(known))) - special))
    drawn = torch.randint(len(words), (texts, int(places.sum())), generator=torch.Generator().manual_seed(_POOL_SEED))
    tokens: Tensor = one.repeat(texts, 1)
    tokens[:, places] = words[drawn]
    return tokens


@torch.no_grad()
def _embedded(workspace: Workspace, tokens: Tensor) -> Tensor:
    """(texts, dim) of length 1, in full precision, by the frozen model."""
    clip = frozen_clip(workspace)
    with torch.autocast(workspace.device.type, enabled=False):
        parts = [clip.encode_text(part.to(workspace.device), normalize=True) for part in torch.split(tokens, _CHUNK)]  # type: ignore[operator]
        return torch.cat(parts)

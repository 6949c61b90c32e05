"""An open_clip model with a linear head over its image features."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoft.config.vocabulary import fill
from autoft.models.load import LoadedModel, Tokenizer


class ClipClassifier(nn.Module):
    """Both towers of a CLIP model (`clip`) and a trainable linear classifier (`head`) over normalised image features.

    The head starts as the zero-shot classifier: prompt embeddings times exp(logit_scale), zero bias.

    Dual risk minimisation adds a second one, `core_head`, made of descriptions of the classes instead of prompts, in the same way. It is
    there in studies that have descriptions, and takes gradients only where `train_heads` says so. `core_beta` in [0, 1] is the first
    head's share in the predicted probabilities; with None the first head predicts alone.
    """

    def __init__(self, clip: nn.Module, head: nn.Linear, core_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.head = head
        self.core_head = None if core_head is None else core_head.requires_grad_(False)
        self.core_beta: float | None = None

    def image_features(self, images: Tensor) -> Tensor:
        """(batch, 3, size, size) normalised pixels to (batch, dim) features of length 1."""
        features: Tensor = self.clip.encode_image(images, normalize=True)  # type: ignore[operator]
        return features

    def text_features(self, tokens: Tensor) -> Tensor:
        """(texts, context) tokens to (texts, dim) features of length 1."""
        features: Tensor = self.clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return features

    def forward(
        self, images: Tensor, project: Callable[[Tensor], Tensor] | None = None, tower: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """(batch, 3, size, size) normalised pixels to (batch, classes) logits; with `core_beta` log probabilities of the heads' mixture.

        Args:
            project: turns logits of the study's classes into those of a set with classes of its own; for each head before they are mixed.
            tower: computes `image_features` in another way.
        """
        features = self.image_features(images) if tower is None else tower(images)
        heads = [self.head] if self.core_beta is None else [self.head, self._core_head]
        logits: list[Tensor] = [head(features) if project is None else project(head(features)) for head in heads]
        return logits[0] if self.core_beta is None else mixed_log_probabilities(logits[0], logits[1], self.core_beta)

    def core_logits(self, image_features: Tensor) -> Tensor:
        """(batch, dim) features to (batch, classes) logits of the head of core-feature descriptions, which must be there."""
        logits: Tensor = self._core_head(image_features)
        return logits

    @property
    def _core_head(self) -> nn.Linear:
        assert self.core_head is not None, "check_terms_available should have refused: there are no descriptions"
        return self.core_head

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the contrastive temperature's inverse; open_clip keeps it in [0, ln 100]."""
        parameter = self.clip.logit_scale
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def channels_last(self) -> "ClipClassifier":
        """This model in evaluation mode, its convolutions laid out channels-last."""
        return self.to(memory_format=torch.channels_last).eval()

    def train_text_tower(self, wanted: bool) -> None:
        """Let the text tower and the logit scale take gradients, or not; the image tower and the head always do."""
        for name, parameter in self.clip.named_parameters():
            parameter.requires_grad_(wanted or name.startswith("visual."))

    def train_heads(self, wanted: bool, core: bool) -> None:
        """Let the head take gradients, or not; `core`: the head of core-feature descriptions, if there is one."""
        self.head.requires_grad_(wanted)
        if self.core_head is not None:
            self.core_head.requires_grad_(core)

    def freeze_batch_norm_statistics(self) -> None:
        """Put BatchNorm layers in evaluation mode; call after `train()`, which undoes it."""
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def mixed_log_probabilities(logits: Tensor, core_logits: Tensor, beta: float) -> Tensor:
    """log(beta softmax(logits) + (1 - beta) softmax(core_logits)), in fp32 or wider; its softmax is the mixture itself.

    Probabilities are mixed, not logits, as in the released evaluation code of dual risk minimisation (arXiv 2411.19757), where beta is 0.5.

    Args:
        logits, core_logits: (..., classes) of one shape.
        beta: in [0, 1]; at 1 and 0 exactly one of the two counts.
    """
    terms = [
        head.to(torch.promote_types(head.dtype, torch.float32)).log_softmax(dim=-1) + (math.log(share) if share else -math.inf)
        for head, share in ((logits, beta), (core_logits, 1 - beta))
    ]
    return torch.logaddexp(*terms)


def zero_shot_head(clip: nn.Module, tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str]) -> nn.Linear:
    """The zero-shot classifier of the given class names (Radford et al. 2021; as in the WiSE-FT and FLYP code).

    A class's texts are the templates with its name; see `text_head`.
    """
    return text_head(clip, tokenizer, [[fill(template, name) for template in templates] for name in names])


@torch.no_grad()
def text_head(clip: nn.Module, tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> nn.Linear:
    """A classifier made of texts, (classes, any number of each): weight (classes, dim) and zero bias.

    For each class: embed every text, normalise, average, normalise; stack, and multiply by exp(logit_scale).
    """
    device = next(clip.parameters()).device
    rows = []
    for of_class in texts:
        embeddings = clip.encode_text(tokenizer(list(of_class)).to(device), normalize=True)  # type: ignore[operator]
        rows.append(functional.normalize(embeddings.mean(dim=0), dim=0))
    weight = torch.stack(rows) * clip.logit_scale.exp()  # type: ignore[operator]
    head = nn.Linear(weight.shape[1], weight.shape[0], device=device)
    head.weight.copy_(weight)
    head.bias.zero_()
    return head


def build_classifier(
    loaded: LoadedModel, names: Sequence[str], templates: Sequence[str], descriptions: Sequence[Sequence[str]] | None = None
) -> ClipClassifier:
    """The zero-shot classifier of a loaded model, on the model's device, in evaluation mode and channels-last layout.

    Args:
        descriptions: (classes, any number of each) sentences for the second head; None: there is none.
    """
    loaded.clip.eval()
    head = zero_shot_head(loaded.clip, loaded.tokenizer, names, templates)
    core_head = None if descriptions is None else text_head(loaded.clip, loaded.tokenizer, descriptions)
    return ClipClassifier(loaded.clip, head, core_head).channels_last()

"""An open_clip model with a linear head over its image features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoft.config.vocabulary import fill
from autoft.models.load import LoadedModel, Tokenizer


class ClipClassifier(nn.Module):
    """Both towers of a CLIP model (`clip`) and a trainable linear classifier (`head`) over normalised image features.

    The head starts as the zero-shot classifier: prompt embeddings times exp(logit_scale), zero bias.
    """

    def __init__(self, clip: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.clip = clip
        self.head = head

    def image_features(self, images: Tensor) -> Tensor:
        """(batch, 3, size, size) normalised pixels to (batch, dim) features of length 1."""
        features: Tensor = self.clip.encode_image(images, normalize=True)  # type: ignore[operator]
        return features

    def text_features(self, tokens: Tensor) -> Tensor:
        """(texts, context) tokens to (texts, dim) features of length 1."""
        features: Tensor = self.clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, size, size) normalised pixels to (batch, classes) logits."""
        logits: Tensor = self.head(self.image_features(images))
        return logits

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

    def freeze_batch_norm_statistics(self) -> None:
        """Put BatchNorm layers in evaluation mode; call after `train()`, which undoes it."""
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


@torch.no_grad()
def zero_shot_head(clip: nn.Module, tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str]) -> nn.Linear:
    """The zero-shot classifier of the given class names (Radford et al. 2021; as in the WiSE-FT and FLYP code).

    For each class: embed every prompt, normalise, average, normalise; stack, and multiply by exp(logit_scale).
    """
    device = next(clip.parameters()).device
    rows = []
    for name in names:
        tokens = tokenizer([fill(template, name) for template in templates]).to(device)
        embeddings = clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
        rows.append(functional.normalize(embeddings.mean(dim=0), dim=0))
    weight = torch.stack(rows) * clip.logit_scale.exp()  # type: ignore[operator]
    head = nn.Linear(weight.shape[1], weight.shape[0], device=device)
    head.weight.copy_(weight)
    head.bias.zero_()
    return head


def build_classifier(loaded: LoadedModel, names: Sequence[str], templates: Sequence[str]) -> ClipClassifier:
    """The zero-shot classifier of a loaded model, on the model's device, in evaluation mode and channels-last layout."""
    loaded.clip.eval()
    return ClipClassifier(loaded.clip, zero_shot_head(loaded.clip, loaded.tokenizer, names, templates)).channels_last()

"""The texts the contrastive term pairs with images: class prompts, or the data set's own captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoft.config.vocabulary import fill
from autoft.models.load import Tokenizer
from autoft.on_device import sent


@dataclass(frozen=True)
class TextBank:
    """Every distinct text once, tokenised, and which texts belong to which class or example.

    tokens: (texts, context) int64 on the model's device.
    choices: (classes or examples, k) int64 on the CPU, rows of `tokens`.
    by_example: whether rows of `choices` are examples (captions) rather than classes (prompts).
    """

    tokens: Tensor
    choices: Tensor
    by_example: bool

    @classmethod
    def of_prompts(cls, tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str], device: torch.device) -> "TextBank":
        """A prompt of the example's class, one of the templates at random each time."""
        texts = [fill(template, name) for name in names for template in templates]
        choices = torch.arange(len(texts)).reshape(len(names), len(templates))
        return cls(tokenizer(texts).to(device), choices, by_example=False)

    @classmethod
    def of_captions(cls, tokenizer: Tokenizer, captions: Sequence[str], device: torch.device) -> "TextBank":
        """The example's own caption."""
        row_of: dict[str, int] = {}
        rows = [row_of.setdefault(caption, len(row_of)) for caption in captions]
        return cls(tokenizer(list(row_of)).to(device), torch.tensor(rows)[:, None], by_example=True)

    def pick(self, examples: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The distinct texts of a batch.

        Args:
            examples, labels: (batch,) int64 on the CPU, so that nothing waits for the device.
            rng: chooses among several texts of a class.

        Returns:
            tokens (distinct, context) and, for each example, its row in them, (batch,), both on the model's device.
        """
        rows = self.choices[examples if self.by_example else labels]
        column = torch.randint(rows.shape[1], (len(rows), 1), generator=rng)
        distinct, index = torch.unique(rows.gather(1, column).squeeze(1), return_inverse=True)
        device = self.tokens.device
        return self.tokens[sent(distinct, device)], sent(index, device)

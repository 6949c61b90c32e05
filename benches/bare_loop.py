"""The limit a trial is measured against: the same steps and evaluation written straight down in PyTorch, everything hot.

No study, no generator, no configuration object: a loaded model, tensors in memory, one function. Nothing here imports autoft but for
reading the inputs (pixels, prompts, the model), so that a slow part of the library cannot hide in its own baseline.
"""

import math
from dataclasses import dataclass

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Hot:
    """Everything a bare trial needs, in memory."""

    clip: nn.Module
    head: nn.Linear
    zero_shot: list[Tensor]
    pixels: Tensor  # uint8 (n, side, side, 3)
    labels: Tensor
    val_pixels: Tensor  # uint8 (n, size, size, 3)
    val_labels: Tensor
    prompts: Tensor  # (classes, templates, context)
    mean: Tensor
    std: Tensor
    size: int


def load_hot(model_name: str, pixels: Tensor, labels: Tensor, val_pixels: Tensor, val_labels: Tensor, texts: list[list[str]]) -> Hot:
    """Load the model and build its zero-shot head; `texts` are the prompts of each class."""
    clip = open_clip.create_model(model_name).eval()
    tokens = torch.stack([open_clip.get_tokenizer(model_name)(prompts) for prompts in texts])
    with torch.no_grad():
        rows = [F.normalize(clip.encode_text(prompts, normalize=True).mean(0), dim=0) for prompts in tokens]
        head = nn.Linear(rows[0].shape[0], len(rows))
        head.weight.copy_(torch.stack(rows) * clip.logit_scale.exp())
        head.bias.zero_()
    clip = clip.to(memory_format=torch.channels_last)
    for module in clip.modules():
        if isinstance(module, nn.Hardtanh):
            module.inplace = False  # in place, autograd copies the input before it is overwritten
    cfg = clip.visual.preprocess_cfg
    state = [tensor.detach().clone() for tensor in _state(clip, head)]
    mean, std = (torch.tensor(cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return Hot(clip, head, state, pixels, labels, val_pixels, val_labels, tokens, mean, std, clip.visual.image_size[0])


def _state(clip: nn.Module, head: nn.Module) -> list[Tensor]:
    return [*clip.state_dict().values(), *head.state_dict().values()]


def _crops(pixels: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Random resized crops (scale 0.9 to 1, ratio 3/4 to 4/3) of a uint8 batch by one grid_sample."""
    batch = len(pixels)
    area = torch.empty(batch).uniform_(0.9, 1.0, generator=rng)
    ratio = torch.empty(batch).uniform_(math.log(3 / 4), math.log(4 / 3), generator=rng).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x = (torch.rand(batch, generator=rng) * 2 - 1) * (1 - width)
    y = (torch.rand(batch, generator=rng) * 2 - 1) * (1 - height)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = width, x, height, y
    grid = F.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    return F.grid_sample(pixels.permute(0, 3, 1, 2).float(), grid, align_corners=False)


def bare_trial(hot: Hot, lr: float, weight_decay: float, weights: dict[str, float], seed: int, steps: int, batch_size: int) -> float:
    """One trial with all nine terms; accuracy on the validation images."""
    clip, head = hot.clip, hot.head
    with torch.no_grad():
        for tensor, value in zip(_state(clip, head), hot.zero_shot, strict=True):
            tensor.copy_(value)
    parameters = [*clip.parameters(), *head.parameters()]
    anchor = [parameter.detach().clone() for parameter in parameters]
    count = sum(parameter.numel() for parameter in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    rng = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(hot.pixels), generator=rng) for _ in range(1 + steps * batch_size // len(hot.pixels))])
    clip.train()
    for step in range(steps):
        index = order[step * batch_size : (step + 1) * batch_size]
        labels = hot.labels[index]
        images = ((_crops(hot.pixels[index], hot.size, rng) / 255 - hot.mean) / hot.std).contiguous(memory_format=torch.channels_last)
        features = clip.encode_image(images, normalize=True)
        logits = head(features)
        choice = torch.randint(hot.prompts.shape[1], (batch_size,), generator=rng)
        distinct, inverse = torch.unique(labels * hot.prompts.shape[1] + choice, return_inverse=True)
        texts = clip.encode_text(hot.prompts.flatten(0, 1)[distinct], normalize=True)[inverse]
        loss = _data_terms(logits, labels, features, texts, clip.logit_scale.exp(), weights)
        loss.backward()
        _add_norm_gradients(parameters, anchor, weights, count)
        optimizer.step()
        optimizer.zero_grad()
    clip.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(hot.val_pixels), 256):
            pixels = hot.val_pixels[start : start + 256].permute(0, 3, 1, 2).float()
            logits = head(clip.encode_image((pixels / 255 - hot.mean) / hot.std, normalize=True))
            right += int((logits.argmax(1) == hot.val_labels[start : start + 256]).sum())
    return right / len(hot.val_pixels)


def _data_terms(logits: Tensor, labels: Tensor, images: Tensor, texts: Tensor, scale: Tensor, w: dict[str, float]) -> Tensor:
    log_p = logits.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    wrong = (logits.detach().argmax(1) != labels).float()
    hinge = (logits - logits.gather(1, labels[:, None]) + 1).clamp(min=0).sum(1) - 1
    similarity = scale * images @ texts.T
    target = torch.arange(len(labels))
    contrastive = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
    return (
        F.nll_loss(log_p, labels)
        + w["hinge"] * hinge.mean()
        + w["entropy"] * entropy.mean()
        + w["confidence_minimization"] * (entropy * wrong).mean()
        + w["contrastive"] * contrastive
    )


@torch.no_grad()
def _add_norm_gradients(parameters: list[nn.Parameter], anchor: list[Tensor], w: dict[str, float], count: int) -> None:
    """The four weight norms in closed form: w/P sign(x) and 2 w/P x, towards zero and towards the anchor."""
    gradients = [parameter.grad for parameter in parameters]
    values = [parameter.data for parameter in parameters]
    shift = torch._foreach_sub(values, anchor)
    torch._foreach_add_(gradients, torch._foreach_sign(values), alpha=w["l1_zero"] / count)
    torch._foreach_add_(gradients, torch._foreach_sign(shift), alpha=w["l1_init"] / count)
    torch._foreach_add_(gradients, values, alpha=2 * w["l2_zero"] / count)
    torch._foreach_add_(gradients, shift, alpha=2 * w["l2_init"] / count)

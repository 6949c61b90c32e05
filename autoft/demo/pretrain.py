"""Train the demo's foundation model from scratch: `python -m autoft.demo.pretrain OUT`.

A small open_clip CLIP model learns to match pictures of rendered digits and letters with their captions, by the plain symmetric
contrastive loss (Radford et al. 2021). Its styles are far broader than those of the demo's training set. It never sees handwriting.
OUT becomes a folder that `local-dir:OUT` loads: weights (half precision) and config. docs/demo-model.md says what the shipped
checkpoint was made with and what it scores.
"""

import argparse
import json
import logging
import math
import string
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import CLIP, SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from autoft.config import load_config
from autoft.config.vocabulary import fill
from autoft.demo import STUDY_FILE
from autoft.demo.data import CLASSNAMES, demo_arrays
from autoft.demo.render import FACES, IMAGE_SIZE, Style, draw_glyphs

logger = logging.getLogger(__name__)

CONTEXT_LENGTH = 16
MODEL_CFG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS_CFG: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "size": [3, IMAGE_SIZE, IMAGE_SIZE],
    "mode": "RGB",
}
DIGIT_CAPTIONS = ("the digit {}.", "the number {}.", "a photo of the number {}.", "a picture of the digit {}.", "a {}.")
LETTER_CAPTIONS = ("the letter {}.", "a photo of the letter {}.", "a picture of the letter {}.")
DIGIT_SHARE = 0.4
STYLE = Style(
    rotation_degrees=(-20, 20),
    height=(14, 28),
    aspect=(0.75, 1.3),
    shear=(-0.3, 0.3),
    shift=(-3, 3),
    elastic=(0, 1.5),
    thickness=(-1, 2),
    blur=(0, 1.2),
    noise=(0, 0.12),
    background=(0.0, 0.45),
    contrast=(0.25, 0.7),
    clutter=(0, 0.25),
    inverted=0.5,
)


def captions_of(character: str) -> list[str]:
    """Every caption a character may be paired with."""
    if character.isdigit():
        return [caption.format(CLASSNAMES[int(character)]) for caption in DIGIT_CAPTIONS]
    name = f"capital {character.lower()}" if character.isupper() else character
    return [caption.format(name) for caption in LETTER_CAPTIONS]


def batches(size: int, seed: int) -> Iterator[tuple[Tensor, list[str]]]:
    """An endless stream of fresh pictures (size, 3, IMAGE_SIZE, IMAGE_SIZE), normalised, and their captions."""
    rng = np.random.default_rng(seed)
    letters = list(string.ascii_letters)
    while True:
        is_digit = rng.random(size) < DIGIT_SHARE
        characters = np.where(is_digit, rng.choice(list(string.digits), size), rng.choice(letters, size)).tolist()
        pictures = draw_glyphs(rng.choice(FACES, size).tolist(), characters, STYLE, rng)
        captions = [str(rng.choice(captions_of(character))) for character in characters]
        yield normalise(pictures), captions


def normalise(pictures: Tensor) -> Tensor:
    """(n, height, width) grey levels in [0, 1] to the model's input (n, 3, height, width)."""
    return ((pictures - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)


def contrastive_loss(model: CLIP, images: Tensor, tokens: Tensor) -> Tensor:
    """Symmetric cross-entropy between pictures and captions of a batch (Radford et al. 2021, figure 3)."""
    image_features = model.encode_image(images, normalize=True)
    text_features = model.encode_text(tokens, normalize=True)
    logits = model.logit_scale.exp() * image_features @ text_features.T
    target = torch.arange(len(logits))
    loss: Tensor = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    return loss


def build_model(tokenizer: SimpleTokenizer) -> CLIP:
    """An untrained model. Embeddings of words no caption has are zero: they would stay random, and zeros compress well."""
    model = CLIP(**MODEL_CFG)
    captions = [caption for character in string.digits + string.ascii_letters for caption in captions_of(character)]
    known = torch.zeros(MODEL_CFG["text_cfg"]["vocab_size"], dtype=torch.bool)
    known[tokenizer(captions).unique()] = True
    with torch.no_grad():
        model.token_embedding.weight[~known] = 0
    return model


def train(steps: int, batch_size: int, lr: float, seed: int) -> CLIP:
    """Train for `steps` steps: AdamW, linear warm-up over a twentieth of them, then cosine."""
    torch.manual_seed(seed)
    tokenizer = SimpleTokenizer(context_length=CONTEXT_LENGTH)
    model = build_model(tokenizer).train()
    matrices = [parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2 and "embedding" not in name]
    others = [parameter for name, parameter in model.named_parameters() if parameter.ndim < 2 or "embedding" in name]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    stream, started = batches(batch_size, seed), time.monotonic()
    for step in range(1, steps + 1):
        images, captions = next(stream)
        loss = contrastive_loss(model, images, tokenizer(captions))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 0 or step == steps:
            logger.info("step %d of %d: loss %.3f, %.0f s", step, steps, loss.item(), time.monotonic() - started)
    return model.eval()


def save(model: CLIP, folder: Path) -> None:
    """Write the folder that `local-dir:` loads; weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    (folder / "open_clip_model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner only
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def zero_shot_accuracy(folder: Path, templates: Sequence[str]) -> dict[str, float]:
    """Accuracy of a saved checkpoint on every set of the demo but the training set, by file name."""
    model, tokenizer = CLIP(**MODEL_CFG).eval(), SimpleTokenizer(context_length=CONTEXT_LENGTH)
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    prompts = tokenizer([fill(template, name) for name in CLASSNAMES for template in templates])
    classes = model.encode_text(prompts, normalize=True).unflatten(0, (len(CLASSNAMES), len(templates))).mean(1)
    classes = functional.normalize(classes, dim=1)
    accuracy = {}
    for name, (images, labels) in demo_arrays().items():
        if name != "train":
            features = model.encode_image(normalise(torch.from_numpy(images).float() / 255), normalize=True)
            accuracy[name] = float(((features @ classes.T).argmax(1) == torch.from_numpy(labels)).float().mean())
    return accuracy


def _rate(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    return (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, save, and measure zero-shot accuracy on the demo's data."""
    parser = argparse.ArgumentParser(prog="python -m autoft.demo.pretrain", description="Train the demo's foundation model.")
    parser.add_argument("out", type=Path, help="folder to write the checkpoint to")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    save(train(options.steps, options.batch_size, options.lr, options.seed), options.out)
    for name, accuracy in zero_shot_accuracy(options.out, load_config(STUDY_FILE).data.templates).items():
        logger.info("zero-shot accuracy on %s: %.3f", name, accuracy)


if __name__ == "__main__":
    main()

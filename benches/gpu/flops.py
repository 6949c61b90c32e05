"""Floating-point operations of a CLIP ViT, counted analytically, and the rate of matrix products that a device reaches."""

import time
from collections.abc import Mapping
from typing import Any

import torch

MATRIX_SIDES = (4096, 8192)
REPEATS = 20


def image_flops(config: Mapping[str, Any]) -> int:
    """Of one image's forward pass through a ViT of open_clip, a multiplication and an addition counted as two.

    Matrix products only: patch embedding, and for each layer the four projections of attention, its two products over all pairs of tokens,
    and the two of the MLP; then the projection to the embedding. As torch.utils.flop_counter counts them (tests/test_bench_gpu.py).
    """
    vision = config["vision_cfg"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    width = vision["width"]
    embedding = 2 * patches * 3 * vision["patch_size"] ** 2 * width
    return embedding + _layers(patches + 1, width, vision["layers"], vision.get("mlp_ratio", 4.0)) + 2 * width * config["embed_dim"]


def text_flops(config: Mapping[str, Any]) -> int:
    """Of one text's forward pass, likewise. Masked pairs of tokens are counted: an upper bound by less than a tenth."""
    text = config["text_cfg"]
    return _layers(text["context_length"], text["width"], text["layers"], 4.0) + 2 * text["width"] * config["embed_dim"]


def training_flops(config: Mapping[str, Any], images: float, texts: float) -> float:
    """Of a training step: three times the forward pass, since the backward pass makes two products of each of its (as in PaLM, arXiv 2204.02311)."""
    return 3 * (images * image_flops(config) + texts * text_flops(config))


def _layers(tokens: int, width: int, layers: int, mlp_ratio: float) -> int:
    projections = 4 * tokens * width**2 + 2 * tokens * width * int(mlp_ratio * width)
    return layers * 2 * (projections + 2 * tokens**2 * width)


def matrix_rate(device: torch.device, sides: tuple[int, ...] = MATRIX_SIDES, repeats: int = REPEATS) -> float:
    """The most bf16 operations a second in products of square matrices of random numbers (zeros are faster, and are nobody's weights)."""
    best = 0.0
    for side in sides:
        first, second = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(first)
        for _ in range(3):
            torch.mm(first, second, out=out)
        settle(device)
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(first, second, out=out)
        settle(device)
        best = max(best, repeats * 2 * side**3 / (time.perf_counter() - started))
        del first, second, out
    return best


def settle(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

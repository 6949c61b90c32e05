"""Load an open_clip model from a study's `model` section, with errors a person can act on."""

import difflib
import json
import logging
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from torch import Tensor, nn

from autoft.config import ModelConfig
from autoft.errors import ModelError
from autoft.inputs import read_text_input
from autoft.models.dimensions import MAX_IMAGE_SIZE, impossible_dimension, weights_bytes

Tokenizer = Callable[[list[str]], Tensor]

MAX_CONFIG_BYTES = 1 << 20  # of an open_clip_config.json
HUB_SECONDS = 5.0  # how long the Hugging Face Hub may take to answer before only its cache is used


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How pixels become the model's input."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """An open_clip model with what is needed to feed it and to write it back to disk."""

    clip: nn.Module
    tokenizer: Tokenizer
    preprocess: Preprocess
    open_clip_config: Mapping[str, Any]  # {"model_cfg": ..., "preprocess_cfg": ...}: the content of open_clip_config.json
    hf_tokenizer: Any | None  # a tokenizer with files to save beside the weights; None for open_clip's built-in one


def load_model(config: ModelConfig) -> LoadedModel:
    """Load model, weights (fp32, on the CPU), tokenizer and preprocessing.

    Raises:
        ModelError: unknown architecture or tag, missing files, weights that do not fit, are not finite or need unpickling, or
            an activation function other than the one the weights were trained with (QuickGELU).
    """
    with _quiet(), _hub_or_cache(config):
        return _load(config)


def _load(config: ModelConfig) -> LoadedModel:
    model_cfg = _architecture(config)
    _check_activation(config, model_cfg)
    try:
        clip = open_clip.create_model(config.name, pretrained=config.pretrained, precision="fp32", require_pretrained=True)
    except Exception as error:
        raise ModelError(_explain(config, error)) from None
    broken = [name for name, tensor in clip.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelError(f"{_where(config)}: weights are NaN or infinite in {len(broken)} tensors, the first is {broken[0]}")
    return _describe(config, without_copies(clip), model_cfg)


# Their derivative is computed from the input, which an in-place call has overwritten: autograd copies it first.
_KEEP_THEIR_INPUT = (nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.Mish)  # nn.ReLU6 is a Hardtanh


def without_copies(model: nn.Module) -> nn.Module:
    """Have activations that need their input for the backward pass write beside it instead of over a copy; results are the same to the bit.

    4 % of a training step of a MobileNetV2 on a CPU are such copies.
    """
    for module in model.modules():
        if isinstance(module, _KEEP_THEIR_INPUT):
            module.inplace = False
    return model


def _architecture(config: ModelConfig) -> Mapping[str, Any]:
    """The model_cfg of `config.name`. Raises ModelError where the name alone is already wrong."""
    kind, colon, rest = config.name.partition(":")
    if colon and config.pretrained is not None:
        raise ModelError(f"model.pretrained = {config.pretrained!r} has no effect with model.name = {config.name!r}; leave it out")
    if colon and kind not in ("local-dir", "hf-hub"):
        raise ModelError(f"model.name = {config.name!r}: the part before ':' must be local-dir or hf-hub")
    if kind == "local-dir":
        _check_config_file(Path(rest) / "open_clip_config.json", config.name)
    if not colon and config.name not in open_clip.list_models():
        close = difflib.get_close_matches(config.name, open_clip.list_models(), n=3, cutoff=0.4)
        raise ModelError(f"model.name = {config.name!r} is no open_clip model" + (f"; did you mean {', '.join(close)}?" if close else ""))
    if not colon and config.pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none published"
        raise ModelError(f"model.pretrained is missing: a tag of {config.name} ({tags}) or the path of a weights file")
    try:
        model_cfg = open_clip.get_model_config(config.name)
    except (ValueError, AttributeError) as error:  # not JSON, or JSON of another shape
        raise ModelError(f"model.name = {config.name!r}: open_clip_config.json is damaged: {_first_line(error)}") from None
    except Exception as error:
        raise ModelError(_explain(config, error)) from None
    if not isinstance(model_cfg, dict) or not all(isinstance(model_cfg.get(part), dict) for part in ("vision_cfg", "text_cfg")):
        raise ModelError(f"model.name = {config.name!r}: open_clip_config.json has no model_cfg with vision_cfg and text_cfg")
    if kind == "local-dir":
        _check_dimensions(config, model_cfg, Path(rest))
    return dict(model_cfg)


def _check_dimensions(config: ModelConfig, model_cfg: Mapping[str, Any], folder: Path) -> None:
    """Raise ModelError before a model is made for which there are no weights, or whose config is not theirs."""
    available = weights_bytes(folder)
    if not available:
        raise ModelError(f"{_where(config)}: no weights were found there (open_clip_model.safetensors)")
    problem = impossible_dimension(model_cfg, available)
    if problem is not None:
        raise ModelError(f"{_where(config)}: open_clip_config.json is not that of the weights beside it: {problem}")


def _check_config_file(path: Path, name: str) -> None:
    """Raise ModelError where open_clip would wait for a pipe, read without end or recurse into a file's nesting."""
    if not path.is_file():
        raise ModelError(f"model.name = {name!r}: there is no open_clip_config.json in {path.parent}")
    try:
        document = json.loads(read_text_input(path, MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model.name = {name!r}: open_clip_config.json is damaged: {_first_line(error)}") from None
    if not isinstance(document, dict):
        raise ModelError(f"model.name = {name!r}: open_clip_config.json is damaged: it is no JSON object")


def _check_activation(config: ModelConfig, model_cfg: Mapping[str, Any]) -> None:
    """Raise ModelError where the tag's weights were trained with QuickGELU and the architecture has GELU.

    open_clip only warns, and only after the download. With a weights file there is no way to tell.
    """
    tag = open_clip.get_pretrained_cfg(config.name, config.pretrained) if config.pretrained is not None else None
    if tag and tag.get("quick_gelu") and not model_cfg.get("quick_gelu"):
        raise ModelError(
            f"model.name = {config.name!r} does not use the activation that model.pretrained = {config.pretrained!r} was trained "
            f"with; use {config.name}-quickgelu"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing below CRITICAL is logged: open_clip and the Hub log, several times over, what then becomes one ModelError."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _hub_or_cache(config: ModelConfig) -> Iterator[None]:
    """Without a network the Hub's client tries each file for half a minute; here it goes to its cache at once."""
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    local = config.name.startswith("local-dir:") or (config.pretrained is not None and Path(config.pretrained).is_file())
    constants.HF_HUB_OFFLINE = before or not (local or _hub_answers())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception:
        return False
    return True


def _where(config: ModelConfig) -> str:
    return f"model.name = {config.name!r}" + (f", model.pretrained = {config.pretrained!r}" if config.pretrained else "")


def _explain(config: ModelConfig, error: Exception) -> str:
    text, where = str(error), _where(config)
    if "cannot find the requested files in the local cache" in text:
        return f"{where}: the Hugging Face Hub cannot be reached ({huggingface_hub.constants.ENDPOINT}), and these files are not in its cache"
    if "not a known tag or valid file" in text:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none"
        return f"{where}: neither a file nor a tag of that model; its tags are {tags}"
    if "size mismatch" in text or "Missing key" in text or "Unexpected key" in text:
        problems = [line.strip() for line in text.splitlines()[1:] if line.strip()]
        return f"{where}: the weights do not fit the architecture: {' '.join(problems)[:300]}"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:  # the latter: TorchScript archives
        return f"{where}: the weights contain pickled objects and are refused; convert them to safetensors, or save a plain state dict"
    if "could not be loaded" in text:
        return f"{where}: no weights were found there (open_clip_model.safetensors)"
    return f"{where}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _describe(config: ModelConfig, clip: nn.Module, model_cfg: Mapping[str, Any]) -> LoadedModel:
    pixels = dict(open_clip.get_model_preprocess_cfg(clip))
    size = pixels["size"]
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    if height != width:
        raise ModelError(f"model.name = {config.name!r} takes {height}x{width} images; only square inputs are supported")
    pixels["size"] = (height, width)
    _check_preprocessing(config, pixels)
    try:
        tokenizer = open_clip.get_tokenizer(config.name)
    except Exception as error:
        raise ModelError(f"model.name = {config.name!r}: its tokenizer cannot be loaded: {_first_line(error)}") from None
    return LoadedModel(
        clip=clip,
        tokenizer=tokenizer,
        preprocess=Preprocess(
            size=height,
            mean=tuple(pixels["mean"]),
            std=tuple(pixels["std"]),
            interpolation=pixels.get("interpolation", "bicubic"),
            resize_mode=pixels.get("resize_mode", "shortest"),
        ),
        open_clip_config={"model_cfg": json.loads(json.dumps(model_cfg)), "preprocess_cfg": pixels},
        hf_tokenizer=tokenizer if hasattr(tokenizer, "save_pretrained") else None,
    )


def _check_preprocessing(config: ModelConfig, pixels: Mapping[str, Any]) -> None:
    """Raise ModelError for preprocessing that cannot be done: a config file may ask for anything."""
    where = f"model.name = {config.name!r}: open_clip_config.json: preprocess_cfg"
    size = pixels["size"][0]
    if not isinstance(size, int) or not 1 <= size <= MAX_IMAGE_SIZE:
        raise ModelError(f"{where}.size = {size!r} must be a whole number in [1, {MAX_IMAGE_SIZE}]")
    for name in ("mean", "std"):
        values = pixels[name]
        plain = isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(value, int | float) for value in values)
        if not plain or not all(math.isfinite(value) and (name == "mean" or value > 0) for value in values):
            raise ModelError(f"{where}.{name} = {values!r} must be three finite numbers" + (", all above 0" if name == "std" else ""))
    for name, valid in (("interpolation", ("bicubic", "bilinear")), ("resize_mode", ("shortest", "longest", "squash"))):
        if pixels.get(name, valid[0]) not in valid:
            raise ModelError(f"{where}.{name} = {pixels[name]!r} must be one of {', '.join(valid)}")


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU. Raises ModelError if a GPU is asked for and there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {name!r} asks for a GPU, and this machine has none that PyTorch {torch.__version__} can use")
    return device

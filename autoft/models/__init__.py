"""open_clip models: loading, the classifier around them, prompts, checkpoints and interpolation."""

from autoft.models.checkpoint import CheckpointInfo, load_checkpoint, read_state, save_checkpoint
from autoft.models.classifier import ClipClassifier, build_classifier, mixed_log_probabilities, text_head, zero_shot_head
from autoft.models.load import LoadedModel, Preprocess, load_model
from autoft.models.state import ZeroShotState, copy_state, interpolate, state_digest
from autoft.models.text import TextBank

__all__ = [
    "CheckpointInfo",
    "ClipClassifier",
    "LoadedModel",
    "Preprocess",
    "TextBank",
    "ZeroShotState",
    "build_classifier",
    "copy_state",
    "interpolate",
    "load_checkpoint",
    "load_model",
    "mixed_log_probabilities",
    "read_state",
    "save_checkpoint",
    "state_digest",
    "text_head",
    "zero_shot_head",
]

"""The zero-shot model beside the one that trains: whoever needs what it computes asks here, so that it is made and run once."""

import copy

import torch
from torch import Tensor, nn

from autoft.data.transforms import eval_transform, resized
from autoft.workspace import Workspace, resident_device


def frozen_clip(workspace: Workspace) -> nn.Module:
    """The zero-shot open_clip model in evaluation mode, made at the first call and no part of the workspace's model.

    It is a second set of modules over the zero-shot state's own tensors, so it takes no memory for weights.
    """
    if "frozen_clip" not in workspace.cached:
        clip, zero_shot = workspace.model.clip, workspace.zero_shot.tensors
        instead: dict[int, Tensor] = {}  # by the id of what it stands for: what deepcopy takes as copied already
        for name, parameter in clip.named_parameters():
            instead[id(parameter)] = nn.Parameter(zero_shot[f"clip.{name}"], requires_grad=False)
        for name, buffer in clip.named_buffers():
            if f"clip.{name}" in zero_shot:
                instead[id(buffer)] = zero_shot[f"clip.{name}"]
        workspace.cached["frozen_clip"] = copy.deepcopy(clip, dict(instead)).eval()
    found: nn.Module = workspace.cached["frozen_clip"]
    return found


@torch.no_grad()
def train_features(workspace: Workspace) -> Tensor:
    """The frozen model's image features of all of TRAIN in order, without augmentation: (n, dim) fp32 of length 1; computed once.

    On the workspace's device, or on the CPU where they would take too much of a GPU's memory.
    """
    if "train_features" not in workspace.cached:
        clip, pixels = frozen_clip(workspace), workspace.loaded.preprocess
        shape = len(workspace.train), workspace.model.head.in_features
        found = torch.empty(shape, device=resident_device(4 * shape[0] * shape[1], workspace.device))
        first = 0
        with workspace.autocast():
            for squares in workspace.train.batches(workspace.config.evaluate.batch_size):
                images = eval_transform(resized(squares, pixels.size, pixels.interpolation), pixels.mean, pixels.std)
                features = clip.encode_image(images, normalize=True)  # type: ignore[operator]
                found[first : first + len(features)] = features
                first += len(features)
        workspace.cached["train_features"] = found
    kept: Tensor = workspace.cached["train_features"]
    return kept

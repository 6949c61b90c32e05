"""BatchNorm statistics of averaged weights.

The statistics of two models say nothing about a model between them, so a mixture's are computed again from TRAIN: Izmailov et al. 2018,
"Averaging weights leads to wider optima", arXiv 1803.05407. WiSE-FT averages them like everything else; its models had none.
"""

import torch
from torch import nn

from autoft.train_pass import train_batches
from autoft.workspace import Workspace

IMAGES = 2048  # of TRAIN; ours: enough for means and variances to a few per cent of a standard deviation


@torch.no_grad()
def reestimate_batch_norm(workspace: Workspace, images: int = IMAGES) -> int:
    """Replace the running statistics of the image tower by those of the present weights on TRAIN, in place.

    The plain mean, over batches of `final.batch_size`, of each batch's mean and unbiased variance; images are unaugmented and the
    same at every call. All but the BatchNorm layers are in evaluation mode meanwhile, so nothing is random; afterwards so are they.
    Does nothing, and costs nothing, for an image tower without BatchNorm; nor with `model.batch_norm = frozen`, where both ends have
    the zero-shot statistics and were trained to work with them. A text tower's statistics are left alone: no image passes it.

    Args:
        images: see `train_batches`.

    Returns:
        How many images were seen; 0 if there was nothing to do.
    """
    layers = batch_norm_layers(workspace.model.clip.visual)  # type: ignore[arg-type]
    if not layers or workspace.config.model.batch_norm == "frozen":
        return 0
    workspace.model.eval()
    momenta = [layer.momentum for layer in layers]
    seen = 0
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative mean over the batches
            layer.training = True  # not train(): timm's layers have activations and dropout inside
        with workspace.autocast():
            for batch in train_batches(workspace, images, workspace.config.final.batch_size):
                workspace.model.image_features(batch)
                seen += len(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum, layer.training = momentum, False
    return seen


def batch_norm_layers(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers of a model that keep running statistics of batches."""
    return [
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]

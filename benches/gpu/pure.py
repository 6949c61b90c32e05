"""The limit: the training step of the same model and batch written straight down, compiled as a whole, in bf16, with fused AdamW.

Inputs are ready on the device, and nothing is drawn, restored or scored. Nothing here is autoft's but the workspace the model is taken from.
"""

import copy
import time

import torch
from torch import Tensor
from torch.nn import functional

from autoft.workspace import Workspace
from benches.gpu.flops import settle


class PureStep:
    """Cross-entropy through the image tower or, for `all`, also the contrastive loss through the text tower; compiled at its first step.

    Args:
        texts: distinct texts in a batch.
        backend: of torch.compile; None: not compiled.
    """

    def __init__(self, workspace: Workspace, terms: str, texts: int, backend: str | None) -> None:
        self._workspace = workspace
        device, batch, size = workspace.device, workspace.config.trial.batch_size, workspace.loaded.preprocess.size
        model = copy.deepcopy(workspace.model).train()
        model.train_text_tower(terms == "all")
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1, fused=True)
        self._images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(batch, device=device) % len(workspace.data.classes)
        tokens = workspace.texts.tokens[torch.arange(texts, device=device)]
        own = torch.arange(batch, device=device) % max(1, texts)

        def loss(images: Tensor) -> Tensor:
            features = model.image_features(images)
            total = functional.cross_entropy(model.head(features).float(), labels)
            if terms == "all":
                similarity = model.logit_scale.exp() * features.float() @ model.text_features(tokens).float().T
                total = total + functional.cross_entropy(similarity, own)
            return total

        self._loss = loss if backend is None else torch.compile(loss, backend=backend, dynamic=False)

    def seconds(self, steps: int) -> float:
        """Seconds a step, after three that do not count."""
        self._run(3)
        settle(self._workspace.device)
        started = time.perf_counter()
        self._run(steps)
        settle(self._workspace.device)
        return (time.perf_counter() - started) / steps

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            with self._workspace.autocast():
                loss = self._loss(self._images)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

"""Small tensors from the CPU to the device that computes."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`, without waiting for it: to a GPU, from pinned memory, in the order of its stream.

    From pageable memory the driver may wait for what the GPU is doing before it copies, even where `non_blocking` is asked for.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

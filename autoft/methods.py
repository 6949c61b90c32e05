"""The methods AutoFT is compared with, as named recipes over the one training loop."""

from collections.abc import Callable, Mapping

from autoft.config import SearchSpaceConfig
from autoft.search_space import REFERENCE_TERM, Hyperparameters


def plain_finetuning(space: SearchSpaceConfig) -> Hyperparameters:
    """Cross-entropy alone at the base learning rate and weight decay: the FT baseline of WiSE-FT and FLYP."""
    return Hyperparameters(lr=space.base_lr, weight_decay=space.base_weight_decay, loss_weights={REFERENCE_TERM: 1.0}, seed=0)


BASELINES: Mapping[str, Callable[[SearchSpaceConfig], Hyperparameters]] = {"finetune": plain_finetuning}

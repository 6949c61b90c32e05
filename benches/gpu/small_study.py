"""A whole small study in process on one device: many trials, memory that runs out in one of them, and the same worker afterwards."""

import gc
import random
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.utils import counters

from autoft.finetune import Diverged
from autoft.gradients import StepLoss
from autoft.losses import LOSS_TERMS
from autoft.search_space import Hyperparameters
from autoft.trial import TrialResult, run_trial
from autoft.workspace import Workspace

SETTLED = 5  # trials after which caches have been filled: both towers compiled, each kind of state allocated once
SLACK_BYTES = 2**20  # of growth that counts as none: the allocator's blocks


def whole_trial(workspace: Workspace, hyperparameters: Hyperparameters) -> TrialResult:
    """Run a trial to its end."""
    trial = run_trial(workspace, hyperparameters)
    while True:
        try:
            next(trial)
        except StopIteration as end:
            result: TrialResult = end.value
            return result


def drawn(number: int) -> Hyperparameters:
    """A trial's hyperparameters: other rates, weights and sets of terms each time, from the paper's ranges."""
    rng = random.Random(number)
    weights = {term: 10 ** rng.uniform(-4, 1) for term in LOSS_TERMS if rng.random() < 0.7}
    return Hyperparameters(lr=10 ** rng.uniform(-7, -4), weight_decay=rng.random(), loss_weights={**weights, "cross_entropy": 1.0}, seed=number)


def small_study(workspace: Workspace, trials: int) -> dict[str, Any]:
    """Run it; figures, and `failed`, what did not hold.

    First `trials` trials, after each of which memory in use is noted and the model reset and compared with where it started; then one with
    too little memory for its batch; then the first one again.
    """
    device = workspace.device
    scores: list[float | None] = []
    used: list[int | None] = []
    graphs: list[int] = []  # that the compiler was given so far
    reset = True
    for number in range(trials):
        try:
            scores.append(whole_trial(workspace, drawn(number)).score)
        except Diverged:
            scores.append(None)
        used.append(_in_use(device))
        graphs.append(counters["stats"]["unique_graphs"])
        workspace.zero_shot.restore(workspace.model)
        state = workspace.model.state_dict()
        reset = reset and all(torch.equal(state[name], tensor) for name, tensor in workspace.zero_shot.tensors.items())
    compiled = workspace.towers.active
    known = [each for each in used if each is not None]
    growth = known[-1] - max(known[:SETTLED]) if known else None
    whole = whole_trial(workspace, drawn(0))
    with short_of_memory(workspace):
        split = whole_trial(workspace, drawn(0))
    workspace.batch_split = workspace.evaluation_split = 1
    again = whole_trial(workspace, drawn(0))
    near = max(0.02, 1.5 / len(workspace.images("val_ood")))  # GPUs add up in an order of their own, and logits of random weights are close
    checks = {
        "every trial starts from the same weights": reset,
        "memory does not grow": growth is None or growth <= SLACK_BYTES,
        "most trials have a score": sum(score is not None for score in scores) > trials / 2,
        "a batch is split where memory runs out": split.batch_split > 1 and split.batch_split_exact,
        "a split batch gives the same": abs(split.score - whole.score) <= near,
        "a trial gives the same at the beginning and at the end": scores[0] is not None and abs(again.score - scores[0]) <= near,
        "nothing is compiled after the first trials": graphs[-1] == graphs[: SETTLED][-1],
        "the model stayed compiled": compiled or device.type != "cuda",
    }
    return {
        "trials": trials,
        "median_score": statistics.median(score for score in scores if score is not None),
        "bytes_in_use": used,
        "growth_bytes": growth,
        "graphs": graphs,
        "batch_split": split.batch_split,
        "scores_whole_split_again": [whole.score, split.score, again.score],
        "checks": checks,
    }


def _in_use(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated(device))


@contextmanager
def short_of_memory(workspace: Workspace) -> Iterator[None]:
    """Within the block a whole batch does not fit: this process may have half of what a trial takes above what is there before it.

    On a CPU, which has no such limit, a whole batch's forward pass says that it does not fit.
    """
    device = workspace.device
    if device.type != "cuda":
        with _refused_if_whole(workspace):
            yield
        return
    kept = _in_use(device)
    assert kept is not None
    torch.cuda.reset_peak_memory_stats(device)
    whole_trial(workspace, drawn(0))
    peak = torch.cuda.max_memory_allocated(device)
    _in_use(device)  # gives reserved memory back, which counts towards the limit
    optimizer = 3 * sum(tensor.numel() * 4 for tensor in workspace.model.parameters())  # gradients and two moments: no batch makes them smaller
    room = kept + optimizer + 0.5 * max(0, peak - kept - optimizer)
    try:
        torch.cuda.set_per_process_memory_fraction(min(1.0, room / torch.cuda.get_device_properties(device).total_memory), device)
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        _in_use(device)


@contextmanager
def _refused_if_whole(workspace: Workspace) -> Iterator[None]:
    compute = StepLoss.outputs

    def refusing(self: StepLoss, batch: Any, parts: int = 1, compiled: bool = False) -> Any:
        if parts == 1 and len(batch.examples) == workspace.config.trial.batch_size:
            raise torch.OutOfMemoryError("a whole batch does not fit")
        return compute(self, batch, parts, compiled)

    with patch.object(StepLoss, "outputs", refusing):
        yield

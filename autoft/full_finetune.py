"""A full fine-tune: whole epochs, the best of which is kept, with its state on disk after every epoch, every few minutes, and when it stops."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoft.batch_split import WHOLE, Split
from autoft.collective import any_of
from autoft.errors import Interrupted, TrialCodeError
from autoft.evaluate import NonFiniteScore
from autoft.finetune import Diverged, Recipe, Step, check_finite, finetune, training_state
from autoft.memory import PeakMemory
from autoft.models import copy_state
from autoft.models.shards import gathered, parts_of
from autoft.models.state import State, snapshot
from autoft.scoring import as_scored
from autoft.state_writer import StateWriter
from autoft.workspace import Workspace

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5
STORE_SECONDS = 300.0  # what a lost machine costs at most; ours
Emit = Callable[[dict[str, Any]], None]


class FullFinetune:
    """One full fine-tune that can be stopped after any step and goes on exactly from there.

    Several processes, each with a workspace of its own, run one together: all read the state, the first one writes it.

    Args:
        saved: where its state is kept while it is unfinished; a file all processes see.
        key: everything its result depends on; a saved state with another key is not used.
        check_stop: raises `Interrupted` if the run is to stop, given where it stands; asked after every step.
    """

    def __init__(
        self, workspace: Workspace, method: str, recipe: Recipe, saved: Path, key: str, emit: Emit, check_stop: Callable[[str], None]
    ) -> None:
        self._workspace, self._method, self._recipe = workspace, method, recipe
        self._saved, self._key, self._emit, self._check_stop = saved, key, emit, check_stop
        self._writer = StateWriter(saved)
        self._first, self._sharded = workspace.collective.rank == 0, workspace.sharded
        self._epochs: list[dict[str, float]] = []
        self._losses: list[Tensor] = []  # of the present epoch's steps
        self._best: dict[str, Tensor] = {}
        self._best_epoch = 0
        self._seconds = 0.0  # spent by runs before this one
        self._peak = 0  # bytes of memory, in those
        self._split = WHOLE  # of all steps so far
        self._memory: PeakMemory

    def run(self) -> tuple[State, dict[str, Any]]:
        """Train; the weights of the best epoch on VAL_ID, and the record. Raises TrialCodeError if it diverges, or what `check_stop` does.

        Each process gets its own parts of sharded weights. An epoch's `train_loss` is of the terms that read the data: the weight norms' values are not computed while training.
        """
        try:
            return self._run()
        except (Diverged, NonFiniteScore) as error:
            rate = self._recipe.hyperparameters.lr
            raise TrialCodeError(
                f"the full fine-tune of {self._method} diverged at lr {rate:.3g}: {error}. What held for {self._workspace.config.trial.steps} "
                "steps need not hold for a long run: raise trial.steps or final.warmup_fraction, or set final.clip_grad_norm"
            ) from None

    def _run(self) -> tuple[State, dict[str, Any]]:
        workspace = self._workspace
        steps_per_epoch = max(1, self._recipe.steps // workspace.config.final.epochs)
        workspace.forget()  # so that time and memory do not depend on what ran before
        memory = self._memory = PeakMemory(workspace.device)
        started = shown = stored = time.perf_counter()
        try:
            for step in finetune(workspace, self._recipe, resume=self._load()):
                self._losses.append(step.loss)
                self._split |= step.split
                unfinished = step.number < self._recipe.steps
                now = time.perf_counter()
                if now - shown > PROGRESS_SECONDS:
                    shown = now
                    self._progress(step.number)
                if step.number % steps_per_epoch == 0:
                    self._end_epoch(step, step.number // steps_per_epoch, check_finite(self._losses, step.number))
                    self._losses.clear()
                if unfinished and (step.number % steps_per_epoch == 0 or self._is_time(now - stored)):
                    stored = now
                    self._store(step, started)
                if unfinished:
                    self._check(step, started)
        finally:
            self._writer.finish()
        copy_state(workspace.model, self._best)
        return self._best, {
            "hyperparameters": self._recipe.hyperparameters.to_dict(),
            "epochs": self._epochs,
            "best_epoch": self._best_epoch,
            "val_id": self._best_record["val_id"],
            "val_ood": workspace.score("val_ood"),
            "steps": self._recipe.steps,
            "samples": self._recipe.samples,
            "seconds": self._seconds,
            "peak_memory_bytes": max(self._peak, memory.bytes() or 0) or None,
            "peak_memory_kind": memory.kind,
            "batch_split": self._split.parts,
            "batch_split_exact": self._split.exact,
        }

    def forget(self) -> None:
        """Remove the training state; call when the result is on record."""
        if self._first:
            self._saved.unlink(missing_ok=True)

    def _check(self, step: Step, started: float) -> None:
        """Ask whether to stop; if so, leave the state as it is now."""
        try:
            self._check_stop(f"at step {step.number} of {self._recipe.steps} of {self._method}")
        except Interrupted:
            self._store(step, started)
            raise

    @property
    def _best_record(self) -> dict[str, float]:
        """The best epoch's own; of a recipe that trains nothing the only one, epoch 0."""
        return next(record for record in self._epochs if record["epoch"] == self._best_epoch)

    def _end_epoch(self, step: Step, epoch: int, loss: float) -> None:
        workspace, config = self._workspace, self._workspace.config
        with as_scored(workspace, self._recipe.hyperparameters, step):
            score = workspace.score("val_id")
            sign = 1 if config.direction == "maximize" else -1
            if not self._epochs or sign * score > sign * self._best_record["val_id"]:
                self._best_epoch = epoch
                self._best = snapshot(workspace.model)
        self._epochs.append({"epoch": epoch, "train_loss": loss, "val_id": score})
        self._emit({"event": "epoch_ended", "stage": self._method, "epoch": epoch, "train_loss": loss, "val_id": score})

    def _progress(self, step: int) -> None:
        self._emit({"event": "stage_progress", "stage": self._method, "done": step, "of": self._recipe.steps})

    def _is_time(self, seconds: float) -> bool:
        """Whether to write the state in the middle of an epoch, so many seconds after the last time. Of sharded weights the first process decides."""
        due = seconds > STORE_SECONDS and not self._writer.busy
        return any_of(self._workspace.collective, self._first and due) if self._sharded else due

    def _store(self, step: Step, started: float) -> None:
        """Begin to write the training state; see `StateWriter`. Sharded weights are brought together for it, so all processes wait."""
        if not (self._first or self._sharded):
            return
        training, best = training_state(self._workspace, step), self._best  # the best is made anew for each epoch, never changed
        if self._sharded:
            best = gathered(best, self._workspace.model, self._first)
        if not self._first:
            return
        self._peak = max(self._peak, self._memory.bytes() or 0)
        losses = torch.stack(self._losses) if self._losses else torch.empty(0)
        state = {
            "key": self._key,
            "training": training,
            "losses": losses,
            "epochs": json.dumps(self._epochs),
            "best_epoch": self._best_epoch,
            "best": best,
            "seconds": self._seconds + time.perf_counter() - started,
            "peak": self._peak,
            "split_parts": self._split.parts,
            "split_exact": self._split.exact,
        }
        self._writer.write(state, live=() if self._sharded else ("training",))

    def _load(self) -> dict[str, Any] | None:
        """The training state of an earlier run of the very same fine-tune, if there is one."""
        collective, stored = self._workspace.collective, self._read()
        step = 0 if stored is None else int(stored["training"]["step"])
        if any_of(collective, step != collective.largest([step])[0]):
            logger.warning("%s is not the same file for all processes; %s starts again", self._saved, self._method)
            return None
        if stored is None:
            return None
        self._epochs = json.loads(stored["epochs"])
        self._best_epoch, self._best, self._seconds = stored["best_epoch"], stored["best"], stored["seconds"]
        if self._sharded:
            self._best = parts_of(self._best, self._workspace.model)
        self._losses = [loss.to(self._workspace.device) for loss in stored.get("losses", ())]
        self._peak = stored.get("peak", 0)
        self._split = Split(stored.get("split_parts", 1), stored.get("split_exact", True))
        training: dict[str, Any] = stored["training"]
        return training

    def _read(self) -> dict[str, Any] | None:
        if not self._saved.is_file():
            return None
        # Sharded weights are cut out of the file, which is mapped and not read: whole ones need not fit the device.
        device = torch.device("cpu") if self._sharded else self._workspace.device
        try:
            stored = torch.load(self._saved, map_location=device, mmap=self._sharded, weights_only=True)
        except Exception as error:
            logger.warning("%s cannot be read (%s); %s starts again", self._saved, error, self._method)
            return None
        return stored if isinstance(stored, dict) and stored.get("key") == self._key else None

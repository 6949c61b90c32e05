"""Defects of the released code that no other suite covers, each by its number in docs/defects.md, and whether all have test and mutant.

`make mutants` puts each defect back and sees its test fail.
"""

import json
import math
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import optuna
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import cross_entropy

from autoft.cli.evaluate import evaluate
from autoft.cli.parser import build_parser
from autoft.config import StudyConfig, load_config
from autoft.data.transforms import eval_transform
from autoft.finetune import final_recipe, finetune
from autoft.samplers import SeededSampler
from autoft.search_space import sample_hyperparameters
from autoft.stages import stage_result
from autoft.workspace import DeviceImages
from tests.mutants.run import apply_patch, read_mutants
from tests.runs import hyperparameters, load_workspace, one_thread, stages
from tests.studies import CLASSES, write_images, write_study

ROOT = Path(__file__).parents[1]
DEFECTS = range(1, 19)
FEW_SHOT: dict[str, Any] = {"data__train__max_examples": 12, "data__train__balanced": True, "final__batch_size": 6}


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


# --- 4: the sampler's seed


def searched(config: StudyConfig, study: optuna.Study, until: int) -> list[dict[str, Any]]:
    """Go on with a study to so many trials as a new process would, with a sampler of its own; the parameters of all trials."""
    study.sampler = SeededSampler(config.search)
    while len(study.trials) < until:
        trial = study.ask()
        lr = sample_hyperparameters(trial, config.search_space).lr
        study.tell(trial, -abs(math.log10(lr) + 3))
    return [trial.params for trial in study.trials]


def test_defect_4_the_seed_of_the_study_file_decides_what_is_tried(tmp_path: Path, tiny_vit: Path) -> None:
    """With TPE, past its random start: in another process, after a stop, and whatever numpy's global state."""

    def config(seed: int) -> StudyConfig:
        return load_config(write_study(tmp_path / str(seed), tiny_vit, search__sampler="tpe", search__seed=seed))

    np.random.seed(1)
    whole = searched(config(3), optuna.create_study(direction="maximize"), 14)
    assert len({json.dumps(params) for params in whole}) == 14
    np.random.seed(2)
    stopped = optuna.create_study(direction="maximize")
    for until in (5, 12, 14):
        searched(config(3), stopped, until)
    assert [trial.params for trial in stopped.trials] == whole
    code = f"""
import json, optuna
from autoft.config import load_config
from pathlib import Path
from tests.test_defects import searched
print(json.dumps(searched(load_config(Path({str(tmp_path / "3" / "tiny.yaml")!r})), optuna.create_study(direction="maximize"), 14)))
"""
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "77"}, check=True, capture_output=True, text=True
    )
    assert json.loads(elsewhere.stdout) == whole
    other = searched(config(4), optuna.create_study(direction="maximize"), 2)
    assert all(mine[name] != theirs[name] for mine, theirs in zip(other, whole, strict=False) for name in ("lr", "weight_decay"))


# --- 6: a step a batch, of the mean loss


def test_defect_6_every_batch_is_one_step_down_the_mean_loss(tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is accumulated here. AdamW hides a factor of the loss, so its first moment is looked at: a tenth of the gradient."""
    workspace = load_workspace(tmp_path, tiny_vit, final__batch_size=10)
    pixels = workspace.loaded.preprocess
    workspace = replace(workspace, train_transform=lambda images, *draw: eval_transform(images, pixels.mean, pixels.std))  # type: ignore[arg-type]
    batches: list[Tensor] = []
    take = DeviceImages.take
    monkeypatch.setattr(DeviceImages, "take", lambda self, examples: batches.append(examples) or take(self, examples))
    run = final_recipe(workspace.config.final, hyperparameters(weights={"cross_entropy": 1.0}), len(workspace.train))
    for step in finetune(workspace, run):
        assert step.number == len(batches)
        assert {int(state["step"]) for state in step.optimizer.state.values()} == {step.number}
        if step.number == 1:
            moment, loss = step.optimizer.state[workspace.model.head.weight]["exp_avg"].clone(), float(step.loss)
    assert len(batches) == 2 * (48 // 10), "two epochs of four whole batches"

    workspace.zero_shot.restore(workspace.model)
    images, labels = take(workspace.train, batches[0]), workspace.train.labels[batches[0]]
    halves = [
        cross_entropy(workspace.model(eval_transform(images[half], pixels.mean, pixels.std)), labels[half]) for half in (slice(5), slice(5, 10))
    ]
    mean = torch.stack(halves).mean()
    assert loss == pytest.approx(float(mean.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(mean, [workspace.model.head.weight])
    torch.testing.assert_close(moment, 0.1 * gradient, rtol=1e-4, atol=1e-7)


# --- 9: few-shot sets in the final fine-tune


def test_defect_9_a_few_shot_study_has_every_set_its_stages_need(tmp_path: Path, tiny_vit: Path) -> None:
    config = load_config(write_study(tmp_path, tiny_vit, **FEW_SHOT))
    data = load_workspace(tmp_path, tiny_vit, **FEW_SHOT).data
    sets = {"train": data.train, "val_id": data.val_id, "val_ood": data.val_ood, **{name: images for name, (_, images) in data.tests.items()}}
    found = {name: None if images is None else len(images) for name, images in sets.items()}
    assert found == {"train": 12, "val_id": 24, "val_ood": 24, "a": 30, "b": 30}
    assert data.train.class_counts().tolist() == [4, 4, 4]
    stages(config, tmp_path)
    final = stage_result(tmp_path / "run", "final")
    assert final is not None
    assert (final["samples"], len(final["epochs"])) == (2 * 12, 2)
    for method in ("zero_shot", "final", "wise_ft"):
        scored = stage_result(tmp_path / "run", f"evaluate-{method}")
        assert scored is not None
        assert {row["dataset"] for row in scored["evaluations"]} == {"a", "b"}


# --- 10, 14: what `autoft evaluate` scores


SIZES = {"val_id": 24, "val_ood": 21, "a": 33, "b": 27}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Path:
    """A study whose sets all differ in size and content."""
    folder = tmp_path_factory.mktemp("evaluate")
    path = write_study(folder, tiny_vit, metric="cross_entropy")
    for seed, (name, n) in enumerate({"val_ood": 21, "test_a": 33, "test_b": 27}.items()):
        write_images(folder / "data" / f"{name}.npz", n, 50 + seed, 60)
    return path


@pytest.fixture
def scored(study: Path, tiny_vit: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, dict[str, Any]]]:
    """`autoft evaluate` of the zero-shot model: the cross-entropy row of each set."""

    def call(*flags: str) -> dict[str, dict[str, Any]]:
        arguments = ["evaluate", str(tiny_vit), str(study), "--json", "--device", "cpu", *flags]
        assert evaluate(build_parser().parse_args(arguments)) == 0
        rows = json.loads(capsys.readouterr().out)["evaluations"]
        return {row["dataset"]: row for row in rows if row["metric"] == "cross_entropy"}

    return call


def test_defect_10_each_test_set_is_scored_on_its_own_images_as_open_clip_sees_them(study: Path, scored: Any, tiny_vit: Path) -> None:
    """All of a set's examples, through open_clip's model, evaluation transform and zero-shot head, from the files on disk."""
    config, rows = load_config(study), scored()
    assert {name: row["n"] for name, row in rows.items()} == SIZES
    clip, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tiny_vit}")
    clip.eval()
    templates = [lambda text, template=template: template.replace("{}", text) for template in config.data.templates]
    head = open_clip.build_zero_shot_classifier(
        clip, open_clip.get_tokenizer(f"local-dir:{tiny_vit}"), CLASSES, templates, num_classes_per_batch=None
    )
    for name, file in {"val_id": "val_id", "val_ood": "val_ood", "a": "test_a", "b": "test_b"}.items():
        arrays = np.load(study.parent / "data" / f"{file}.npz")
        images = torch.stack([preprocess(Image.fromarray(image)) for image in arrays["images"]])
        with torch.no_grad():
            logits = clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ head
        assert rows[name]["value"] == pytest.approx(float(cross_entropy(logits, torch.from_numpy(arrays["labels"]))), rel=1e-4)


@pytest.mark.parametrize("sets", ["val_id", "val_ood,a"])
def test_defect_14_any_of_a_studys_sets_can_be_evaluated(sets: str, scored: Any) -> None:
    """Their main() asserted that the ID validation set is not among those to be evaluated."""
    assert {name: row["n"] for name, row in scored("--sets", sets).items()} == {name: SIZES[name] for name in sets.split(",")}


# --- 16: no pickles


class Mischief:
    """Unpickled, it creates a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.trace,)


def test_defect_16_a_checkpoint_holds_tensors_and_text_and_no_training_state_is_executed(tmp_path: Path, tiny_vit: Path) -> None:
    config = load_config(write_study(tmp_path, tiny_vit, **FEW_SHOT))
    (tmp_path / "run" / "training").mkdir(parents=True)
    torch.save({"key": Mischief(tmp_path / "executed")}, tmp_path / "run" / "training" / "final.pt")
    stages(config, tmp_path)
    assert not (tmp_path / "executed").exists()
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    checkpoints = [file for file in files if "checkpoints" in file.parts]
    assert {file.parent.name for file in checkpoints} == {"final", "wise_ft"}
    assert {file.suffix for file in checkpoints} == {".safetensors", ".json", ".md"}
    for file in files:
        assert not zipfile.is_zipfile(file) and not file.read_bytes().startswith(pickle.PROTO), f"{file.name} is a pickle"
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                assert list(tensors.keys())
        else:
            file.read_text(encoding="utf-8")  # raises where a file is no text


# --- all of them


def test_every_defect_has_a_test_of_its_number_and_a_patch_that_applies() -> None:
    """A patch that no longer applies is written again: change the code, `git diff -U1`, keep the head."""
    mutants = read_mutants()
    page = (ROOT / "docs" / "defects.md").read_text(encoding="utf-8")
    assert {mutant.defect for mutant in mutants} == set(DEFECTS)
    for mutant in mutants:
        apply_patch(mutant.path, ROOT, "--check")
        assert f"`{mutant.path.name}`" in page
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert re.match(rf"test_defect_{mutant.defect}_", name), f"{test} does not say which defect it is about"
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
            assert f"`{name.removeprefix(f'test_defect_{mutant.defect}_')}`" in page

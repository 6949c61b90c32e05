"""The linear probe: against scikit-learn, how C is chosen, and fine-tunes that start from it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from autoft import probe as probe_module
from autoft.cli.main import main
from autoft.config import load_config
from autoft.errors import ModelError
from autoft.finetune import trial_recipe
from autoft.frozen import train_features
from autoft.models import load_checkpoint
from autoft.probe import GRID, fit_logistic, fit_probe, split
from autoft.search_space import Hyperparameters
from autoft.stages import stage_result
from autoft.trial import trial_splits
from autoft.workspace import Workspace
from tests.runs import cloned, digest, first_steps, hyperparameters, load_workspace, one_thread, stages, whole_trial
from tests.studies import write_study

LP_FT = replace(hyperparameters(1e-3, {"cross_entropy": 1.0}), start="linear_probe")
LP = replace(LP_FT, trained="nothing")


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def workspace(tmp_path: Path, tiny_vit: Path) -> Workspace:
    return load_workspace(tmp_path, tiny_vit, metric="cross_entropy")


def like_clip(n: int, classes: int, spread: float, seed: int = 0, dim: int = 24) -> tuple[Tensor, Tensor]:
    """Features of length 1 that share most of their direction, and their labels; classes overlap by `spread`."""
    rng = torch.Generator().manual_seed(seed)
    centres = 3 + torch.randn(classes, dim, generator=rng)
    labels = torch.randint(classes, (n,), generator=rng)
    features = centres[labels] + spread * torch.randn(n, dim, generator=rng)
    return torch.nn.functional.normalize(features, dim=1), labels


# --- the regression


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("c", [0.03, 1.0, 30.0, 1000.0])
def test_the_regression_is_scikit_learns(c: float, classes: int) -> None:
    features, labels = like_clip(300, classes, spread=1.5)
    x = features.double().numpy()
    reference = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(x, labels.numpy())
    weight, bias = fit_logistic(features, labels, classes, c, tolerance=1e-10, max_iterations=2000)
    ours = (features.double() @ weight.T + bias).softmax(dim=1).numpy()
    if classes > 2:  # of two classes, scikit-learn penalises one weight vector, the difference, instead of two
        np.testing.assert_allclose(ours, reference.predict_proba(x), atol=1e-6)
        np.testing.assert_allclose(weight.numpy(), reference.coef_, atol=1e-5 * np.abs(reference.coef_).max())
        centred = reference.intercept_ - reference.intercept_.mean()
        np.testing.assert_allclose(bias - bias.mean(), centred, atol=1e-5 * np.abs(reference.coef_).max())
    else:  # penalty |d/2|^2 * 2 / 2 = |d|^2 / 4: scikit-learn's with twice the C
        twice = LogisticRegression(C=2 * c, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(x, labels.numpy())
        np.testing.assert_allclose(ours, twice.predict_proba(x), atol=1e-6)
        np.testing.assert_allclose(weight[1] - weight[0], twice.coef_[0], atol=1e-5 * np.abs(twice.coef_).max())


@pytest.mark.parametrize("c", [0.1, 10.0, 1000.0])
def test_the_tolerance_in_use_is_tight_enough_for_the_same_predictions(c: float) -> None:
    features, labels = like_clip(300, 5, spread=1.5)
    x = features.double().numpy()
    reference = LogisticRegression(C=c, solver="lbfgs", tol=1e-10, max_iter=10_000).fit(x, labels.numpy())
    weight, bias = fit_logistic(features, labels, 5, c)
    logits = features.double() @ weight.T + bias
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), reference.predict_proba(x), atol=2e-3)
    assert (logits.argmax(dim=1).numpy() == reference.predict(x)).all()


def test_where_it_starts_and_how_it_is_cut_up_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = like_clip(100, 4, spread=1.0)
    cold = fit_logistic(features, labels, 4, 10.0, tolerance=1e-9, max_iterations=1000)
    start = fit_logistic(features, labels, 4, 0.1)
    monkeypatch.setattr(probe_module, "_LOGITS_AT_ONCE", 28)  # 7 rows at once
    warm = fit_logistic(features, labels, 4, 10.0, start=start, tolerance=1e-9, max_iterations=1000)
    torch.testing.assert_close(warm[0], cold[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(warm[1], cold[1], atol=1e-5, rtol=1e-5)
    at_the_end = fit_logistic(features, labels, 4, 10.0, start=cold, max_iterations=1)
    torch.testing.assert_close(at_the_end[0], cold[0], atol=1e-5, rtol=1e-5)


def test_a_class_without_examples_is_never_predicted() -> None:
    features, labels = like_clip(60, 3, spread=1.0)
    weight, bias = fit_logistic(features, labels, 4, 10.0)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    assert (features.double() @ weight.T + bias).softmax(dim=1)[:, 3].max() < 1e-4


# --- what is held out


def test_a_tenth_of_each_class_is_held_out_and_no_example_is_lost() -> None:
    labels = torch.tensor([0] * 40 + [1] * 25 + [2] * 3 + [3]).flip(0)
    kept, held_out = split(labels)
    assert torch.cat([kept, held_out]).sort().values.tolist() == list(range(len(labels)))
    assert labels[held_out].bincount(minlength=4).tolist() == [4, 2, 1, 0]
    assert [part.tolist() for part in split(labels)] == [kept.tolist(), held_out.tolist()]
    assert held_out.tolist() != sorted(held_out.tolist())[: len(held_out)] or (held_out.diff() > 1).any(), "drawn, not the first ones"


def test_single_examples_are_all_fitted() -> None:
    kept, held_out = split(torch.tensor([2, 0, 1]))
    assert kept.tolist() == held_out.tolist() == [0, 1, 2]


# --- the probe of a workspace


def test_features_are_those_evaluation_would_compute(tmp_path: Path, tiny_vit: Path) -> None:
    """Of the image set that is VAL_ID too, through the evaluation pipeline; TRAIN is kept larger and resized to the model's size."""
    path = str(tmp_path / "data" / "train.npz")
    workspace = load_workspace(tmp_path, tiny_vit, data__val_id={"layout": "arrays", "path": path}, evaluate__batch_size=7)
    with torch.no_grad():
        logits = workspace.model.head(train_features(workspace))
    torch.testing.assert_close(logits, workspace.logits("val_id"), atol=0.05, rtol=0)  # Pillow resizes from the original


@pytest.mark.parametrize("grid", [GRID, (0.1, 1.0)])
def test_c_is_the_best_on_what_is_held_out_and_the_probe_is_fitted_to_everything(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, grid: tuple[float, ...]
) -> None:
    monkeypatch.setattr(probe_module, "GRID", grid)
    probe = fit_probe(workspace)
    features, labels = train_features(workspace).double(), workspace.train.labels_cpu
    kept, held_out = split(labels)
    losses = []
    for c in grid:
        weight, bias = fit_logistic(features[kept], labels[kept], 3, c, max_iterations=1000)
        losses.append(float(torch.nn.functional.cross_entropy(features[held_out] @ weight.T + bias, labels[held_out])))
    assert probe.c == grid[losses.index(min(losses))] and probe.score == pytest.approx(min(losses), rel=0.05)
    x = features.numpy()
    reference = LogisticRegression(C=probe.c, tol=1e-8, max_iter=10_000).fit(x, labels.numpy())
    ours = (features @ probe.weight.double().T + probe.bias.double()).softmax(dim=1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(x), atol=2e-3)
    assert probe.c > 1 or np.abs(ours - reference.predict_proba(x)).max() < 1e-5, "where a tenth less data would tell"
    assert probe.weight.dtype == torch.float32 and probe.weight.shape == (3, 16) and probe.bias.shape == (3,)


def test_noise_takes_a_smaller_c_than_clean_data_and_a_tie_the_smallest(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = train_features(workspace), workspace.train.labels_cpu
    clean = probe_module._choose(workspace, features, labels, 3)
    noise = torch.nn.functional.normalize(torch.randn(features.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    assert probe_module._choose(workspace, noise, labels, 3)[2] < clean[2]
    monkeypatch.setattr(workspace, "config", workspace.config.model_copy(update={"metric": "accuracy"}))
    separable = torch.nn.functional.one_hot(labels, 16).float()
    c, score = probe_module._choose(workspace, separable, labels, 3)[2:]
    assert (c, score) == (GRID[0], 1.0)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "worst_group_accuracy"])
def test_every_metric_chooses(tmp_path: Path, tiny_vit: Path, metric: str) -> None:
    workspace = load_workspace(tmp_path, tiny_vit, metric=metric)
    assert fit_probe(workspace).c in GRID
    workspace.train.groups = torch.full_like(workspace.train.labels, -1)
    workspace.cached.pop("linear_probe")
    assert fit_probe(workspace).c in GRID, "examples in no group do not stop it"


def test_the_model_stays_as_it_was_whatever_it_was(workspace: Workspace) -> None:
    expected = fit_probe(workspace)
    workspace.cached.pop("linear_probe")
    first_steps(workspace, trial_recipe(workspace.config.trial, hyperparameters(), 48), 2)
    model = workspace.model
    model.clip.visual.transformer.eval()  # a mixture of modes, as frozen BatchNorm makes
    modes, before = [module.training for module in model.modules()], digest(workspace)
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    found = fit_probe(workspace)
    assert (digest(workspace), [module.training for module in model.modules()]) == (before, modes)
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert torch.equal(found.weight, expected.weight) and torch.equal(found.bias, expected.bias), "always the zero-shot model's"
    assert fit_probe(workspace) is found, "fitted once"


def test_features_that_are_not_finite_are_told(workspace: Workspace) -> None:
    workspace.zero_shot.tensors["clip.visual.proj"].fill_(float("nan"))
    with pytest.raises(ModelError, match="48 images of TRAIN are not all finite"):
        fit_probe(workspace)


# --- fine-tunes that start from it


def trial_workspace(folder: Path, model: Path, **changes: object) -> Workspace:
    """With the sets a trial loads, which VAL_ID is not among."""
    config = load_config(write_study(folder, model, **changes))
    return Workspace.load(config, "cpu", folder / "cache", splits=trial_splits(config))


def test_a_trial_that_trains_nothing_scores_the_probe(tmp_path: Path, tiny_vit: Path) -> None:
    workspace = trial_workspace(tmp_path, tiny_vit, metric="cross_entropy")
    assert workspace.data.val_id is None
    result = whole_trial(workspace, LP)
    assert (result.steps, result.samples) == (0, 0)
    probe, images = fit_probe(workspace), workspace.images("val_ood")
    workspace.zero_shot.restore(workspace.model)
    with torch.no_grad():
        workspace.model.head.weight.copy_(probe.weight)
        workspace.model.head.bias.copy_(probe.bias)
    expected = torch.nn.functional.cross_entropy(workspace.logits("val_ood"), images.labels)
    assert result.score == pytest.approx(float(expected)) and result.score != pytest.approx(
        whole_trial(workspace, replace(LP, start="zero_shot")).score
    )


def test_lp_ft_starts_from_the_probe_and_moves_away_from_it(tmp_path: Path, tiny_vit: Path) -> None:
    workspace = trial_workspace(tmp_path, tiny_vit)
    probe = fit_probe(workspace)
    still: Hyperparameters = replace(LP_FT, lr=1e-12, weight_decay=0.0)
    whole_trial(workspace, still)
    torch.testing.assert_close(workspace.model.head.weight.detach(), probe.weight, atol=1e-6, rtol=0)
    whole_trial(workspace, LP_FT)
    assert not torch.allclose(workspace.model.head.weight, probe.weight, atol=1e-6)
    torch.testing.assert_close(fit_probe(workspace).weight, probe.weight, atol=0, rtol=0, msg="what is remembered is not what trains")


def test_the_seed_of_a_fine_tune_does_not_change_the_probe(tmp_path: Path, tiny_vit: Path) -> None:
    scores = {whole_trial(trial_workspace(tmp_path, tiny_vit, metric="cross_entropy"), replace(LP, seed=seed)).score for seed in (1, 2)}
    assert len(scores) == 1


def test_the_stages_keep_the_probe_as_the_final_model(tmp_path: Path, tiny_vit: Path) -> None:
    config = load_config(write_study(tmp_path, tiny_vit))
    stages(config, tmp_path, LP)
    final = stage_result(tmp_path / "run", "final")
    assert final is not None and (final["steps"], final["samples"], final["best_epoch"]) == (0, 0, 0)
    workspace = load_workspace(tmp_path, tiny_vit)
    probe = fit_probe(workspace)
    model = load_checkpoint(tmp_path / "run" / "checkpoints" / "final")[0]
    assert torch.equal(model.head.weight, probe.weight) and torch.equal(model.head.bias, probe.bias)
    start = cloned(workspace.zero_shot.tensors)
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items() if not name.startswith("head."))


@pytest.mark.parametrize("trained", ["nothing", "all"])
def test_the_command_runs_both(tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch, trained: str) -> None:
    monkeypatch.chdir(tmp_path)
    study = write_study(tmp_path, tiny_vit)
    Path("lp.json").write_text(json.dumps(replace(LP, trained=trained).to_dict()))
    assert main(["finetune", str(study), "--hyperparameters", "lp.json", "--threads", "1", "--json"]) == 0
    summary = json.loads(Path("runs/tiny-lp/summary.json").read_text())
    assert summary["final"]["hyperparameters"] == replace(LP, trained=trained).to_dict()

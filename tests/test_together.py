"""Trials that run together are the trials they are alone."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout

from autoft import pace as pace_module
from autoft.config import SearchSpaceConfig, load_config
from autoft.executor import Failed, FailureKind, Finished, InProcessExecutor, Job, Reported, Stopped
from autoft.finetune import MAX_LOG_LOGIT_SCALE, Recipe, draw_batch
from autoft.models import ClipClassifier, ZeroShotState
from autoft.pace import PAYS, SAME, measure, typical
from autoft.search_space import Hyperparameters
from autoft.together import Outcome, Wanted, program_of, run_trials_together
from autoft.trial import Report, Stopwatch, TrialDiverged, TrialResult, TrialStopped, run_trial
from autoft.vectorized import Stack, why_alone
from autoft.workspace import Workspace
from tests.runs import ALL_TERMS, IMAGE_TERMS, cloned, digest, hyperparameters, load_workspace, one_thread, tune
from tests.studies import write_study

close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-10)
REPORTING = {"search__pruner": "median", "trial__steps": 4, "trial__reports": 4}


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", autouse=True)
def _evaluation_in_the_models_precision() -> Iterator[None]:
    forward = ClipClassifier.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipClassifier, "forward", lambda self, images, *more: forward(self, images.to(self.head.weight.dtype), *more))
        yield


def exact(workspace: Workspace) -> Workspace:
    """The workspace in double precision, no weight of its model 0: where nothing but rounding is left of a gradient, AdamW makes a step of it."""
    model, transform = workspace.model.double(), workspace.train_transform
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "clip.logit_scale":
                parameter.add_(0.05 * torch.randn_like(parameter, dtype=torch.float64))
    return replace(workspace, zero_shot=ZeroShotState.of(model), train_transform=lambda images, *how: transform(images, *how).double())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    return exact(load_workspace(tmp_path_factory.mktemp("vit"), tiny_vit, **REPORTING))


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory, tiny_convnet: Path) -> Workspace:
    return exact(load_workspace(tmp_path_factory.mktemp("convnet"), tiny_convnet, **REPORTING))


@pytest.fixture(autouse=True)
def _nothing_remembered(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in ("vit", "convnet"):
        if name in request.fixturenames:
            request.getfixturevalue(name).forget()


def different(weights: Mapping[str, float] = ALL_TERMS, **more: Any) -> list[Hyperparameters]:
    """Three trials that differ in all in which trials of a program may."""
    own: list[dict[str, Any]] = [{"momentum": 0.8}, {"beta2": 0.99, "schedule": "cosine"}, {"schedule": "linear", "layer_decay": 0.7}]
    return [
        replace(
            hyperparameters(lr=1e-3 * (1 + i), weight_decay=0.1 * i, seed=i, weights={term: weight * 2**i for term, weight in weights.items()}),
            **(own[i] | more),
        )
        for i in range(3)
    ]


def recipes(hps: list[Hyperparameters], clip: float | None = None, steps: int = 3) -> list[Recipe]:
    return [Recipe(hyperparameters=hp, steps=steps, batch_size=12, schedule=hp.schedule or "constant", clip_grad_norm=clip) for hp in hps]


def assert_equal_to_alone(workspace: Workspace, runs: list[Recipe]) -> None:
    """Losses after each step and all parameters and buffers at the end."""
    alone = []
    for run in runs:
        losses = tune(workspace, run)
        alone.append((torch.tensor(losses, dtype=torch.float64), cloned(workspace.model.state_dict())))
    stack = Stack(workspace, runs)
    stacked = torch.stack([stack.step().double() for _ in range(runs[0].steps)])
    for index, (expected, state) in enumerate(alone):
        close(stacked[:, index], expected)
        stack.load_into(workspace.model, index)
        close(dict(workspace.model.state_dict()), state)
        moved = {name for name, tensor in state.items() if not torch.equal(tensor, workspace.zero_shot.tensors[name])}
        assert len(moved) > 1, "something trained"


# --- weights


@pytest.mark.parametrize("clip", [None, 0.05])
def test_weights_and_losses_are_those_alone(vit: Workspace, clip: float | None) -> None:
    assert_equal_to_alone(vit, recipes(different(), clip))


def test_batches_differ_in_their_number_of_texts(vit: Workspace) -> None:
    """So that the test above sees texts that only fill up."""
    counts = {len(tokens) for run in recipes(different()) if (tokens := draw_batch(vit, run, 0).tokens) is not None}
    assert len(counts) > 1


@pytest.mark.parametrize("batch_norm", ["train", pytest.param("frozen", marks=pytest.mark.slow)])
def test_batch_norm_is_each_trials_own(convnet: Workspace, batch_norm: str) -> None:
    config = convnet.config.model_copy(update={"model": convnet.config.model.model_copy(update={"batch_norm": batch_norm})})
    assert_equal_to_alone(replace(convnet, config=config), recipes(different(IMAGE_TERMS)[1:], steps=2))


@pytest.mark.parametrize("terms", [{"cross_entropy": 1.0}, {"contrastive": 1.0}, {"l2_zero": 5e3}], ids=["ce", "flyp", "norm"])
def test_whichever_terms_there_are(vit: Workspace, terms: dict[str, float]) -> None:
    """SGD, whose steps are no larger than rounding where the gradient is not."""
    assert_equal_to_alone(vit, recipes(different(terms, optimizer="sgd", momentum=0.9, layer_decay=1.0, beta2=0.999)))


def test_what_the_loss_does_not_reach_is_left_alone(vit: Workspace) -> None:
    """No weight decay on the head where no term trains it, as without a gradient."""
    stack = Stack(vit, recipes(different({"contrastive": 1.0})))
    stack.step()
    stack.load_into(vit.model, 2)
    assert torch.equal(vit.model.head.weight, vit.zero_shot.tensors["head.weight"])
    assert not torch.equal(vit.model.clip.ln_final.weight, vit.zero_shot.tensors["clip.ln_final.weight"])  # type: ignore[union-attr,arg-type]


def test_the_logit_scale_stays_in_its_bounds(vit: Workspace) -> None:
    runs = recipes([hyperparameters(lr=sign * 3.0, seed=1, weights={"contrastive": 1.0}) for sign in (1, -1)])  # one up and one down, or the other way
    stack = Stack(vit, runs)
    stack.step()
    scales = []
    for index in range(2):
        stack.load_into(vit.model, index)
        scales.append(float(vit.model.logit_scale.detach()))
    assert sorted(scales) == [0.0, MAX_LOG_LOGIT_SCALE]


def test_those_that_stay_go_on_as_if_the_others_had_never_been_there(vit: Workspace) -> None:
    runs = recipes(different())
    tune(vit, runs[2])
    expected = cloned(vit.model.state_dict())
    stack = Stack(vit, runs)
    stack.step()
    stack.keep([2, 0])
    stack.step()
    stack.keep([0])
    stack.step()
    assert len(stack) == 1
    stack.load_into(vit.model, 0)
    close(dict(vit.model.state_dict()), expected)


def test_only_recipes_of_one_program_are_stacked(vit: Workspace) -> None:
    one, other = recipes([hyperparameters(), hyperparameters(weights=IMAGE_TERMS)])
    with pytest.raises(ValueError, match="2 recipes share no program"):
        Stack(vit, [one, other])
    with pytest.raises(ValueError, match="constraint ftp"):
        Stack(vit, recipes([replace(hyperparameters(), constraint="ftp")]))


# --- trials


def alone(workspace: Workspace, hp: Hyperparameters, stop: Callable[[], bool] = lambda: False) -> list[Outcome]:
    """A trial's reports, and how it ended."""
    said: list[Outcome] = []
    trial = run_trial(workspace, hp, stop)
    try:
        while True:
            said.append(next(trial))
    except StopIteration as end:
        said.append(end.value)
    except (TrialDiverged, TrialStopped) as error:
        said.append(error)
    return said


def together(workspace: Workspace, trials: list[Wanted]) -> list[list[Outcome]]:
    said: list[list[Outcome]] = [[] for _ in trials]
    for index, outcome in run_trials_together(workspace, trials):
        said[index].append(outcome)
    return said


def comparable(said: list[Outcome]) -> list[Any]:
    """All but the seconds."""
    return [replace(one, seconds=0.0) if isinstance(one, TrialResult) else (str(one), one.samples) if isinstance(one, TrialDiverged) else one for one in said]


def scores_in_full(workspace: Workspace) -> Workspace:
    """Scored by a metric that moves with every weight."""
    return replace(workspace, config=workspace.config.model_copy(update={"metric": "cross_entropy"}))


def assert_same(found: list[Outcome], expected: list[Outcome]) -> None:
    assert [type(one) for one in found] == [type(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, Report) and isinstance(other, Report):
            assert one.step == other.step and one.score == pytest.approx(other.score, rel=1e-6)
        if isinstance(one, TrialResult) and isinstance(other, TrialResult):
            assert one.score == pytest.approx(other.score, rel=1e-6) and one.ci_low == pytest.approx(other.ci_low, rel=1e-4)
            assert (one.steps, one.samples, one.repeats == (one.score,)) == (other.steps, other.samples, True)


@pytest.fixture(params=["vit", pytest.param("convnet", marks=pytest.mark.slow)])
def workspace(request: pytest.FixtureRequest) -> Workspace:
    return scores_in_full(request.getfixturevalue(request.param))


def test_reports_and_results_are_those_alone(workspace: Workspace) -> None:
    hps = different(IMAGE_TERMS if workspace.model.clip.visual.__class__.__name__ == "TimmModel" else ALL_TERMS)
    found = together(workspace, [Wanted(hp) for hp in hps])
    for said, hp in zip(found, hps, strict=True):
        expected = alone(workspace, hp)
        assert [one.step for one in expected if isinstance(one, Report)] == [1, 2, 3, 4]
        assert_same(said, expected)
    assert len({one[-1].score for one in found if isinstance(one[-1], TrialResult)}) == 3, "the trials differ"


def test_neither_the_others_nor_the_order_matter(vit: Workspace) -> None:
    workspace = scores_in_full(vit)
    hps = [*different(), *[replace(hp, seed=hp.seed + 7) for hp in different()]]
    six = together(workspace, [Wanted(hp) for hp in hps])
    backwards = together(workspace, [Wanted(hp) for hp in reversed(hps[:4])])[::-1]
    for said, other in zip(six[:4], backwards, strict=True):
        assert_same(said, other)


def test_accuracies_are_equal_to_the_last_bit(vit: Workspace) -> None:
    hps = different()
    assert [comparable(said) for said in together(vit, [Wanted(hp) for hp in hps])] == [comparable(alone(vit, hp)) for hp in hps]


def test_repeats_are_those_alone(vit: Workspace) -> None:
    trial = vit.config.trial.model_copy(update={"repeats": 2, "steps": 2})
    workspace = replace(vit, config=vit.config.model_copy(update={"trial": trial}))
    hps = different()
    found = together(workspace, [Wanted(hp) for hp in hps])
    assert [comparable(said) for said in found] == [comparable(alone(workspace, hp)) for hp in hps]
    assert all(isinstance(said[-1], TrialResult) and len(said[-1].repeats) == 2 for said in found)


def test_a_confirmation_run_has_its_own_steps_and_reports_nothing(vit: Workspace) -> None:
    first, second, third = different()
    found = together(vit, [Wanted(first, confirm_steps=2), Wanted(second), Wanted(third, confirm_steps=2)])
    assert [len(said) for said in found] == [1, 5, 1]
    assert isinstance(found[0][0], TrialResult) and found[0][0].steps == 2


def test_one_that_diverges_disturbs_none(workspace: Workspace) -> None:
    hps = different(IMAGE_TERMS)
    hps[1] = replace(hps[1], lr=1e200)
    found = together(workspace, [Wanted(hp) for hp in hps])
    assert isinstance(found[1][-1], TrialDiverged)
    assert comparable(found[1])[-1] == comparable(alone(workspace, hps[1]))[-1]
    for index in (0, 2):
        assert_same(found[index], alone(workspace, hps[index]))


def test_one_that_is_stopped_disturbs_none(vit: Workspace) -> None:
    workspace = scores_in_full(vit)
    hps = different()
    found: list[list[Outcome]] = [[], [], []]

    def pruned() -> bool:
        return len(found[0]) == 2  # as a coordinator: it has heard the second report

    for index, outcome in run_trials_together(workspace, [Wanted(hps[0], pruned), *map(Wanted, hps[1:])]):
        found[index].append(outcome)
    stop = found[0][-1]
    assert isinstance(stop, TrialStopped) and stop.samples == 24 and len(found[0]) == 3
    assert [type(one) for one in found[0][:2]] == [Report, Report]
    for index in (1, 2):
        assert_same(found[index], alone(workspace, hps[index]))


def test_a_trials_own_error_ends_it_alone(vit: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    hps = different()
    looks: list[int] = []
    score = Workspace.score

    def fails_once(self: Workspace, name: str) -> float:
        looks.append(1)
        if len(looks) == 2:  # the second trial's first report
            raise KeyError("a bug")
        return score(self, name)

    monkeypatch.setattr(Workspace, "score", fails_once)
    found = together(vit, [Wanted(hp) for hp in hps])
    assert isinstance(found[1][0], KeyError) and len(found[1]) == 1
    assert isinstance(found[0][-1], TrialResult) and isinstance(found[2][-1], TrialResult)


# --- what cannot be shared


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"constraint": "ftp"}, "constraint ftp"),
        ({"averaging": "beta"}, "the weights are averaged"),
        ({"loss_weights": {"cross_entropy": 1.0, "ldifs": 1.0}}, "loss term ldifs is not among the nine"),
        ({"trained": "nothing"}, "nothing trains"),
    ],
)
def test_other_methods_run_alone_and_are_the_same_to_the_bit(vit: Workspace, more: dict[str, Any], reason: str) -> None:
    hps = [replace(hyperparameters(seed=seed, weights=IMAGE_TERMS), **more) for seed in (1, 2)]
    assert why_alone(hps[0]) == reason and program_of(vit, Wanted(hps[0])) is None
    found = together(vit, [Wanted(hp) for hp in hps])
    after = digest(vit)
    assert [comparable(said) for said in found] == [comparable(alone(vit, hp)) for hp in hps]
    assert digest(vit) == after


def test_programs_of_several_kinds_are_kept_apart(vit: Workspace) -> None:
    hps = [hyperparameters(seed=1), hyperparameters(seed=2, weights=IMAGE_TERMS), hyperparameters(seed=3), replace(hyperparameters(seed=4), label_smoothing=0.1)]
    found = together(vit, [Wanted(hp) for hp in hps])
    assert [comparable(said) for said in found] == [comparable(alone(vit, hp)) for hp in hps]


def test_after_a_split_batch_nothing_is_shared(vit: Workspace) -> None:
    assert program_of(vit, Wanted(hyperparameters())) is not None
    assert program_of(replace(vit, batch_split=2), Wanted(hyperparameters())) is None


def test_a_model_that_draws_random_numbers_runs_alone(vit: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Its draws cannot be those of a trial alone."""
    features = ClipClassifier.image_features
    monkeypatch.setattr(ClipClassifier, "image_features", lambda self, images: dropout(features(self, images), 0.5, self.training))
    hps = different()
    expected = [comparable(alone(vit, hp)) for hp in hps]
    with caplog.at_level(logging.WARNING):
        assert [comparable(said) for said in together(vit, [Wanted(hp) for hp in hps])] == expected
        assert [comparable(said) for said in together(vit, [Wanted(hp) for hp in hps])] == expected
    assert len(caplog.records) == 1 and "3 trials run one by one" in caplog.text and "random" in caplog.text
    assert program_of(vit, Wanted(hps[0])) is None, "it is remembered"


def test_memory_that_runs_out_on_the_way_costs_no_report(vit: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    hps = different()
    expected = [comparable(alone(vit, hp)) for hp in hps]
    step, taken = Stack.step, []

    def third_fails(self: Stack) -> Tensor:
        taken.append(1)
        if len(taken) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return step(self)

    monkeypatch.setattr(Stack, "step", third_fails)
    assert [comparable(said) for said in together(vit, [Wanted(hp) for hp in hps])] == expected
    assert len(taken) == 3


# --- the executor


def drain(executor: InProcessExecutor, prune: int | None = None) -> list[Any]:
    """Events until every trial has ended; one trial is pruned at its second report."""
    events: list[Any] = []
    while executor._queue or executor._running is not None:
        for event in executor.poll(0):
            events.append(event)
            if isinstance(event, Reported) and event.number == prune and event.report.step == 2:
                executor.prune(event.number)
    return events


@pytest.fixture
def executor(tmp_path: Path, tiny_vit: Path) -> InProcessExecutor:
    config = load_config(write_study(tmp_path, tiny_vit, **REPORTING))
    return InProcessExecutor(config, device="cpu", threads=1, cache_dir=tmp_path / "cache", should_stop=lambda: False, trials_together=3)


def test_the_executor_runs_so_many_at_once(executor: InProcessExecutor) -> None:
    assert executor.slots == 3
    hps = [*different(), replace(hyperparameters(seed=9), constraint="spd"), hyperparameters(seed=10)]
    for number, hp in enumerate(hps):
        executor.submit(Job(number, hp))
    events = drain(executor, prune=1)
    ends = {event.number: event for event in events if not isinstance(event, Reported)}
    assert {number: type(end) for number, end in ends.items()} == {0: Finished, 1: Stopped, 2: Finished, 3: Finished, 4: Finished}
    assert [event.number for event in events[:6]] == [0, 1, 2, 0, 1, 1], "in lock step"
    workspace = executor._workspace
    assert workspace is not None
    for number in (0, 2, 3, 4):
        expected = alone(workspace, hps[number])[-1]
        assert isinstance(expected, TrialResult) and ends[number].result.score == expected.score


def test_a_limit_of_time_is_that_of_all_together(executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    executor._timeout = 100.0
    for number, hp in enumerate(different()):
        executor.submit(Job(number, hp))
    first = executor.poll(0)
    assert isinstance(first[0], Reported) and executor._limit == 300.0
    monkeypatch.setattr(executor, "_deadline", 0.0)
    ends = drain(executor)
    kinds = [event.kind for event in ends if isinstance(event, Failed)]
    assert kinds == [FailureKind.TIMEOUT] * 3


# --- the rule


def paced(monkeypatch: pytest.MonkeyPatch, workspace: Workspace, seconds: dict[int, float], losses: dict[int, float] | None = None) -> Any:
    """`measure` where steps take so long, by how many run together, and have such losses."""

    def together(workspace: Workspace, recipe: Recipe, count: int) -> tuple[float, list[float]]:
        if count not in seconds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seconds[count], [(losses or {}).get(count, 2.0)] * 5

    monkeypatch.setattr(pace_module, "_by_itself", lambda workspace, recipe: (seconds[1], [2.0] * 5))
    monkeypatch.setattr(pace_module, "_together", together)
    return measure(workspace, hyperparameters())


@pytest.mark.parametrize(
    ("seconds", "losses", "expected"),
    [
        ({1: 1.0, 2: 2.2}, None, 1),  # slower
        ({1: 1.0, 2: 2 * PAYS + 0.02, 4: 4.0}, None, 1),  # hardly faster
        ({1: 1.0, 2: 1.0, 4: 1.2, 8: 2.0}, None, 8),
        ({1: 1.0, 2: 1.0, 4: 1.2, 8: 3.0}, None, 4),
        ({1: 1.0, 2: 1.0, 4: 1.2}, None, 4),  # eight do not fit
        ({1: 1.0}, None, 1),  # nor do two
        ({1: 1.0, 2: 1.0, 4: 1.2, 8: 2.0}, {4: 2.0 * (1 + 1.1 * SAME)}, 2),  # something is computed wrongly
        ({1: 1.0, 2: 1.0, 4: 1.2, 8: 2.0}, {2: float("nan")}, 1),
    ],
)
def test_what_is_fastest_is_taken_where_it_is_right(
    vit: Workspace, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], losses: dict[int, float] | None, expected: int
) -> None:
    assert paced(monkeypatch, vit, seconds, losses).trials == expected


def test_real_steps_are_measured_and_leave_nothing_behind(vit: Workspace) -> None:
    before = comparable(alone(vit, hyperparameters()))
    found = measure(vit, hyperparameters(), candidates=(2,))
    assert found.seconds.keys() == {1, 2} and min(found.seconds.values()) > 0 and found.reason is None
    assert "a trial's step with so many at once: 1: " in str(found)
    assert comparable(alone(vit, hyperparameters())) == before


def test_what_runs_alone_is_not_measured(vit: Workspace) -> None:
    found = measure(vit, replace(hyperparameters(), constraint="ftp"))
    assert (found.trials, found.seconds) == (1, {}) and "cannot share a program" in str(found)


def test_typical_hyperparameters_have_the_terms_of_the_search() -> None:
    space = SearchSpaceConfig(base_lr=1e-5, terms=("cross_entropy", "hinge", "l2_init"), loss_weights={"hinge": (0.01, 1.0)}, fixed={"label_smoothing": 0.1})
    found = typical(space)
    assert found.loss_weights == pytest.approx({"cross_entropy": 1.0, "hinge": 0.1, "l2_init": 10**-1.5})
    assert (found.lr, found.weight_decay, found.label_smoothing) == (1e-5, 0.1, 0.1)


def test_the_executor_obeys_the_rule(executor: InProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.executor.measure", lambda workspace, hp: pace_module.Pace(4, {1: 1.0, 4: 0.5}))
    events: list[dict[str, Any]] = []
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "cache_dir": tmp_path / "cache", "should_stop": lambda: False}
    measured = InProcessExecutor(executor._config, trials_together=None, observe=events.append, **options)
    assert measured.slots == 4
    assert events == [{"event": "trials_together", "count": 4, "seconds": {1: 1.0, 4: 0.5}, "reason": None}]
    assert InProcessExecutor(executor._config, **options).slots == 1, "where nobody asks for more"


def test_a_stopwatch_counts_what_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("autoft.trial.time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    now[0] += 2
    watch.pause()
    now[0] += 50
    watch.add(0.5)
    assert watch.seconds == 2.5
    watch.go()
    now[0] += 1
    watch.go()
    now[0] += 1
    assert watch.seconds == 4.5

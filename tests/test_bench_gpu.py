"""The GPU bench, on a tiny model and the CPU: the same program as on a GPU."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benches.gpu import __main__ as bench
from benches.gpu import synthetic
from benches.gpu.flops import image_flops, text_flops, training_flops
from benches.gpu.phases import PHASES, Phases
from benches.gpu.small_study import drawn, small_study, whole_trial
from benches.gpu.synthetic import Sizes
from tests.runs import one_thread

SIZES = Sizes(batch=8, steps=3, train=16, val=20, classes=3)
CPU = torch.device("cpu")


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["benches.gpu", *flags])
    with one_thread():
        bench.main()


def test_operations_are_those_the_flop_counter_sees() -> None:
    space = synthetic.workspace("tiny", SIZES, CPU, "auto")
    space.model.train()  # in evaluation mode attention is one operation, which the counter does not know
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as images:
        space.model.image_features(torch.randn(5, 3, 32, 32))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as texts:
        space.model.text_features(space.texts.tokens[:4])
    assert (images.get_total_flops(), texts.get_total_flops()) == (5 * image_flops(synthetic.TINY), 4 * text_flops(synthetic.TINY))
    assert training_flops(synthetic.TINY, 5, 4) == 3 * (images.get_total_flops() + texts.get_total_flops())


def test_operations_of_the_true_models_are_the_published_ones() -> None:
    """open_clip's docs/model_profile.csv, in billions: 35.1 and 162.0 for an image, 6.0 and 13.3 for a text."""
    sizes = [(image_flops(config), text_flops(config)) for config in map(synthetic.model_config, ("vit_b_16", "vit_l_14"))]
    assert [(image / 1e9, text / 1e9) for image, text in sizes] == [pytest.approx((35.1, 6.0), rel=0.04), pytest.approx((162, 13.3), rel=0.04)]


def test_every_phase_is_seen_and_none_twice() -> None:
    space = synthetic.workspace("tiny", SIZES, CPU, "auto")
    phases = Phases(CPU)
    with one_thread(), phases.measured():
        whole_trial(space, synthetic.hyperparameters("all"))
    counts = {phase: len(spans) for phase, spans in phases._spans.items()}
    assert counts == {"restore": 1, "evaluation": 1} | dict.fromkeys(("batch", "forward", "loss", "backward", "optimizer"), SIZES.steps)
    spent = phases.seconds()
    assert spent.keys() == PHASES.keys() and all(seconds > 0 for seconds in spent.values())
    assert sum(spent[phase] for phase in ("batch", "forward", "loss", "backward", "optimizer")) <= phases.seconds_of_steps()
    assert len(phases.texts) == SIZES.steps and 1 <= max(phases.texts) <= 6


def test_a_run_writes_its_record_and_a_cpu_leaves_the_figures_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "configure_torch", lambda threads: None)
    run(monkeypatch, "--device", "cpu", "--size", "tiny", "--steps", "2", "--runs", "2", "--out", str(tmp_path))
    (path,) = tmp_path.rglob("*.json")
    record = json.loads(path.read_text())
    assert record == json.loads(capsys.readouterr().out)
    assert set(record["figures"]) >= {f"gpu_tiny_{terms}_{figure}" for terms in ("all", "cross_entropy") for figure in ("of_pure", "mfu")}
    found = record["details"]["gpu_tiny_all"]
    step, rate = statistics.median(found["step_seconds"]), 1e12 * record["figures"]["gpu_matrix_teraflops"]
    assert found["mfu"] == pytest.approx(found["training_flops_a_step"] / step / rate)
    assert len(found["trial_seconds"]) == len(found["pure_step_seconds"]) == 2 and not found["compiled"]


def test_figures_of_a_gpu_join_the_others(tmp_path: Path) -> None:
    (tmp_path / "latest.json").write_text('{"other": 1.0}')
    bench.write({"date": "2026-01-02", "figures": {"gpu_x": 0.123456}}, tmp_path, "trial", "cuda")
    assert json.loads((tmp_path / "latest.json").read_text()) == {"other": 1.0, "gpu_x": 0.1235}
    assert (tmp_path / "records" / "2026-01-02-gpu-trial-cuda.json").is_file()


def test_the_small_study_holds_and_says_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    space = synthetic.workspace("tiny", SIZES, CPU, "auto")
    with one_thread():
        found = small_study(space, 3)
        assert all(found["checks"].values()) and found["batch_split"] == 2
        monkeypatch.setattr(type(space.zero_shot), "restore", lambda self, model: None)
        assert not small_study(space, 2)["checks"]["every trial starts from the same weights"]


def test_trials_of_the_study_differ_in_their_terms() -> None:
    assert len({frozenset(drawn(number).loss_weights) for number in range(10)}) > 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch)
    assert end.value.code == bench.SKIPPED and "no CUDA device" in capsys.readouterr().out


@pytest.mark.slow
def test_it_needs_neither_ray_nor_a_database_nor_optuna() -> None:
    """A GPU machine may have little more than torch."""
    program = "import sys, benches.gpu.__main__; print([name for name in ('ray', 'sqlalchemy', 'optuna', 'psycopg2') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]"

"""What trials need: a study file that can be read, a GPU, and the foundation model's weights."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from autoft.cli.checks.finding import Asked, Finding, ok, problem, skipped, warning
from autoft.config import ModelConfig, load_config

CLUSTER = 4  # exit code
SMALL_GPU_BYTES = 6 * 2**30  # a ViT-B/16 with AdamW at batch 64
_DRIVER = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def study(asked: Asked) -> Iterator[Finding]:
    """Whether the study file can be read. Raises ConfigError, which says what is wrong."""
    if asked.study is None:
        yield skipped("study", "none given; with --study FILE its model is looked for as well")
        return
    config = load_config(asked.study, [])
    yield ok("study", f"{config.study}: {asked.study} can be read; its data are checked by: autoft plan {asked.study}")


def gpu(asked: Asked) -> Iterator[Finding]:
    """Driver, CUDA, compute capability and memory of every GPU."""
    import torch

    driver = _driver()
    if not torch.cuda.is_available():
        if driver is None:
            yield warning("gpu", "none on this machine: trials here run on the CPU, many times slower", "nothing to do if RAY_ADDRESS leads to GPUs")
        else:
            built = torch.version.cuda or "none: this is a CPU build of torch"
            yield problem("gpu", f"driver {driver}, but torch {torch.__version__} cannot use it (built for CUDA {built})", _REINSTALL, CLUSTER)
        return
    built_for = {arch.removeprefix("sm_").rstrip("af") for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")}
    for index in range(torch.cuda.device_count()):
        yield _one_gpu(index, driver, built_for)


_REINSTALL = "install a torch whose CUDA the driver supports, or a newer driver; in a container, give it the GPUs (--gpus all)"


def _one_gpu(index: int, driver: str | None, built_for: set[str]) -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(index)
    major, minor = properties.major, properties.minor
    name = f"gpu {index}"
    detail = (
        f"{properties.name}, compute capability {major}.{minor}, {properties.total_memory / 2**30:.0f} GiB, "
        f"driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
    )
    if built_for and not any(arch.isdecimal() and int(arch) // 10 == major and int(arch) % 10 <= minor for arch in built_for):
        return problem(name, f"{detail}: this torch has no code for it", "install a torch built for this GPU", CLUSTER)
    free, _ = torch.cuda.mem_get_info(index)
    if free < SMALL_GPU_BYTES:
        return warning(name, f"{detail}, {free / 2**30:.1f} GiB free", "free it (nvidia-smi shows who uses it), or lower trial.batch_size")
    return ok(name, f"{detail}, {free / 2**30:.0f} GiB free")


def _driver() -> str | None:
    """The NVIDIA driver's version; None where there is no driver, or no GPU."""
    program = shutil.which(_DRIVER[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *_DRIVER[1:]], capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def model(asked: Asked) -> Iterator[Finding]:
    """The cache of downloaded weights; and with a study, whether its weights are on this machine."""
    from huggingface_hub import constants

    cache, offline = Path(constants.HF_HUB_CACHE), bool(constants.HF_HUB_OFFLINE)
    count = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    mode = "offline: nothing is downloaded (HF_HUB_OFFLINE)" if offline else "what is missing is downloaded"
    yield ok("model cache", f"{count} models in {cache}; {mode}")
    if asked.study is not None:
        config = load_config(asked.study, [])
        yield _weights(config.model, offline)


def _weights(config: ModelConfig, offline: bool) -> Finding:
    kind, colon, rest = config.name.partition(":")
    if colon and kind == "local-dir":
        there = (Path(rest) / "open_clip_config.json").is_file()
        return ok("model", f"{config.name} is there") if there else problem("model", f"{rest} has no open_clip_config.json", "set model.name")
    if config.pretrained is not None and Path(config.pretrained).is_file():
        return ok("model", f"{config.pretrained} is there")
    where = f"{config.name}" + (f", {config.pretrained}" if config.pretrained else "")
    if _is_cached(config):
        return ok("model", f"{where} is in the cache")
    if offline:
        return problem("model", f"{where} is not in the cache, and HF_HUB_OFFLINE is set", "fetch it once without it: autoft plan STUDY")
    return warning("model", f"{where} is not in the cache", "it is downloaded when the study starts; autoft plan STUDY fetches it now")


def _is_cached(config: ModelConfig) -> bool:
    """Whether a download would find the weights in the cache."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    if config.name.startswith("hf-hub:"):
        repo = config.name.removeprefix("hf-hub:")
    else:
        tag = open_clip.get_pretrained_cfg(config.name, config.pretrained or "")
        repo = str((tag or {}).get("hf_hub") or "").rstrip("/")
    return bool(repo) and any(isinstance(try_to_load_from_cache(repo, name), str) for name in _WEIGHTS)

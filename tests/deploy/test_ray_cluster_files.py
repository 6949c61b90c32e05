"""Files for Ray's cluster launcher: against Ray's own schema, and what they promise."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from tests.deploy.compose import DEPLOY

FILES = sorted(DEPLOY.glob("ray-cluster*.yaml"))


def load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


def starts(config: dict[str, Any]) -> list[str]:
    return [line for key in ("head_start_ray_commands", "worker_start_ray_commands") for line in config[key] if "ray start" in line]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_ray_takes_it(file: Path) -> None:
    validate_config(prepare_config(load(file)))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_node_asks_for_the_token(file: Path) -> None:
    config = load(file)
    assert len(starts(config)) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts(config))
    assert any(target.endswith("/.ray/auth_token") for target in config["file_mounts"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_flags_of_ray_start_exist(file: Path) -> None:
    known = {name for parameter in start.params for name in parameter.opts}
    for line in starts(load(file)):
        given = {word.partition("=")[0] for word in line.partition("ray start")[2].split() if word.startswith("--")}
        assert given <= known
    assert CliRunner().invoke(start, ["--help"]).exit_code == 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_secret_of_the_database_goes_to_every_node(file: Path) -> None:
    config = load(file)
    assert not any("secret" in part for mount in config["file_mounts"].items() for part in mount)
    assert "/secrets" in config["rsync_exclude"] and "/.env" in config["rsync_exclude"]
    assert "data" not in config["rsync_exclude"]  # would leave the package autoft/data behind


def test_cloud_workers_are_spot_and_the_head_is_not() -> None:
    types = load(DEPLOY / "ray-cluster.yaml")["available_node_types"]
    assert types["gpu-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]

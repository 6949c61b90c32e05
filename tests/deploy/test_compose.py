"""docker-compose.yml: the format, and what it promises about secrets, networks and rights."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoft import __version__
from autoft.cli.parser import build_parser
from tests.deploy.compose import OURS, ROOT, fill, load_compose, make_secrets
from workers.cluster import OBJECT_STORE_BYTES
from workers.node import STOP_SECONDS

COMPOSE = load_compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")


def networks(name: str) -> set[str]:
    return set(SERVICES[name].get("networks", []))


def secrets(name: str) -> set[str]:
    return set(SERVICES[name].get("secrets", []))


def test_it_follows_the_compose_specification() -> None:
    program = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_proxy_is_published() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert not [name for name, service in SERVICES.items() if service.get("network_mode") == "host" or service.get("privileged")]


def test_networks_are_apart() -> None:
    assert not networks("proxy") & networks("postgres")
    for worker in ("gpu-worker", "cpu-worker", "head"):
        assert networks(worker) == {"cluster"}
    assert networks("postgres") == {"database"}
    inner = {name for name, network in COMPOSE["networks"].items() if (network or {}).get("internal")}
    assert inner == {"web", "database", "cluster"}
    reaching_out = {name for name in SERVICES if SERVICES[name].get("network_mode") != "none" and networks(name) - inner}
    assert reaching_out == {"proxy", "prepare"}


def test_workers_hold_no_secret_of_the_database() -> None:
    database = {"postgres_password", "autoft_password", "storage_url"}
    for name in ("gpu-worker", "cpu-worker", "head", "proxy", "proxy-volume", "prepare"):
        assert not secrets(name) & database, name
        assert "AUTOFT_STORAGE_URL_FILE" not in SERVICES[name].get("environment", {})
    assert "postgres_password" not in secrets("coordinator") | secrets("dashboard")  # the superuser's


def test_secrets_are_files_and_have_no_default(tmp_path: Path) -> None:
    made = {file.name for file in make_secrets(tmp_path / "secrets").iterdir()}
    assert set(COMPOSE["secrets"]) == made
    assert all(entry == {"file": f"./secrets/{name}"} for name, entry in COMPOSE["secrets"].items())
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET|URL", variable):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable}"
                assert Path(value).name in secrets(name), f"{name}: {variable}"
    assert secrets("postgres") == {"postgres_password", "autoft_password"}


def test_every_service_of_ours_names_the_secrets_it_cannot_do_without() -> None:
    for name in OURS:
        given = {key for key, value in SERVICES[name].get("environment", {}).items() if str(value).startswith("/run/secrets/")}
        assert given == set(SERVICES[name].get("environment", {}).get("AUTOFT_REQUIRES", "").split()), name


def test_variables_stop_the_start_or_have_a_harmless_default() -> None:
    harmless = {"AUTOFT_IMAGE", "AUTOFT_WEB_NETWORK"}
    example = (ROOT / "deploy" / "env.example").read_text(encoding="utf-8")
    for name, rest in re.findall(r"\$\{(\w+)([^}]*)\}", TEXT):
        assert (rest.startswith(":?") and len(rest) > 10) or (name in harmless and rest.startswith(":-")), name
        assert name in harmless or re.search(rf"^{name}=", example, flags=re.MULTILINE), f"{name} is not in deploy/env.example"


@pytest.mark.parametrize("name", SERVICES)
def test_rights_are_taken_away(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["read_only"] is True
    if name == "proxy-volume":  # hands a volume to the proxy's user, once, with no network
        assert service["network_mode"] == "none" and service["cap_add"] == ["CHOWN"]
    else:
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    tag = SERVICES[name]["image"].rstrip("}").rpartition(":")[2]
    assert re.match(r"\d+\.\d+", tag), tag


def test_our_image_has_this_version() -> None:
    assert {SERVICES[name]["image"] for name in OURS} == {f"${{AUTOFT_IMAGE:-autoft:{__version__}}}"}


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"proxy-volume", "prepare"}))
def test_services_come_back_and_end_cleanly(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert "stop_grace_period" in service
    assert service.get("init") or name == "postgres"  # Postgres' own first process collects its children
    assert "healthcheck" in service or name in ("coordinator", "proxy")


def test_what_must_last_is_in_volumes() -> None:
    used = {str(volume).partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {"postgres", "runs", "cache", "models", "proxy"} == set(COMPOSE["volumes"]) <= used
    for name in ("gpu-worker", "cpu-worker", "coordinator"):
        assert {"models:/models:ro", "runs:/runs"} <= set(SERVICES[name]["volumes"]), name  # the final stages run on a worker and write
        assert any(volume.endswith(":/data:ro") for volume in SERVICES[name]["volumes"]), name


def test_ray_has_shared_memory_for_its_store() -> None:
    given = {name: SERVICES[name]["shm_size"] for name in ("head", "coordinator", "gpu-worker", "cpu-worker")}
    assert given == {"head": "512mb", "coordinator": "512mb", "gpu-worker": "1gb", "cpu-worker": "1gb"}
    store = next(int(part.partition("=")[2]) for part in SERVICES["head"]["command"] if part.startswith("--object-store-memory="))
    assert max(store, OBJECT_STORE_BYTES) <= 256 * 2**20  # what `autoft worker` takes, and half of the smallest


def test_a_worker_is_given_time_to_drain() -> None:
    for name in ("gpu-worker", "cpu-worker"):
        command = SERVICES[name]["command"]
        drain = int(command[command.index("--drain") + 1])
        assert int(SERVICES[name]["stop_grace_period"].rstrip("s")) >= drain + STOP_SECONDS


@pytest.mark.parametrize("name", [name for name in OURS if SERVICES[name]["command"][0] == "autoft"])
def test_commands_parse(name: str) -> None:
    build_parser().parse_args([fill(str(part), {"AUTOFT_DOMAIN": "localhost"}) for part in SERVICES[name]["command"][1:]])

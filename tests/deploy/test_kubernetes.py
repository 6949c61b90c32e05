"""deploy/kuberay: against Kubernetes' own schema, the RayCluster against the part of its schema that is used, and what they promise."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from autoft import __version__
from autoft.cli.parser import build_parser
from tests.deploy.compose import DEPLOY, ROOT, load_compose

FOLDER = DEPLOY / "kuberay"
KUSTOMIZE = ("kustomization.yaml", "images-of-ray.yaml")
Resource = dict[str, Any]


def resources() -> list[Resource]:
    files = sorted(file for file in FOLDER.glob("*.yaml") if file.name not in KUSTOMIZE)
    return [resource for file in files for resource in yaml.safe_load_all(file.read_text(encoding="utf-8"))]


def named(kind: str, name: str) -> Resource:
    return next(one for one in resources() if (one["kind"], one["metadata"]["name"]) == (kind, name))


def pod_templates() -> Iterator[tuple[str, Resource]]:
    for one in resources():
        name, spec = f"{one['kind']}/{one['metadata']['name']}", one.get("spec", {})
        if "template" in spec:
            yield name, spec["template"]
        if one["kind"] == "RayCluster":
            yield f"{name}/head", spec["headGroupSpec"]["template"]
            yield from ((f"{name}/{group['groupName']}", group["template"]) for group in spec["workerGroupSpecs"])


TEMPLATES = dict(pod_templates())


@pytest.mark.parametrize("resource", resources(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_resources_follow_the_schema(resource: Resource) -> None:
    if resource["kind"] == "RayCluster":
        jsonschema.validate(resource, json.loads((Path(__file__).parent / "raycluster.schema.json").read_text(encoding="utf-8")))
    else:
        kubernetes_validate.validate(resource, "1.31", strict=True)
    assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "autoft"


@pytest.mark.parametrize("name", TEMPLATES)
def test_pods_follow_the_schema(name: str) -> None:
    template = {"metadata": {}, **TEMPLATES[name]}
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}, "1.31", strict=True)


def test_every_file_is_applied() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    assert set(listed["resources"]) | set(KUSTOMIZE) == {file.name for file in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("name", TEMPLATES)
def test_pods_run_without_rights(name: str) -> None:
    pod = TEMPLATES[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is (name == "RayCluster/autoft/head")
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False and rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert container["image"] == f"autoft:{__version__}"
        assert "memory" in container["resources"]["limits"]
        assert "readinessProbe" in container or name == "Job/coordinator"
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_cluster_asks_for_a_token_and_the_coordinator_mounts_it() -> None:
    cluster = named("RayCluster", "autoft")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    pod = TEMPLATES["Job/coordinator"]["spec"]
    environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    folder = Path(environment["RAY_AUTH_TOKEN_PATH"]).parent
    volume = next(mount["name"] for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == str(folder))
    secret = next(entry["secret"]["secretName"] for entry in pod["volumes"] if entry["name"] == volume)
    assert secret == cluster["metadata"]["name"]  # what KubeRay calls the Secret it makes
    assert environment["RAY_ADDRESS"] == environment["AUTOFT_JOIN_RAY"] == f"{secret}-head-svc:6379"


def test_ray_is_the_version_that_is_installed_in_the_image() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert pinned is not None and named("RayCluster", "autoft")["spec"]["rayVersion"] == pinned[1]


def test_workers_hold_no_secret_and_may_be_lost() -> None:
    for name, template in TEMPLATES.items():
        text = json.dumps(template)
        if name.startswith("RayCluster"):
            assert "autoft-storage" not in text and "AUTOFT_STORAGE" not in text
    worker = TEMPLATES["RayCluster/autoft/gpu-spot"]["spec"]
    assert any("spot" in toleration["key"] for toleration in worker["tolerations"])
    group = named("RayCluster", "autoft")["spec"]["workerGroupSpecs"][0]
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]  # a launch counts what is there


def test_coordinator_and_workers_see_the_same_folders() -> None:
    shared = [{"/runs", "/data", "/models"} & {mount["mountPath"] for mount in TEMPLATES[name]["spec"]["containers"][0]["volumeMounts"]} for name in _AT_WORK]
    assert shared == [{"/runs", "/data", "/models"}] * 2
    assert all(one["spec"]["accessModes"] == ["ReadWriteMany"] for one in resources() if one["kind"] == "PersistentVolumeClaim")


_AT_WORK = ("Job/coordinator", "RayCluster/autoft/gpu-spot")


def test_network_is_closed_but_for_what_is_named() -> None:
    everything = named("NetworkPolicy", "nothing-by-default")["spec"]
    assert everything["podSelector"] == {} and set(everything["policyTypes"]) == {"Ingress", "Egress"}
    reaches = named("NetworkPolicy", "database")["spec"]["podSelector"]["matchExpressions"][0]["values"]
    assert sorted(reaches) == ["coordinator", "dashboard"]
    components = {template["metadata"]["labels"]["app.kubernetes.io/component"] for template in TEMPLATES.values()}
    for policy in (one for one in resources() if one["kind"] == "NetworkPolicy"):
        for expression in policy["spec"]["podSelector"].get("matchExpressions", []):
            assert set(expression["values"]) <= components, policy["metadata"]["name"]


def test_budgets_name_pods_that_exist() -> None:
    assert named("PodDisruptionBudget", "coordinator")["spec"]["selector"]["matchLabels"].items() <= TEMPLATES["Job/coordinator"]["metadata"]["labels"].items()
    assert named("PodDisruptionBudget", "ray-head")["spec"]["selector"]["matchLabels"]["ray.io/cluster"] == "autoft"


def test_commands_parse_and_final_exit_codes_are_those_of_the_entrypoint() -> None:
    for name in ("Job/coordinator", "Deployment/dashboard"):
        build_parser().parse_args(TEMPLATES[name]["spec"]["containers"][0]["args"][1:])
    final = named("Job", "coordinator")["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    held = re.search(r"^ +0 \| ([\d |]+)\) ;;$", (DEPLOY / "entrypoint.sh").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert held is not None and {*map(int, held[1].split(" | ")), 78} == set(final)


def test_the_same_grace_everywhere() -> None:
    seconds = TEMPLATES["Job/coordinator"]["spec"]["terminationGracePeriodSeconds"]
    assert load_compose()["services"]["coordinator"]["stop_grace_period"] == f"{seconds}s"

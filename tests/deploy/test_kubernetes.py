"""The manifests: rendered by kubectl, checked against Kubernetes' schemas, and what they promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.engines import TensorRtLlmEngine
from deployments.spec import load_spec
from planner.bench.peers.processes import run
from tests.deploy.test_compose import variables
from tests.deploy.tools import DEPLOY, environment

pytestmark = pytest.mark.outside

MANIFESTS = DEPLOY / "kubernetes"
OVERLAYS = ("single-gpu", "autoscaled", "multi-node", "build", "monitoring")
SERVING = ("single-gpu", "autoscaled", "multi-node")
_HERE = Path(__file__).parent


def render(overlay: str) -> str:
    tools = environment("kubernetes")
    return run([tools.directory / "bin" / "kubectl", "kustomize", MANIFESTS / overlay], seconds=60)


def objects(overlay: str) -> dict[str, dict[str, Any]]:
    """By `Kind/name`."""
    found = yaml.safe_load_all(render(overlay))
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


def check(text: str, folder: Path) -> str:
    tools = environment("kubernetes")
    (folder / "rendered.yaml").write_text(text, encoding="utf-8")
    script = f"'{tools.python}' '{_HERE / 'kubernetes_check.py'}' '{_HERE / 'schemas'}' < rendered.yaml"
    return run(["sh", "-c", script], seconds=120, directory=folder, variables=tools.variables())


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """The pod templates by the component that they are."""
    templates = []
    for item in objects(overlay).values():
        if item["kind"] in ("Deployment", "Job"):
            templates.append(item["spec"]["template"])
        elif item["kind"] == "LeaderWorkerSet":
            group = item["spec"]["leaderWorkerTemplate"]
            templates += [group["leaderTemplate"], group["workerTemplate"]]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_are_valid(overlay: str, tmp_path: Path) -> None:
    assert check(render(overlay), tmp_path) == ""


@pytest.mark.parametrize(
    ("overlay", "right", "wrong"),
    [
        ("single-gpu", "readinessProbe:", "readynessProbe:"),
        ("autoscaled", "threshold: ", "treshold: "),
        ("autoscaled", "podMetricsEndpoints:", "podMetricEndpoints:"),
        ("autoscaled", "- alert: TargetDown", "- alerts: TargetDown"),
        ("multi-node", "restartPolicy: RecreateGroupOnPodRestart", "restartPolicy: Always"),
        ("multi-node", "initContainers:", "initContainer:"),
    ],
)
def test_a_mistake_is_noticed(overlay: str, right: str, wrong: str, tmp_path: Path) -> None:
    text = render(overlay)
    assert right in text
    assert check(text.replace(right, wrong), tmp_path) != ""


@pytest.mark.parametrize("overlay", [*SERVING, "build"])
def test_pods_run_without_root_and_use_gpus(overlay: str) -> None:
    for component, pod in pods(overlay).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert (
                "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
            )
            assert ":" in container["image"]
        assert "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"], component
        names = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} <= names


@pytest.mark.parametrize("overlay", SERVING)
def test_the_service_leads_to_pods_that_are_ready(overlay: str) -> None:
    service = objects(overlay)["Service/drafthouse"]["spec"]
    serving = pods(overlay)["triton"]
    assert service["selector"].items() <= serving["metadata"]["labels"].items()
    triton = serving["spec"]["containers"][0]
    ports = {port["name"] for port in triton["ports"]}
    assert {port["targetPort"] for port in service["ports"]} <= ports
    assert triton["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert triton["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    startup = triton["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800
    assert triton["command"][:2] == ["drafthouse", "serve"]


def test_scaling_reads_a_recorded_figure() -> None:
    found = objects("autoscaled")
    (trigger,) = found["ScaledObject/drafthouse"]["spec"]["triggers"]
    rules = found["PrometheusRule/drafthouse"]["spec"]["groups"]
    recorded = {rule["record"] for group in rules for rule in group["rules"] if "record" in rule}
    assert trigger["metadata"]["query"].removeprefix("max(").partition("{")[0] in recorded
    assert found["ScaledObject/drafthouse"]["spec"]["scaleTargetRef"]["name"] == "drafthouse"
    assert "replicas" not in found["Deployment/drafthouse"]["spec"]
    budget = found["PodDisruptionBudget/drafthouse"]["spec"]["selector"]["matchLabels"]
    assert budget.items() <= pods("autoscaled")["triton"]["metadata"]["labels"].items()


def test_prometheus_finds_both_pages_of_a_pod() -> None:
    monitor = objects("autoscaled")["PodMonitor/drafthouse"]["spec"]
    for overlay in SERVING:
        pod = pods(overlay)["triton"]
        assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports


def test_rules_are_those_of_prometheus() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    assert objects("monitoring")["PrometheusRule/drafthouse"]["spec"] == rules


def test_replicas_share_engines_and_keep_their_own_files() -> None:
    spec = pods("autoscaled")["triton"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    shared = [
        mount
        for mount in spec["containers"][0]["volumeMounts"]
        if "persistentVolumeClaim" in volumes[mount["name"]]
    ]
    assert shared and all(mount["readOnly"] for mount in shared)


def test_the_multi_node_spec_fits_the_group() -> None:
    found = objects("multi-node")
    name = "drafthouse-nodes"
    group = found[f"LeaderWorkerSet/{name}"]["spec"]["leaderWorkerTemplate"]
    engine = load_spec(MANIFESTS / "multi-node" / "spec.yaml").engine
    assert isinstance(engine, TensorRtLlmEngine)
    workers = [f"{name}-0-{index}.{name}" for index in range(1, group["size"])]
    assert list(engine.launch.hosts) == [f"{name}-0.{name}", *workers]
    gpus = group["size"] * int(
        group["workerTemplate"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert engine.tensor_parallel * engine.pipeline_parallel == gpus
    assert f"Service/{name}" not in found, "LeaderWorkerSet makes a service of that name itself"
    settings = next(
        item["data"] for key, item in found.items() if key.startswith("ConfigMap/drafthouse-settings")
    )
    assert settings["DRAFTHOUSE_SPEC"] == "/etc/drafthouse/spec.yaml"
    assert settings["HF_HOME"] == "/workspace/models/hub"
    assert settings["OMPI_MCA_orte_keep_fqdn_hostnames"] == "1"


def test_images_are_those_of_docker_compose() -> None:
    used = {
        container["image"]
        for overlay in (*SERVING, "build")
        for pod in pods(overlay).values()
        for container in pod["spec"]["containers"]
    }
    assert variables("line-a")["DRAFTHOUSE_IMAGE"] in used
    assert {image.partition(":")[0] for image in used} == {"drafthouse/trtllm", "drafthouse/exporter"}

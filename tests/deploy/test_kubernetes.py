"""The manifests: rendered by kubectl, checked against Kubernetes' schemas, and what they promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.engines import TensorRtLlmEngine, VllmEngine
from deployments.spec import load_spec
from planner.bench.peers.processes import run
from tests.deploy.test_compose import variables
from tests.deploy.test_compose import written as compose_file
from tests.deploy.tools import DEPLOY, environment

pytestmark = pytest.mark.outside

MANIFESTS = DEPLOY / "kubernetes"
SERVING = ("single-gpu", "autoscaled", "multi-node", "vllm-single-gpu", "vllm-autoscaled")
OVERLAYS = (*SERVING, "build", "monitoring")
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
        ("single-gpu", "podSelector:", "podselector:"),
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
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False and confined["capabilities"] == {
                "drop": ["ALL"]
            }
            assert confined.get("readOnlyRootFilesystem") or component == "build"
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
    triton, *beside = serving["spec"]["containers"]
    (front,) = [container for container in beside if container["name"] == "front"]
    assert {port["targetPort"] for port in service["ports"]} <= {port["name"] for port in front["ports"]}
    assert "ports" not in triton and "--host" not in triton["command"], "it listens in the pod alone"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = triton[probe]["exec"]["command"]
        assert command[:3] == ["python3", "-m", "deploy.health"]
        assert float(command[-1]) < triton[probe]["timeoutSeconds"]
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
        ports = {
            port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", [])
        }
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


@pytest.mark.parametrize(
    ("overlay", "beside"), [("vllm-single-gpu", "single-gpu"), ("vllm-autoscaled", "autoscaled")]
)
def test_vllm_is_served_as_the_rest_without_engines(overlay: str, beside: str) -> None:
    found, other = objects(overlay), objects(beside)
    claims = [key for key in found if key.startswith("PersistentVolumeClaim/")]
    assert claims == ["PersistentVolumeClaim/drafthouse-models"]
    assert {key.partition("/")[0] for key in found} == {key.partition("/")[0] for key in other}
    spec = pods(overlay)["triton"]["spec"]
    triton, *beside_it = spec["containers"]
    assert triton["image"] == variables("vllm")["DRAFTHOUSE_IMAGE"]
    assert beside_it[0]["image"] == pods(beside)["triton"]["spec"]["containers"][1]["image"]
    settings = next(
        item["data"] for key, item in found.items() if key.startswith("ConfigMap/drafthouse-settings")
    )
    deployment = load_spec(DEPLOY.parent / settings["DRAFTHOUSE_SPEC"])
    assert isinstance(deployment.engine, VllmEngine)
    assert settings["DRAFTHOUSE_SPEC"] == variables("vllm")["DRAFTHOUSE_SPEC"]
    assert settings["EXPORTER_DRAFT_LENGTH"] == variables("vllm")["DRAFTHOUSE_DRAFT_LENGTH"]
    writable = {mount["mountPath"] for mount in triton["volumeMounts"] if not mount.get("readOnly")}
    assert "/workspace/runs" in writable, "for its repository and for what it compiles"


def test_images_are_those_of_docker_compose() -> None:
    used = {
        container["image"]
        for overlay in (*SERVING, "build")
        for pod in pods(overlay).values()
        for container in pod["spec"]["containers"]
    }
    assert {variables(line)["DRAFTHOUSE_IMAGE"] for line in ("line-a", "vllm")} <= used
    assert {image.partition(":")[0] for image in used} == {
        "drafthouse/trtllm",
        "drafthouse/vllm",
        "drafthouse/exporter",
        "haproxy",
    }
    front = compose_file()["services"]["front"]["image"]
    assert {image for image in used if image.startswith("haproxy")} == {front}


@pytest.mark.parametrize("overlay", SERVING)
def test_the_front_is_that_of_compose(overlay: str) -> None:
    found = objects(overlay)
    (name,) = [key for key in found if key.startswith("ConfigMap/drafthouse-front")]
    assert found[name]["data"]["haproxy.cfg"] == (DEPLOY / "front" / "haproxy.cfg").read_text(
        encoding="utf-8"
    )
    spec = pods(overlay)["triton"]["spec"]
    volume = next(each for each in spec["volumes"] if each["name"] == "front")
    assert f"ConfigMap/{volume['configMap']['name']}" == name
    settings = next(
        item["data"] for key, item in found.items() if key.startswith("ConfigMap/drafthouse-settings")
    )
    front = next(each for each in spec["containers"] if each["name"] == "front")
    ports = {port["name"]: str(port["containerPort"]) for port in front["ports"]}
    assert {kind: settings[f"FRONT_{kind.upper()}_PORT"] for kind in ("http", "grpc", "metrics")} == ports


@pytest.mark.parametrize("overlay", SERVING)
def test_who_may_speak_to_the_pods(overlay: str) -> None:
    policy = objects(overlay)["NetworkPolicy/drafthouse"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    for pod in pods(overlay).values():
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    everybody = [rule for rule in policy["ingress"] if "from" not in rule]
    assert [[port["port"] for port in rule["ports"]] for rule in everybody] == [["http", "grpc"]]
    assert all(rule.get("from") for rule in policy["ingress"] if rule not in everybody)


def test_there_is_no_ssh_and_the_leader_may_start_processes_in_its_workers_alone() -> None:
    text = render("multi-node")
    assert "sshd" not in text and "containerPort: 2222" not in text
    found = objects("multi-node")
    group = found["LeaderWorkerSet/drafthouse-nodes"]["spec"]["leaderWorkerTemplate"]
    workers = [f"drafthouse-nodes-0-{index}" for index in range(1, group["size"])]
    for rule in found["Role/drafthouse-nodes"]["rules"]:
        assert rule["resourceNames"] == workers and rule["resources"] in (["pods"], ["pods/exec"])
    leader, worker = group["leaderTemplate"]["spec"], group["workerTemplate"]["spec"]
    assert leader["serviceAccountName"] == "drafthouse-nodes" and worker["serviceAccountName"] == "default"
    holding = [
        container["name"]
        for container in (*leader["initContainers"], *leader["containers"], *worker["containers"])
        if any(mount["name"] == "token" for mount in container.get("volumeMounts", []))
    ]
    assert holding == ["workers", "triton"]
    settings = next(
        item["data"] for key, item in found.items() if key.startswith("ConfigMap/drafthouse-settings")
    )
    script = MANIFESTS / "multi-node" / Path(settings["OMPI_MCA_plm_rsh_agent"]).name
    assert "--container worker" in script.read_text(encoding="utf-8")
    assert worker["containers"][0]["name"] == "worker"


def test_the_remote_shell_hands_over_the_command_as_ssh_does(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\n[ "$1 $2 $3 $4 $5" = "exec node-0-1 --container worker --" ] && shift 5 && exec "$@"\n'
    )
    kubectl.chmod(0o755)
    command = [
        MANIFESTS / "multi-node" / "remote_shell",
        "node-0-1.nodes.default",
        "A=x;",
        "export",
        "A;",
        "echo",
        '"$A y"',
    ]
    assert run(command, seconds=10, variables={"PATH": f"{tmp_path}:/usr/bin:/bin"}) == "x y\n"

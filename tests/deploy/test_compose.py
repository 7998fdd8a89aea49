"""The Compose file: what it promises, read as it stands, and read by Docker Compose itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main
import yaml

from build.plan.runners import BUILD_SERVICE, IMAGE_VARIABLE
from build.trtllm.releases import LINE_A, LINE_B
from cli.main import app
from deployments.engines import TensorRtLlmEngine, VllmEngine
from deployments.spec import load_spec
from engine.vllm.releases import IMAGE
from planner.bench.peers.processes import ProgramError, run
from tests.deploy.tools import DEPLOY, ROOT, environment

LINES = ("embedded", "line-a", "line-b", "vllm")
SERVICES = {"build", "triton", "front", "exporter", "prometheus", "grafana", "loadtest"}
STAY_UP = SERVICES - {"build", "loadtest"}


def written() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return content


def variables(line: str) -> dict[str, str]:
    lines = (DEPLOY / "compose" / f"{line}.env").read_text(encoding="utf-8").splitlines()
    return dict(text.split("=", 1) for text in lines if text and not text.startswith("#"))


def resolved(line: str | None, **given: str) -> dict[str, Any]:
    """The file as Docker Compose understands it, every profile included."""
    tool = environment("compose")
    options = ["--env-file", str(DEPLOY / "compose" / f"{line}.env")] if line else []
    command = [
        tool.directory / "bin" / "docker-compose",
        *options,
        "--profile",
        "*",
        "config",
        "--format",
        "json",
    ]
    found: dict[str, Any] = yaml.safe_load(run(command, seconds=60, directory=ROOT, variables=given))
    return found


def test_services_and_profiles() -> None:
    services = written()["services"]
    assert services.keys() == SERVICES
    assert {name: service.get("profiles") for name, service in services.items() if "profiles" in service} == {
        "build": ["build"],
        "loadtest": ["loadtest"],
    }


@pytest.mark.parametrize("name", sorted(STAY_UP))
def test_what_stays_up_is_watched_and_restarted(name: str) -> None:
    service = written()["services"][name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert "no-new-privileges:true" in service["security_opt"]
    assert not str(service["user"]).startswith(("0", "root"))


def test_nothing_is_open_to_the_network_unless_asked_for() -> None:
    ports = [port for service in written()["services"].values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("${DRAFTHOUSE_BIND:-127.0.0.1}:") for port in ports)


def test_the_way_to_triton_leads_through_the_front() -> None:
    services = written()["services"]
    assert "ports" not in services["triton"]
    front = services["front"]
    asked = set(re.findall(r"\$\{(\w+)\}", (DEPLOY / "front" / "haproxy.cfg").read_text(encoding="utf-8")))
    assert asked == front["environment"].keys()
    assert front["environment"]["FRONT_TRITON"] == "triton"
    assert "./deploy/front:/etc/front:ro" in front["volumes"] and "/etc/front/haproxy.cfg" in front["command"]


def test_health_is_a_token() -> None:
    check = written()["services"]["triton"]["healthcheck"]
    assert check["test"][:4] == ["CMD", "python3", "-m", "deploy.health"]
    assert float(check["test"][-1]) < float(check["timeout"].removesuffix("s"))


def test_what_serves_cannot_change_its_image() -> None:
    for name in ("triton", "front", "exporter", "prometheus", "grafana"):
        service = written()["services"][name]
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
    assert written()["services"]["triton"]["tmpfs"] == ["/tmp:exec,mode=1777"]


def test_nobody_can_log_in_to_grafana() -> None:
    settings = written()["services"]["grafana"]["environment"]
    assert settings["GF_AUTH_BASIC_ENABLED"] == "false", "its API would take admin:admin"
    assert settings["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_images_are_pinned_and_no_secret_is_written() -> None:
    for service in written()["services"].values():
        own = service["image"].split("/")[0] in ("drafthouse", "${DRAFTHOUSE_IMAGE:-drafthouse")
        assert (
            own or "DRAFTHOUSE_IMAGE" in service["image"] or re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        )
        for name, value in (service.get("environment") or {}).items():
            assert not value or not re.search("TOKEN|SECRET|PASSWORD|KEY", name)
    for line in LINES:
        assert not any(re.search("TOKEN|SECRET|PASSWORD|KEY", name) for name in variables(line))


def test_lines_use_the_kits_images() -> None:
    a, b = variables("line-a"), variables("line-b")
    assert a["DRAFTHOUSE_BASE_IMAGE"] == LINE_A.triton_image
    assert b["DRAFTHOUSE_BASE_IMAGE"] == LINE_B.build_image
    assert b["DRAFTHOUSE_IMAGE"] == LINE_B.triton_image
    containerfile = (DEPLOY / "container" / "Dockerfile.trtllm").read_text(encoding="utf-8")
    for name, line in (("A", a), ("B", b)):
        spec = load_spec(ROOT / line["DRAFTHOUSE_SPEC"])
        assert isinstance(spec.engine, TensorRtLlmEngine) and spec.engine.line == name
        assert getattr(spec.speculation, "draft_length", 0) == int(line["DRAFTHOUSE_DRAFT_LENGTH"])
        files = line["COMPOSE_FILE"].split(":")
        assert "deploy/compose/gpu.yml" in files and all((ROOT / name).is_file() for name in files)
        assert f" AS {line['DRAFTHOUSE_TARGET']}\n" in containerfile
    assert (ROOT / variables("embedded")["DRAFTHOUSE_SPEC"]).is_file()


def test_vllm_is_that_of_nvidias_image() -> None:
    line = variables("vllm")
    assert line["DRAFTHOUSE_BASE_IMAGE"] == IMAGE
    containerfile = (DEPLOY / "container" / "Dockerfile.vllm").read_text(encoding="utf-8")
    assert line["DRAFTHOUSE_DOCKERFILE"] == "deploy/container/Dockerfile.vllm"
    assert f"\nARG BASE_IMAGE={IMAGE}\n" in containerfile
    assert f" AS {line['DRAFTHOUSE_TARGET']}\n" in containerfile
    spec = load_spec(ROOT / line["DRAFTHOUSE_SPEC"])
    assert isinstance(spec.engine, VllmEngine)
    assert getattr(spec.speculation, "draft_length", 0) == int(line["DRAFTHOUSE_DRAFT_LENGTH"])
    files = line["COMPOSE_FILE"].split(":")
    assert "deploy/compose/gpu.yml" in files and all((ROOT / name).is_file() for name in files)


def test_what_vllm_compiles_goes_where_it_may_write() -> None:
    """The image cannot be written to, nor can the models."""
    containerfile = (DEPLOY / "container" / "Dockerfile.vllm").read_text(encoding="utf-8")
    (cache,) = re.findall(r"VLLM_CACHE_ROOT=(\S+)", containerfile)
    volumes = written()["services"]["triton"]["volumes"]
    (runs,) = [volume for volume in volumes if cache.startswith(volume["target"] + "/")]
    assert not runs.get("read_only", False)


@pytest.mark.parametrize("name", ["Dockerfile.trtllm", "Dockerfile.vllm"])
def test_nvidias_packages_stay_as_they_are(name: str) -> None:
    """Whatever is installed goes into an environment of its own."""
    installing = [
        line
        for line in (DEPLOY / "container" / name).read_text(encoding="utf-8").splitlines()
        if "pip" in line and "install" in line
    ]
    assert installing
    assert all("--python /opt/kit/bin/python" in line and "--no-deps" in line for line in installing)


def test_build_steps_meet_the_working_directory_and_the_image_of_the_step() -> None:
    service = written()["services"][BUILD_SERVICE]
    assert service["image"].startswith(f"${{{IMAGE_VARIABLE}:-")
    assert [volume["source"] for volume in service["volumes"]] == ["."]
    assert service["volumes"][0]["target"] == service["working_dir"]
    assert "build" not in service and "entrypoint" not in service


def test_grafana_finds_what_it_is_provisioned_with() -> None:
    grafana = written()["services"]["grafana"]
    mounts = {volume.split(":")[1] for volume in grafana["volumes"]}
    provisioning = DEPLOY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "drafthouse.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {provider["options"]["path"], "/etc/grafana/provisioning"} <= mounts
    assert source["url"] == "$PROMETHEUS_URL"
    assert grafana["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"


@pytest.mark.parametrize("name", ["build", "triton", "loadtest"])
def test_commands_are_the_kits_own(name: str) -> None:
    program, command, *arguments = written()["services"][name]["command"]
    assert program == "drafthouse"
    kit = typer.main.get_command(app)
    assert isinstance(kit, typer.core.TyperGroup)
    context = kit.commands[command].make_context(command, list(arguments))
    assert context.params["spec_path"] == Path("${DRAFTHOUSE_SPEC:-deployments/smollm2-anpd.yaml}")
    assert context.params.get("host") == {"build": None, "triton": "0.0.0.0", "loadtest": "triton"}[name]


def test_prometheus_scrapes_the_services() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = {job["static_configs"][0]["targets"][0] for job in config["scrape_configs"]}
    assert targets == {"triton:8002", "exporter:9400"}


@pytest.mark.outside
@pytest.mark.parametrize("line", [None, *LINES])
def test_docker_compose_accepts_every_line(line: str | None) -> None:
    config = resolved(line, HF_TOKEN="hf_of_the_caller")
    services = config["services"]
    assert services.keys() == SERVICES
    gpus = {
        name: service["deploy"]["resources"]["reservations"]["devices"]
        for name, service in services.items()
        if "deploy" in service
    }
    on_gpu = line in ("line-a", "line-b", "vllm")
    assert gpus.keys() == ({"build", "triton"} if on_gpu else set())
    assert all(
        devices == [{"capabilities": ["gpu"], "driver": "nvidia", "count": -1}] for devices in gpus.values()
    )
    triton = services["triton"]
    assert triton["environment"]["HF_TOKEN"] == "hf_of_the_caller"
    assert triton["command"][:2] == ["drafthouse", "serve"]
    assert triton["command"][-2:] == ["--host", "0.0.0.0"]
    models = next(volume for volume in triton["volumes"] if volume["target"] == "/workspace/models")
    assert models.get("read_only", False) is on_gpu
    assert services["build"]["image"] == triton["image"]
    assert services["loadtest"]["depends_on"]["triton"]["condition"] == "service_healthy"


@pytest.mark.outside
def test_variables_reach_the_file() -> None:
    given = {IMAGE_VARIABLE: "image:1", "DRAFTHOUSE_GPUS": "2", "DRAFTHOUSE_BIND": "0.0.0.0"}
    services = resolved("line-a", **given)["services"]
    assert services["build"]["image"] == "image:1"
    assert services["triton"]["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    assert {port["host_ip"] for port in services["front"]["ports"]} == {"0.0.0.0"}


@pytest.mark.outside
def test_docker_compose_would_refuse_a_mistake(tmp_path: Path) -> None:
    tool = environment("compose")
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    (tmp_path / "docker-compose.yml").write_text(
        text.replace("healthcheck:", "healthchek:"), encoding="utf-8"
    )
    command = [tool.directory / "bin" / "docker-compose", "--profile", "*", "config", "--quiet"]
    with pytest.raises(ProgramError, match="healthchek"):
        run(command, seconds=60, directory=tmp_path, variables={})

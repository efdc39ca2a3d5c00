"""`docker-compose.yml` and `deploy/` against the code: there is no Docker here to try them on."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fltr_pipeline.settings import Endpoints, Settings
from fltr_pipeline_tests.deployment import ROOT, compose, environment, operations_blocks, required_variables

SECRETS = {name: f"secret-of-{name.lower()}" for name in required_variables()}
COMPOSE = compose(SECRETS)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def healthcheck(service: str) -> list[str]:
    kind, *command = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    return list(map(str, command))


def after(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def our_commands() -> Iterator[list[str]]:
    for name, service in OURS.items():
        yield service["command"]
        if "healthcheck" in service:
            yield healthcheck(name)


def test_the_services_are_the_whole_system() -> None:
    assert set(SERVICES) == {
        *("postgres", "etcd", "minio", "milvus"),
        *("init", "code-location", "dagster-webserver", "dagster-daemon"),
    }
    assert set(OURS) == {"init", "code-location", "dagster-webserver", "dagster-daemon"}


@pytest.mark.parametrize("command", list(our_commands()), ids=" ".join)
def test_each_command_is_there_and_accepts_its_flags(command: list[str], tmp_path: Path) -> None:
    program, *arguments = command
    if program == "python":
        assert arguments[0] == "-c"
        compile(arguments[1], "healthcheck", "exec")
        return
    # Flags are parsed before --help is acted on: an unknown one, or one without its value, is an error.
    result = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "DAGSTER_HOME": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("service", OURS)
def test_the_environment_is_a_complete_production_configuration(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FLTR_")]:
        monkeypatch.delenv(name)
    given = environment(OURS[service])
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    known = {f"FLTR_{field.upper()}" for field in Settings.model_fields}
    assert {name for name in given if name.startswith("FLTR_")} <= known

    settings = Settings()
    assert settings.production
    endpoints: Endpoints = settings.endpoints
    urls = [endpoints.database_url, endpoints.auth_database_url, endpoints.dagster_database_url]
    databases = [url.get_secret_value().rpartition("/")[2] for url in urls]
    assert databases == ["fltr", "fltr_auth", "dagster"]
    assert endpoints.dagster_database_url.get_secret_value().startswith("postgresql+psycopg2://")


def test_only_the_init_job_is_administrator_of_fltr_auth() -> None:
    administrators = [name for name in OURS if "//postgres:" in environment(OURS[name])["FLTR_AUTH_DATABASE_URL"]]
    assert administrators == ["init"]


def test_the_instance_configuration_finds_its_variables() -> None:
    def variables(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            if set(node) == {"env"}:
                yield node["env"]
            for value in node.values():
                yield from variables(value)

    needed = set(variables(yaml.safe_load((ROOT / "dagster.yaml").read_text())))
    assert needed
    for service in OURS.values():
        assert needed <= set(environment(service))


def test_host_names_in_urls_are_services() -> None:
    for service in OURS.values():
        for value in environment(service).values():
            for host in re.findall(r"://(?:[^@/]*@)?([\w-]+):\d+", value):
                assert host in SERVICES


def test_the_code_locations_address_is_the_same_everywhere() -> None:
    command = OURS["code-location"]["command"]
    (entry,) = yaml.safe_load((ROOT / "deploy/workspace.yaml").read_text())["load_from"]
    server = entry["grpc_server"]
    assert server["host"] == "code-location"
    assert str(server["port"]) == after(command, "-p") == after(healthcheck("code-location"), "-p")
    assert server["location_name"] == after(command, "--location-name")
    assert (
        after(command, "-m") == tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dagster"]["module_name"]
    )
    (local,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert server["location_name"] == local["python_module"]["location_name"]


def test_the_ui_is_the_only_published_port_and_only_on_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    port = after(OURS["dagster-webserver"]["command"], "-p")
    assert published == {"dagster-webserver": [f"127.0.0.1:3000:{port}"]}
    assert f"127.0.0.1:{port}/" in healthcheck("dagster-webserver")[-1]


def test_dependencies_exist_and_their_conditions_can_come_true() -> None:
    for service in SERVICES.values():
        for target, dependency in service.get("depends_on", {}).items():
            if dependency["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[target]
            else:
                assert dependency["condition"] == "service_completed_successfully"
                assert SERVICES[target]["restart"] == "on-failure"


def test_volumes_and_files_exist() -> None:
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists()
            else:
                used.add(source)
    assert used == set(COMPOSE["volumes"])


def test_our_volumes_belong_to_the_images_user() -> None:
    # A named volume takes its owner from the image's folder; without one it is root's.
    for volume in OURS["code-location"]["volumes"]:
        source, target = volume.split(":")[:2]
        if not source.startswith("."):
            assert re.search(rf"install --directory --owner=fltr .*{target}\b", DOCKERFILE)
    assert DOCKERFILE.rstrip().splitlines()[-1] == "USER fltr"


def test_the_image_can_dump_the_servers_databases() -> None:
    (client,) = re.findall(r"^ARG POSTGRES_CLIENT=(\d+)$", DOCKERFILE, re.M)
    (server,) = re.findall(r"postgres:(\d+)\.", SERVICES["postgres"]["image"])
    assert int(client) >= int(server)
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"apt-get install .*postgresql-client-\$\{POSTGRES_CLIENT\}", final)


def test_dumps_outlive_the_container() -> None:
    (home,) = re.findall(r"\bFLTR_HOME=(\S+)", DOCKERFILE)
    for service in OURS.values():
        assert "FLTR_HOME" not in environment(service)
        assert f"dumps:{home}/dumps" in service["volumes"]


def test_images_are_pinned() -> None:
    for service in SERVICES.values():
        name, _, tag = service["image"].rpartition(":")
        assert name
        assert re.search(r"\d+\.\d+|\d{4}-\d{2}-\d{2}", tag)
    assert {service["image"] for service in OURS.values()} == {f"fltr-pipeline:{PROJECT['version']}"}
    assert re.search(r"ARG PYTHON=3\.\d+\.\d+-slim", DOCKERFILE)


def test_no_password_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"\$\{(\w*PASSWORD\w*):\?\}", text)) == set(re.findall(r"\$\{(\w*PASSWORD\w*)", text))
    for service in yaml.safe_load(text)["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|SECRET|TOKEN", name) or value is None or ":?}" in value
    # The command in the file's head makes them all.
    (names,) = re.findall(r"for name in ([A-Z ]+); do", text)
    assert {f"FLTR_{name}_PASSWORD" for name in names.split()} == required_variables()


def test_the_dockerfile_copies_what_exists_and_is_let_in() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M) for source in line.split()[:-1]}
    assert copied == let_in
    for source in copied:
        assert (ROOT / source).exists()


def test_the_dockerfile_installs_extras_that_exist_with_the_makefiles_variables() -> None:
    (line,) = re.findall(r"make install (.*)$", DOCKERFILE, re.M)
    makefile = (ROOT / "Makefile").read_text()
    for variable in re.findall(r"(\w+)=", line):
        assert re.search(rf"^{variable} \?=", makefile, re.M)
    (extras,) = re.findall(r"\.\[([\w,]+)\]", line)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert {"s3", "ocr"} <= set(extras.split(",")), "settings alone turn them on"


def test_the_documented_launchers_hand_runs_what_they_need() -> None:
    docker, kubernetes = (yaml.safe_load(block)["run_launcher"] for block in operations_blocks("yaml"))
    assert set(docker["config"]["env_vars"]) == set(environment(OURS["code-location"]))
    assert docker["config"]["image"] == OURS["code-location"]["image"]
    assert docker["config"]["network"] == f"{COMPOSE['name']}_default"
    targets = [volume.split(":")[1] for volume in docker["config"]["container_kwargs"]["volumes"]]
    assert set(targets) < {volume.split(":")[1] for volume in OURS["code-location"]["volumes"]}
    assert kubernetes["config"]["dagster_home"] == environment(OURS["code-location"])["DAGSTER_HOME"]


def test_the_documented_first_step_makes_every_password() -> None:
    head = (ROOT / "docker-compose.yml").read_text()
    (command,) = re.findall(r"^for name in .*$", operations_blocks("sh")[0], re.M)
    assert f"#   {command}" in head

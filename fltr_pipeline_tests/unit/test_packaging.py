"""What is shipped: the wheel's files, the pinned versions, the entry point, the Makefile's targets."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fltr_pipeline.samples import folder
from fltr_pipeline_tests.deployment import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = {"demo", "up", "down", "test", "test-faults", "lint", "bench", "clean", "help", "install"}


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    """`constraints.txt`: name → version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def requirements() -> list[Requirement]:
    """All that pyproject names, extras included."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *extras]]


def test_the_entry_point_resolves() -> None:
    (script,) = entry_points(group="console_scripts", name="fltr-pipeline")
    assert script.value == PROJECT["scripts"]["fltr-pipeline"]
    assert callable(script.load())


def test_every_direct_dependency_is_pinned_within_its_range(
    requirements: list[Requirement], pinned: dict[str, str]
) -> None:
    for requirement in requirements:
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_torch_is_a_range_for_users_and_pinned_without_a_build_for_us(
    requirements: list[Requirement], pinned: dict[str, str]
) -> None:
    (torch,) = [requirement for requirement in requirements if requirement.name == "torch"]
    assert {specifier.operator for specifier in torch.specifier} == {">="}
    assert re.fullmatch(r"[\d.]+", pinned["torch"])
    assert Requirement(f"torch=={pinned['torch']}").specifier.contains(f"{pinned['torch']}+cpu")


def test_the_wheel_has_everything_that_is_read_at_run_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name: archive.read(name) for name in archive.namelist()}

    package = ROOT / "fltr_pipeline"
    data = [path for path in package.rglob("*") if path.is_file() and path.suffix not in {".pyc"}]
    assert {path.suffix for path in data} >= {".py", ".sql", ".yaml", ".pdf", ".md", ".html", ".txt"}
    for path in data:
        assert shipped[str(path.relative_to(ROOT))] == path.read_bytes()
    assert folder().is_relative_to(package)
    assert not [name for name in shipped if name.split("/")[0] not in {"fltr_pipeline", wheel_metadata(wheel)}]


def wheel_metadata(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    return f"{name}-{version}.dist-info"


def test_the_licence_is_the_one_declared() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    lines = (ROOT / "LICENSE").read_text().split("\n")
    assert [line.strip() for line in lines if line.strip()][:2] == ["Apache License", "Version 2.0, January 2004"]
    assert "END OF TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text()


def test_make_knows_its_targets_and_help_lists_them() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([\w-]+)", listed, re.M)) == TARGETS


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_each_target_is_made_of_commands_that_make_understands(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)


def test_continuous_integration_calls_the_makefile() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert set(re.findall(r"^make ([\w-]+)", script.read_text(), re.M)) == {"lint", "test"}

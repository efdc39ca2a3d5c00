"""Settings: read once from the environment (prefix `FLTR_`), validated, passed down as a value.

Belongs here: every knob with its default, and where the five stores are. Does not: connecting to any of them.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fltr_pipeline.errors import ConfigurationError

STACK_FILE = "stack.json"
"""Written under `FLTR_HOME` by the embedded stack while it runs."""

OCR_MEMORY_MB = 1800
"""Address space that the OCR engine takes for a full page, and some for the document (measured: 1.4 GB)."""


class Endpoints(BaseModel):
    """Where the stores are. All five come from the environment, or all five from the embedded stack."""

    model_config = ConfigDict(hide_input_in_errors=True)  # it holds passwords

    database_url: SecretStr
    auth_database_url: SecretStr
    dagster_database_url: SecretStr
    milvus_uri: str = Field(repr=False)
    blob_url: str = Field(repr=False)


class Prices(BaseModel):
    """The price list: whole credits per unit begun. A price of 0 makes no ledger row, the path is the same."""

    version: str = "2026-11"
    dataset_setup: int = Field(default=0, ge=0, description="Credits, once per dataset.")
    extract: int = Field(default=1, ge=0, description="Credits per `extract_pages` pages begun.")
    extract_pages: int = Field(
        default=100, ge=1, description="Pages in a unit of extraction; 3,000 characters where a format has no pages."
    )
    plan: int = Field(default=0, ge=0, description="Credits per document chunked.")
    ocr_pages: int = Field(
        default=10, ge=1, description="Pages in a further unit of extraction, where OCR read their text."
    )
    embed: int = Field(default=1, ge=0, description="Credits per `embed_tokens` tokens begun.")
    embed_tokens: int = Field(
        default=100_000, ge=1, description="Tokens in a unit of embedding; only what is really embedded counts."
    )


class Settings(BaseSettings):
    """All settings. `Settings()` reads the environment; tests pass values."""

    model_config = SettingsConfigDict(
        env_prefix="FLTR_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # it holds passwords, and Dagster shows the errors of whoever reads it
    )

    home: Path = Field(default=Path(".fltr"), description="Folder of the embedded stack: data, logs, state.")
    database_url: SecretStr | None = Field(default=None, description="The `fltr` database.")
    auth_database_url: SecretStr | None = Field(
        default=None, description="The `fltr_auth` database, as the least-privilege role."
    )
    dagster_database_url: SecretStr | None = Field(
        default=None, description="Dagster's own database; must start with `postgresql+psycopg2://`."
    )
    milvus_uri: str | None = Field(default=None, repr=False, description="Milvus, e.g. `http://milvus:19530`.")
    milvus_token: SecretStr | None = Field(default=None, description="Milvus token or `user:password`.")
    blob_url: str | None = Field(
        default=None, repr=False, description="Raw uploads: a folder, or an fsspec URL such as `s3://bucket`."
    )

    embedding_model: str = Field(
        default="all-MiniLM-L6-v2",
        description="A sentence-transformers model: the default comes with the package, others by folder or hub name.",
    )
    embedding_batch_size: int = Field(default=32, ge=1, description="Chunks per forward pass.")
    embedding_threads: int = Field(default=0, ge=0, description="CPU threads for the model; 0 lets torch choose.")
    chunk_tokens: int = Field(
        default=254,
        ge=16,
        description="Most tokens in a chunk, special tokens not counted; capped by the model's window.",
    )
    chunk_overlap: int = Field(
        default=0, ge=0, description="Tokens of the previous chunk repeated at the start of the next."
    )

    pdf_engine: Literal["pypdfium2", "pypdf"] = Field(default="pypdfium2", description="What reads a PDF's text first.")
    ocr: bool = Field(
        default=False,
        description="Read images, and a PDF's pages without text, by OCR; needs the extra `ocr` and 2 GB per parser.",
    )
    ocr_max_pages: int = Field(default=1000, ge=1, description="A document with more pages to read by OCR fails.")
    parse_workers: int = Field(default=2, ge=1, description="Parser processes per run.")
    parse_seconds: float = Field(
        default=120.0, gt=0, description="Wall-clock limit per document, and per page read by OCR."
    )
    parse_memory_mb: int = Field(default=2048, ge=256, description="Memory limit of a parser process.")
    max_document_mb: int = Field(default=200, ge=1, description="Larger files fail as `too_large`.")

    batch_size: int = Field(default=100, ge=1, description="Documents claimed and charged per transaction.")
    run_documents: int = Field(default=500, ge=1, description="Documents in one run that the sensor launches.")
    max_concurrent_runs: int = Field(
        default=2, ge=1, description="Runs in flight; the sensor keeps Dagster's queue this short."
    )
    lease_seconds: int = Field(default=120, ge=5, description="A claim not renewed for this long is taken over.")
    stall_seconds: int = Field(
        default=1800, ge=1, description="A worker that finishes nothing for this long lets its claims run out."
    )
    max_attempts: int = Field(default=5, ge=1, description="Workers that may die at a document before it is `failed`.")

    charging: bool = Field(default=True, description="Off while another application still charges `document_upload`.")
    charge_user_errors: bool = Field(
        default=False,
        description="Charge one unit for a file that can't be read by its own fault (encrypted, corrupt).",
    )
    prices: Prices = Field(
        default_factory=Prices, description="The price list; set one price with `FLTR_PRICES__<name>`."
    )

    @model_validator(mode="after")
    def _all_stores_or_none(self) -> Self:
        given = {name: getattr(self, name) is not None for name in Endpoints.model_fields}
        if any(given.values()) and not all(given.values()):
            missing = ", ".join(f"FLTR_{name.upper()}" for name, there in given.items() if not there)
            raise ValueError(
                f"half a production configuration: also set {missing}, or unset the others for the embedded stack"
            )
        return self

    @model_validator(mode="after")
    def _a_document_may_take_its_time(self) -> Self:
        if self.stall_seconds < (least := 2 * self.parse_seconds + 240):
            raise ValueError(
                f"FLTR_STALL_SECONDS must be at least {least:g}: a document may take twice FLTR_PARSE_SECONDS and more"
            )
        return self

    @model_validator(mode="after")
    def _ocr_has_room(self) -> Self:
        if self.ocr and self.parse_memory_mb < OCR_MEMORY_MB:
            raise ValueError(f"FLTR_PARSE_MEMORY_MB must be at least {OCR_MEMORY_MB} with FLTR_OCR")
        return self

    @property
    def production(self) -> bool:
        """Whether the stores are named in the environment (the embedded stack also does so for its own children)."""
        return self.database_url is not None

    @cached_property
    def endpoints(self) -> Endpoints:
        """Where the stores are: from the environment, else from the running embedded stack.

        Raises:
            ConfigurationError: nothing is configured and no embedded stack runs under `home`.
        """
        if self.production:
            return Endpoints.model_validate({name: getattr(self, name) for name in Endpoints.model_fields})
        path = self.home / STACK_FILE
        try:
            return Endpoints.model_validate(json.loads(path.read_text())["endpoints"])
        except FileNotFoundError:
            raise ConfigurationError(
                f"no database is configured and no embedded stack runs under {self.home}: "
                "start one with `fltr-pipeline up`, or set the FLTR_*_URL variables"
            ) from None

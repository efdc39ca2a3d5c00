"""What both databases must look like, as data: tables, columns, keys, foreign keys, and the source of each fact.

Belongs here: the target state, from which the DDL, the verification and its report are made. Does not: SQL text
(`ddl`), reading a live database (`catalog`), judging it (`compare`).

"The specification" is the product's document on the expected and actual schemas.
"""

from fltr_pipeline.stores.schema.specification.fltr import FLTR
from fltr_pipeline.stores.schema.specification.fltr_auth import FLTR_AUTH
from fltr_pipeline.stores.schema.specification.terms import (
    IDENTIFIER,
    SERIAL,
    Column,
    Database,
    ForeignKey,
    Index,
    OnDelete,
    Source,
    Table,
    Written,
)

__all__ = [
    "FLTR",
    "FLTR_AUTH",
    "IDENTIFIER",
    "SERIAL",
    "Column",
    "Database",
    "ForeignKey",
    "Index",
    "OnDelete",
    "Source",
    "Table",
    "Written",
]

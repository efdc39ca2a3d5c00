"""The order of writes: claim, charge, work, settle, publish. What happens to a document, without Dagster.

Belongs here: use cases over stores, ledger and text. Does not: SQL (stores), prices (credits), Dagster (defs).
"""

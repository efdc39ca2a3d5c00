"""The order of writes: claim, charge, work, settle, publish. What happens to a document, without Dagster.

Belongs here: use cases over the stores, the ledger and the text rooms. Does not: SQL (stores), prices (credits), Dagster (defs).
"""

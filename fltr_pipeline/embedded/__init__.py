"""The embedded stack: real PostgreSQL, Milvus Lite and Dagster, started and stopped on this machine under `FLTR_HOME`.

Belongs here: processes, their readiness, their recovery. Does not: anything that a production deployment uses.
"""

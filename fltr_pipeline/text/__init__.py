"""From a file's bytes to chunks and vectors: parse, clean, chunk, embed.

Belongs here: pure functions of bytes and text, the worker processes that confine parsers, the model. Does not: any
store, any credit, Dagster.
"""

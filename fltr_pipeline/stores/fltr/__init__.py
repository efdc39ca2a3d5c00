"""Named queries on the `fltr` database, one module per concern, each function inside the caller's transaction.

Belongs here: SQL on `public` and `pipeline`, and the frozen rows it returns. Does not: opening transactions, money.

Two rules hold everywhere. Rows of `public.documents` are locked before rows of `pipeline.documents`, in id order, so
that publishes and uploads never deadlock; a claim skips what others hold and never waits. And what a worker writes is
guarded by its fence: a write with an old one changes nothing, and the function returns only the documents that it did
change.
"""

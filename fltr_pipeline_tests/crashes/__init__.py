"""Killing a process at a named point of its work on the two databases.

Belongs here: the points and the process that dies there; the operations on the ledger that are killed; whether the
books balance afterwards. Does not: crossing all of these (faults/test_ledger_crashes).
"""

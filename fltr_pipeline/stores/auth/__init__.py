"""Named queries on the `fltr_auth` database, as its least-privilege role.

Belongs here: SQL on users, teams, user_credits, api_key_credits and credit_transactions (people: who pays; pots: their
balances; rows: the ledger; scan: all of it), and nothing else of that database, which belongs to the web application.
Does not: what a hold or a close is (credits).

No index beyond the primary keys is relied on. An API key is known by its digest, the hex SHA-256 of its UTF-8 bytes,
computed in SQL: the key itself never leaves the database.
"""

"""Money: what work costs, and a two-phase ledger that reserves before it and settles after it.

Belongs here: prices, holds, closes, balances, statements. Does not: deciding when work is done (pipeline).
"""

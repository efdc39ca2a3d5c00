"""What operators see in Dagster: assets, checks, jobs, the sensor and the schedules.

Belongs here: thin Dagster objects over `pipeline`. Does not: SQL, prices, or what a test without Dagster could check.
"""

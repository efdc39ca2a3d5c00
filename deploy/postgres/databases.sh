#!/bin/sh
# Three databases with a role each, none of which sees another's. Run once, by the image, as the administrator.
# Passwords travel in the environment, never on a command line. The tables are `fltr-pipeline db init`'s business.
set -eu

psql -v ON_ERROR_STOP=1 --no-psqlrc --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv database_password DATABASE_PASSWORD
\getenv auth_password AUTH_PASSWORD
\getenv dagster_password DAGSTER_PASSWORD

CREATE ROLE fltr LOGIN PASSWORD :'database_password';
CREATE ROLE dagster LOGIN PASSWORD :'dagster_password';
-- May do nothing until auth_role.sql grants it the few rights that the ledger needs.
CREATE ROLE fltr_pipeline LOGIN PASSWORD :'auth_password';

CREATE DATABASE fltr OWNER fltr;
CREATE DATABASE fltr_auth;
CREATE DATABASE dagster OWNER dagster;
REVOKE ALL ON DATABASE fltr, fltr_auth, dagster FROM PUBLIC;
SQL

#!/bin/bash
# Run once by the Postgres image, when it makes its data folder: a role that owns one database and can do nothing else.
# The password goes through psql's variables, not through a command line.
set -euo pipefail
password=$(tr -d '\n' <"${AUTOFT_PASSWORD_FILE:-/run/secrets/autoft_password}")
[ -n "$password" ] || { echo "the secret autoft_password is empty: run deploy/make-secrets.sh" >&2; exit 78; }
AUTOFT_PASSWORD=$password psql --set ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv password AUTOFT_PASSWORD
CREATE ROLE autoft LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE autoft OWNER autoft;
REVOKE ALL ON DATABASE autoft FROM PUBLIC;
SQL

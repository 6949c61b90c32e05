"""Alembic's folder: run by storage/records/schema.py alone, which hands over a connection; there is no URL to configure."""

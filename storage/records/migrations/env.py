"""Runs migrations on the connection that storage/records/schema.py hands over, in its transaction."""

from alembic import context

from storage.records.schema import configuration

connection = context.config.attributes["connection"]
context.configure(connection=connection, **configuration(connection))
with context.begin_transaction():
    context.run_migrations()

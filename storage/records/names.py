"""What our tables are called, and where they are: a schema of our own in Postgres, a prefix in SQLite, which has no schemas.

Another program's `alembic_version`, such as Optuna's or MLflow's in the default schema, is therefore never met.
"""

from dataclasses import dataclass

from storage.urls import StorageURL

VERSION_TABLE = "autoft_alembic_version"


@dataclass(frozen=True)
class Place:
    """Where tables are in one kind of database."""

    schema: str | None
    prefix: str

    def table(self, name: str) -> str:
        """A table's name within the schema."""
        return self.prefix + name

    def column(self, table: str, column: str) -> str:
        """A column as a foreign key names it."""
        named = f"{self.prefix}{table}.{column}"
        return named if self.schema is None else f"{self.schema}.{named}"


POSTGRES = Place("autoft", "")
SQLITE = Place(None, "autoft_")


def place_of(url: StorageURL) -> Place:
    """Where our tables are in this database."""
    return SQLITE if url.is_sqlite else POSTGRES


def place_in(dialect: str) -> Place:
    """The same, by the name of SQLAlchemy's dialect."""
    return SQLITE if dialect == "sqlite" else POSTGRES

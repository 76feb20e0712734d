"""What Alembic runs: our tables, on the connection and inside the transaction of `migrate`."""

from alembic import context

from store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="peruse_migrations",
    compare_server_default=True,
)
context.run_migrations()

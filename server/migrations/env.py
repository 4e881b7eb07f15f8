"""Run by Alembic for each command: hands it the connection that `server.migrations.upgrade` was given."""

from __future__ import annotations

from alembic import context

from server.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()

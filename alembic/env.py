"""Alembic's environment: it only says that the package runs the migrations.

The work is in `datahound_storage.migrations.environment`, where it is typed, tested and the same
for the command line and for a program that upgrades at its start.
"""

from datahound_storage.migrations import environment

environment.run()

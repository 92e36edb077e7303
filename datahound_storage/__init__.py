"""Keeps a scheduler's tasks and runs in Postgres; JSON files can take over at any time."""

from datahound_storage.errors import StorageError
from datahound_storage.health import Health
from datahound_storage.hooks import BackupEvent, BackupHook
from datahound_storage.persistence import SchedulerPersistence

__all__ = ["BackupEvent", "BackupHook", "Health", "SchedulerPersistence", "StorageError"]
__version__ = "0.1.0"

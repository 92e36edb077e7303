"""Which Postgres the tests run on; `get()` starts it once per process.

`TEST_POSTGRES` chooses: `container`, `embedded`, the URL of a server (its user needs CREATEDB), or
`auto`, the default: a container where that is possible, else the embedded server. Without any
server the tests that need one fail: there is no stand-in that would let them pass unseen.
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from datahound_storage.errors import StorageError
from datahound_storage.testing import EmbeddedServer

Kind = Literal["container", "embedded", "url"]

_PREFIX = "datahound_test_"
_ENGINE_SECONDS = 60
# An automatic choice must not keep a developer waiting; who asks for a container waits for it.
_PULL_SECONDS = {"auto": 20, "container": 300}
_MEMORY = 2 * 1024**3
# A crash of the machine is no part of any test, so nothing waits for the disk.
_SETTINGS = {"max_connections": "200", "fsync": "off"}


class NoServerError(RuntimeError):
    """There is no Postgres to test on; the message says why."""


@dataclass(frozen=True)
class TestServer:
    """A running Postgres in which tests make databases of their own."""

    __test__: ClassVar[bool] = False

    kind: Kind
    version: str
    why: str
    admin_url: str = field(repr=False)
    _resources: ExitStack = field(repr=False)

    def create_database(self, template: str | None = None) -> str:
        """Make a database, as a copy of the one with the URL `template` if given; its URL."""
        name = _PREFIX + secrets.token_hex(8)
        command = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            command += sql.SQL(" TEMPLATE {}").format(sql.Identifier(_database(template)))
        self._execute(command)
        return urlsplit(self.admin_url)._replace(path=f"/{name}").geturl()

    def drop_database(self, url: str) -> None:
        """Drop a database made here, whoever is connected to it."""
        name = _database(url)
        if not name.startswith(_PREFIX):
            raise ValueError(f"not a database of these tests: {name}")
        self._execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )

    def stop(self) -> None:
        """End what was started; a second call does nothing."""
        self._resources.close()

    def _execute(self, command: sql.Composed) -> None:
        with _connect(self.admin_url) as connection:
            connection.execute(command)


def get() -> TestServer:
    """Return this process's server, started at the first call and stopped at exit."""
    outcome = _outcome()
    if isinstance(outcome, NoServerError):
        raise NoServerError(str(outcome))
    return outcome


def close() -> None:
    """Stop this process's server if there is one; the next `get()` starts a new one."""
    if _outcome.cache_info().currsize and isinstance(outcome := _outcome(), TestServer):
        outcome.stop()
    _outcome.cache_clear()


@cache
def _outcome() -> TestServer | NoServerError:
    """Try once: a failure is kept, so that not every test waits for it again."""
    try:
        server = _choose(os.environ.get("TEST_POSTGRES") or "auto")
    except NoServerError as error:
        return error
    atexit.register(server.stop)
    return server


def _choose(choice: str) -> TestServer:
    if choice.startswith(("postgresql://", "postgres://")):
        return _given(choice)
    if choice == "auto":
        return _auto()
    if choice == "container":
        return _container("container", "TEST_POSTGRES=container")
    if choice == "embedded":
        return _embedded("TEST_POSTGRES=embedded")
    raise NoServerError("TEST_POSTGRES must be auto, container, embedded or a postgresql:// URL")


def _auto() -> TestServer:
    try:
        return _container("auto", "a Docker engine answers")
    except NoServerError as error:
        return _embedded(f"no container: {error}")


def _given(url: str) -> TestServer:
    query = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
    try:
        with _connect(url) as connection:
            row = connection.execute(query).fetchone()
    except psycopg.Error as error:
        raise NoServerError(f"the server in TEST_POSTGRES does not serve: {error}") from error
    if row != (True,):
        raise NoServerError("the user in TEST_POSTGRES must be allowed to create databases")
    return _server("url", "TEST_POSTGRES has its URL", url, ExitStack())


def _embedded(why: str) -> TestServer:
    version = os.environ.get("TEST_POSTGRES_EMBEDDED_VERSION") or "18"
    with ExitStack() as resources:
        directory = resources.enter_context(embedded_directory())
        try:
            server = EmbeddedServer(directory, int(version), settings=_SETTINGS)
            resources.callback(server.stop)
            server.start()
        except (StorageError, ValueError, OSError) as error:
            raise NoServerError(f"the embedded server did not start: {error}") from error
        return _server("embedded", why, server.url, resources.pop_all())


@contextmanager
def embedded_directory() -> Iterator[Path]:
    """Make a directory for an `EmbeddedServer`, where it is fast, and delete it at the end."""
    with tempfile.TemporaryDirectory(
        prefix="datahound-", dir=_memory(), ignore_cleanup_errors=True
    ) as directory:
        yield Path(directory)


def _memory() -> Path | None:
    """A file system in memory if it is large enough: new databases there take a tenth."""
    path = Path("/dev/shm")
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        return None
    found = os.statvfs(path)
    # As root the server's binaries are copied beside the data, and have to run there.
    is_usable = found.f_bavail * found.f_frsize > _MEMORY and not found.f_flag & os.ST_NOEXEC
    return path if is_usable else None


def _container(choice: Literal["auto", "container"], why: str) -> TestServer:
    _configure_testcontainers()
    from docker.errors import DockerException  # type: ignore[import-untyped]
    from testcontainers.community.postgres import PostgresContainer

    image = os.environ.get("TEST_POSTGRES_IMAGE") or "postgres:17-alpine"
    with ExitStack() as resources:
        try:
            _require_engine()
            _ensure_image(image, _PULL_SECONDS[choice])
            container = PostgresContainer(image, driver=None, docker_client_kw=_client_options())
            resources.callback(container.stop)
            container.with_tmpfs_mount("/memory").with_env("PGDATA", "/memory/data")
            container.with_command(_server_arguments()).start()
            url = container.get_connection_url()
        except (DockerException, OSError) as error:
            raise NoServerError(f"{_first_line(error)} (image {image})") from error
        return _server("container", f"{why}, image {image}", url, resources.pop_all())


def _configure_testcontainers() -> None:
    """Set what its defaults get wrong; it reads these once, when it is imported.

    Its clean-up container is an image of its own to pull, and inside of a container it connects to
    an address that only some networks route, instead of the port published on this machine.
    """
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
    if os.environ.get("DOCKER_HOST", "unix://").startswith("unix://"):
        os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")


def _require_engine() -> None:
    """Connect to the engine's socket: Docker's client leaks its own one when that fails."""
    from testcontainers.core.docker_client import get_docker_host

    url = get_docker_host() or "unix:///var/run/docker.sock"
    if not url.startswith("unix://"):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(url.removeprefix("unix://"))
        except OSError as error:
            raise NoServerError(f"no Docker engine at {url}: {error.strerror}") from error


def _client_options() -> dict[str, Any]:
    return {"timeout": _ENGINE_SECONDS}


def _server_arguments() -> list[str]:
    return [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]


def _ensure_image(image: str, seconds: int) -> None:
    """Pull the image unless it is there, giving up after about this many seconds."""
    from docker.errors import ImageNotFound
    from testcontainers.core.docker_client import DockerClient

    client = DockerClient(timeout=seconds).client
    try:
        client.images.get(image)
    except ImageNotFound:
        _pull(client, image, seconds)
    finally:
        client.close()


def _pull(client: Any, image: str, seconds: int) -> None:
    from docker.utils import parse_repository_tag  # type: ignore[import-untyped]

    repository, tag = parse_repository_tag(image)
    deadline = time.monotonic() + seconds
    for line in client.api.pull(repository, tag or "latest", stream=True, decode=True):
        if "error" in line:
            raise OSError(line["error"])
        if time.monotonic() > deadline:
            raise TimeoutError(f"pulling it takes more than {seconds} s")


def _server(kind: Kind, why: str, url: str, resources: ExitStack) -> TestServer:
    with resources:
        with _connect(url) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        version = str(row[0]) if row else "unknown"
        return TestServer(kind, version, why, url, resources.pop_all())


def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True, connect_timeout=10)


def _database(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

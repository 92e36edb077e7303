"""A TCP proxy on 127.0.0.1 in front of a Postgres server, which can do what networks do.

It refuses, stalls, drops connections, and loses the answer to a statement that took effect.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

_CHUNK = 1 << 16
# What the proxy does once the server has confirmed a statement.
Then = Callable[[], None]


class Proxy:
    """Passes bytes between clients and the server until it is told to do otherwise.

    `password` is for the URL only where the server itself asks for none: tests look for it in logs.
    """

    def __init__(self, server_url: str, password: str = "hunter2") -> None:
        self.lead_to(server_url)
        self._password = self._parts.get("password") or password
        self._flowing = threading.Event()
        self._flowing.set()
        self._changed = threading.Condition()
        self._links: set[_Link] = set()
        self._lost: tuple[bytes, Then] | None = None
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._flowing.set()

    def lead_to(self, server_url: str) -> None:
        """Connect clients to this server from now on."""
        self._parts = {key: str(value) for key, value in conninfo_to_dict(server_url).items()}

    @property
    def url(self) -> str:
        """The URL of the server's database through the proxy, with a password."""
        user, password, name = (
            quote(text, safe="")
            for text in (self._parts["user"], self._password, self._parts["dbname"])
        )
        options = "sslmode=disable&gssencmode=disable"
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{name}?{options}"

    def wait_until_unused(self, seconds: float) -> bool:
        """Wait until no client is connected any more; whether that came true."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._links, seconds)

    def refuse(self) -> None:
        """Drop all connections and refuse new ones."""
        self.stop_listening()
        self.drop()

    def stop_listening(self) -> None:
        """Refuse new connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def listen(self) -> None:
        """Take connections again, at the same port."""
        self._listener = self._listen(self.port)

    def stall(self) -> None:
        """From now on accept everything and forward nothing."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forward again, beginning with what has waited."""
        self._flowing.set()

    def drop(self) -> None:
        """Break all connections."""
        with self._changed:
            links = list(self._links)
        for link in links:
            link.cut()

    def lose_answer(self, tag: str, then: Then | None = None) -> None:
        """Keep back the server's next confirmation of a statement, when it is committed.

        `tag` begins the command tag, such as "UPDATE". `then` (else: drop) is what happens instead.
        """
        self._lost = (tag.encode(), then or self.drop)

    def lose_statement(self, then: Then | None = None) -> None:
        """Keep back the next thing that a client sends; `then` (else: drop) happens instead.

        To the client it looks as if the answer got lost.
        """
        self._lost = (b"", then or self.drop)

    @property
    def has_lost(self) -> bool:
        """Whether the answer was kept back."""
        return self._lost is None

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                _Link(self, listener.accept()[0]).start()

    def dial(self) -> socket.socket:
        """A connection to the server."""
        host, port = self._parts.get("host", ""), int(self._parts.get("port", "5432"))
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def wait_while_stalled(self) -> None:
        """Return when bytes may flow."""
        self._flowing.wait()

    def loses(self, tag: bytes) -> Then | None:
        """What to do instead of confirming a statement, or sending it (no tag); once told."""
        with self._changed:
            if self._lost is None or bool(tag) is not bool(self._lost[0]):
                return None
            if not tag.startswith(self._lost[0]):
                return None
            then, self._lost = self._lost[1], None
            return then

    def note(self, link: _Link, *, present: bool) -> None:
        """Take note of a connection's beginning or end."""
        with self._changed:
            (self._links.add if present else self._links.discard)(link)
            self._changed.notify_all()


class _Link:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server: socket.socket | None = None
        proxy.note(self, present=True)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def cut(self) -> None:
        for end in (self._client, self._server):
            if end is not None:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            self._proxy.wait_while_stalled()
            self._server = self._proxy.dial()
            back = threading.Thread(target=self._backward, args=(self._server,), daemon=True)
            back.start()
            self._forward(self._server)
            back.join()
        except OSError:
            pass  # there is no server
        finally:
            self._proxy.note(self, present=False)
            self._client.close()
            if self._server is not None:
                self._server.close()

    def _forward(self, server: socket.socket) -> None:
        with suppress(OSError):
            while data := self._client.recv(_CHUNK):
                self._proxy.wait_while_stalled()
                if (then := self._proxy.loses(b"")) is not None:
                    then()
                    break
                server.sendall(data)
        self.cut()

    def _backward(self, server: socket.socket) -> None:
        messages = _Messages(self._proxy)
        with suppress(OSError):
            while data := server.recv(_CHUNK):
                passed, then = messages.passed(data)
                self._proxy.wait_while_stalled()
                self._client.sendall(passed)
                if then is not None:
                    then()
        self.cut()


class _Messages:
    """The server's answers, as messages: a type, a length that counts itself, and a body."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._rest = b""
        self._then: Then | None = None

    def passed(self, data: bytes) -> tuple[bytes, Then | None]:
        """The part to forward, and what to do then: once the lost statement is committed."""
        passed = b""
        self._rest += data
        while len(self._rest) >= 5:
            end = 1 + int.from_bytes(self._rest[1:5], "big")
            if len(self._rest) < end:
                break
            message, self._rest = self._rest[:end], self._rest[end:]
            if message[:1] == b"C" and self._then is None:
                self._then = self._proxy.loses(message[5:])
            if self._then is None:
                passed += message
            elif message[:1] == b"Z" and message[5:] == b"I":
                # Ready, and in no transaction: it is committed.
                return passed, self._then
        return passed, None

"""A page on this machine, whose uploads are answered line by line and not kept.

Its packages come with an optional installation: import this module only where the page is wanted.
"""

import asyncio
import errno
import json
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import uvicorn
from absl import logging
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tprnet_jax.runtime.errors import UserError

LOOPBACK = {"localhost", "127.0.0.1", "::1"}

# The page runs and loads nothing but its own files, and no other page may show or read it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LONGEST = 200  # Characters of a file's name.
_PATIENCE = 1  # Seconds that answers under way may still take when the server ends.
_UNFORESEEN = "the server met an error of its own; the terminal where it runs says which"


class Uploads(NamedTuple):
    """Where files are sent to, one a request, as its body; `?name=` is how the user calls it.

    The answer is lines of JSON. If the first of them has "error", it is alone, and the status says
    so too: 400, of what is too large 413. A later "error" ends the lines.

    Attributes:
        answer: Lines for a file, given where it lies and its name; UserError says what is wrong.
        most: Bytes of the largest.
        suffixes: Those by which a file's kind is told; only they are kept of the user's name.
        worker: Of one thread, in which all files are worked on, a line at a time.
    """

    answer: Callable[[Path, str], Iterator[dict]]
    most: int
    suffixes: Collection[str]
    worker: Executor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request (ASGI); the file is deleted however that ends."""
        request = Request(scope, receive)
        with tempfile.TemporaryDirectory(prefix="tprnet_upload_") as folder:
            response = await self._response(request, Path(folder))
            await response(scope, receive, send)

    async def _response(self, request: Request, folder: Path) -> Response:
        name = _legible(request.query_params.get("name", ""))
        suffix = Path(name).suffix.lower()
        path = folder / f"upload{suffix if suffix in self.suffixes else ''}"
        try:
            if not await self._receive(request, path):
                wrong = f"{name} is larger than {self.most / 1e6:g} MB; give a smaller file, or "
                return _refusal(wrong + "start with a larger --config.serve.max_mb", 413)
        except OSError as error:
            return _refusal(f"{name} cannot be received ({error.strerror}); free some space", 507)
        lines = _told(self.answer(path, name), path, name)
        first = await self._next(lines)
        if "error" in first:
            return _refusal(first["error"], 500 if first["error"] == _UNFORESEEN else 400)
        return StreamingResponse(self._lines(first, lines), media_type="application/x-ndjson")

    async def _receive(self, request: Request, path: Path) -> bool:
        """Writes the body; False, and no more of it is read, where it is too large."""
        if int(request.headers.get("content-length", 0)) > self.most:
            return False
        size = 0
        with path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > self.most:
                    return False
                file.write(chunk)
        return True

    async def _lines(self, line: dict | None, lines: Iterator[dict]) -> AsyncIterator[bytes]:
        while line is not None:
            yield json.dumps(line).encode() + b"\n"
            line = await self._next(lines)

    async def _next(self, lines: Iterator[dict]) -> dict | None:
        return await asyncio.get_running_loop().run_in_executor(self.worker, next, lines, None)


def _legible(given: str) -> str:
    """A file's name as it may be shown: in one line, and without folders."""
    name = re.split(r"[/\\]", given)[-1][:_LONGEST]
    return "".join(x if x.isprintable() else "?" for x in name) or "the file"


def _told(lines: Iterator[dict], path: Path, name: str) -> Iterator[dict]:
    """The lines, and whatever is raised between them as the last one."""
    try:
        yield from lines
    except UserError as error:
        yield {"error": str(error).replace(str(path), name)}
    except Exception:
        logging.exception("%s", _UNFORESEEN)
        yield {"error": _UNFORESEEN}


def _refusal(sentence: str, status: int) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)


def application(page: Path, about: dict[str, Any], uploads: Uploads, hosts: set[str]) -> ASGIApp:
    """The page, what it is about, and where it sends files to.

    Args:
        page: Its HTML; its CSS and JavaScript have the same name.
        about: For JSON, at /about.
        uploads: At /segment.
        hosts: Names and addresses by which browsers may call this machine.
    """

    def file(suffix: str) -> Callable[[Request], FileResponse]:
        return lambda request: FileResponse(page.with_suffix(suffix))

    routes = [
        Route("/", file(".html")),
        *(Route(f"/{page.stem}{suffix}", file(suffix)) for suffix in (".css", ".js")),
        Route("/about", lambda request: JSONResponse(about)),
        Route("/segment", uploads, methods=["POST"]),
    ]
    return _guarded(Starlette(routes=routes), hosts)


def _guarded(app: ASGIApp, hosts: set[str]) -> ASGIApp:
    """The application, for its own page alone, with `_HEADERS` on all that it sends."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        wrong = _wrong(Headers(scope=scope), hosts)
        answer = _refusal(wrong, 403) if wrong else app
        await answer(scope, receive, send_with_headers)

    return guarded


def _wrong(headers: Headers, hosts: set[str]) -> str | None:
    """What is wrong with where a request comes from."""
    host, origin = headers.get("host", ""), headers.get("origin")
    # A page elsewhere whose name was made to lead here still calls this machine by that name.
    if _name(host) not in hosts:
        return f"this page is not at {_legible(host)}; call it as the terminal says"
    # A page elsewhere can send a request here, but not without saying where it is from.
    if origin is not None and urlsplit(origin).netloc != host:
        return "another page may not use this one"
    return None


def _name(host: str) -> str | None:
    """The host of `host:port`."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


# ---- The server ----------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine; port 0 is any that is free.

    Raises:
        UserError: The address is none of this machine's, or the port is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as error:  # The latter of what no name can be.
        reason = getattr(error, "strerror", error)
        wrong = f"config.serve.host={host} with port {port} cannot be used ({reason})"
        mend = "give an address of this machine, such as 127.0.0.1, and a port from 1024 on"
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            wrong = f"config.serve.port={port} is in use by another program"
            mend = "give another, or 0 for any that is free"
        raise UserError(f"{wrong}; {mend}") from error


def url(listener: socket.socket) -> str:
    """Where the page is."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server(app: ASGIApp) -> uvicorn.Server:
    """A server that says nothing: what goes wrong in an answer, the answer says."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="critical",
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=_PATIENCE,
        )
    )

"""Who may ask: names of this server, the token, and what a browser may load.

Another page in the same browser can send requests to this machine's own address, and with a name
that it resolves to that address also read the answers. So names are checked, a page from elsewhere
is refused, and what listens beyond this machine wants a token.
"""

from __future__ import annotations

import hmac
import json
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlencode

from query.serve.uploads import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Any, TypeAlias

    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE: Final = "gradstore"
_OWN_NAMES: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors "
)
# Notebooks run at such addresses, and show the page in a frame.
_NOTEBOOKS: Final = "http://127.0.0.1:* http://localhost:*"
_HEADERS: Final = (
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class _TooLargeError(Exception):
    pass


class Guard:
    """Checks every request before the application sees it.

    Args:
        app: the application.
        names: names and addresses by which the server may be called; None for any, which needs a
            token.
        token: the secret; None for none.
        framed: whether a page of this machine, such as a notebook, may show this one in a frame.
    """

    def __init__(
        self,
        app: App,
        names: frozenset[str] | None,
        token: str | None,
        *,
        framed: bool = False,
    ) -> None:
        if names is None and token is None:
            raise ValueError("a server that may be called by any name needs a token")
        self._app, self._names, self._token = app, names, token
        self._headers = (*_HEADERS, _policy(_NOTEBOOKS if framed else "'none'"))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI says."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        host = headers.get("host", b"").decode("latin-1")
        origin = headers.get("origin")
        if self._names is not None and _name(host) not in self._names:
            await _refuse(send, 421, "this server is not called by that name.")
        elif (origin is not None and origin.decode("latin-1").partition("://")[2] != host) or (
            headers.get("sec-fetch-site") == b"cross-site"
            and headers.get("sec-fetch-mode") != b"navigate"
        ):
            await _refuse(send, 403, "a page from elsewhere may not ask this server.")
        elif scope["path"] != "/healthz" and not self._known(headers):
            moved = self._with_cookie(scope)
            if moved is None:
                await _refuse(
                    send, 401, "this server wants its token: open the link that it printed."
                )
            else:
                await send(moved)
                await send({"type": "http.response.body", "body": b""})
        else:
            await self._pass(scope, headers, receive, send)

    def _known(self, headers: dict[str, bytes]) -> bool:
        if self._token is None:
            return True
        given = headers.get("authorization", b"").decode("latin-1").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self._token.encode()):
            return True
        try:
            cookies = SimpleCookie(headers.get("cookie", b"").decode("latin-1"))
        except CookieError:
            return False
        found = cookies[COOKIE].value if COOKIE in cookies else ""
        return hmac.compare_digest(found.encode(), self._token.encode())

    def _with_cookie(self, scope: Message) -> Message | None:
        """The answer to a link with the token: a cookie, and the same link without the token."""
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(pairs).get("token", "")
        own = self._token or ""
        if scope["path"] != "/" or not hmac.compare_digest(given.encode(), own.encode()):
            return None
        left = urlencode([pair for pair in pairs if pair[0] != "token"])
        cookie = f"{COOKIE}={own}; HttpOnly; SameSite=Lax; Path=/"
        headers = [(b"location", f"/?{left}".encode()), (b"set-cookie", cookie.encode())]
        return {"type": "http.response.start", "status": 303, "headers": [*headers, *self._headers]}

    async def _pass(
        self, scope: Message, headers: dict[str, bytes], receive: Receive, send: Send
    ) -> None:
        seen, begun = 0, False

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MOST_BYTES:
                raise _TooLargeError
            return message

        async def safe(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        claimed = headers.get("content-length", b"0")
        try:
            if not claimed.isdigit() or int(claimed) > MOST_BYTES:
                raise _TooLargeError
            await self._app(scope, bounded, safe)
        except _TooLargeError:
            if begun:
                raise
            await _refuse(send, 413, f"the request has more than {MOST_BYTES // 2**20} MiB.")


def allowed_names(host: str, *, local: bool) -> frozenset[str] | None:
    """Names by which a server on this address may be called; None for any.

    Examples:
        >>> "localhost" in allowed_names("127.0.0.1", local=True)
        True
        >>> allowed_names("0.0.0.0", local=False) is None
        True
    """
    if local:
        return _OWN_NAMES | {host.strip("[]").lower()}
    return None


def _policy(frames: str) -> tuple[bytes, bytes]:
    """What a browser may load, and which pages may show this one in a frame."""
    return b"content-security-policy", (_POLICY + frames).encode()


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


async def _refuse(send: Send, status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), *_HEADERS, _policy("'none'")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

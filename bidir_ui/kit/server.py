"""What stands between the network and the app: who may ask, and what every answer carries.

Only requests for a host name in ``server.allowedHosts`` are served. A web page elsewhere can give
its own name this machine's address (DNS rebinding), and would then count as the app itself to the
browser; its requests still carry its own name.

Headers: a page may load nothing from anywhere else. Data-set texts and model outputs are shown
inert; this is the second lock. Even if some text became markup, the browser would not fetch an
image, style, font, frame or script from elsewhere, nor send a form.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import streamlit as st
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed

# Streamlit needs inline styles, and evaluates code for its own charts and components.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' data: blob:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)
DRAWN = ("compare", "masks", "lab", "report")  # addresses of the pages with charts


class KnownHosts:
    """ASGI middleware that refuses requests for any host but ``server.allowedHosts``, and others' pages.

    Streamlit itself checks its websocket's host only; this checks files and uploads as well, by the
    same rule. An empty list allows every name. And it refuses a websocket to a page that came from
    elsewhere: from another port of this host too, which Streamlit lets pass.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] in ("http", "websocket") else Headers()
        if scope["type"] == "websocket" and not _same_origin(headers):
            await receive()  # the request to connect
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or is_host_allowed(headers.get("host")):
            await self.app(scope, receive, send)
            return
        refusal = "This app does not answer to this host name; see docs/SHARING.md."
        await PlainTextResponse(refusal, status_code=421)(scope, receive, send)


def _same_origin(headers: Headers) -> bool:
    """Whether the page that asks is the app's own, by host and port; programs send no origin.

    An allowed host of ``*`` gives this up as well.
    """
    origin, host = headers.get("origin"), headers.get("host", "").lower()
    if origin is None or is_host_allowed("any.invalid"):
        return True
    return origin.lower() in (f"http://{host}", f"https://{host}")


class ResponseHeaders:
    """ASGI middleware that adds :data:`HEADERS` to every HTTP response.

    A page with charts also names the file that draws them: the browser fetches it at once, not
    only when the first chart arrives.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        more = HEADERS
        if scope["path"].rpartition("/")[2] in DRAWN:
            more += _preload()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self.app(scope, receive, send_with_headers)


@cache
def _preload() -> tuple[tuple[bytes, bytes], ...]:
    """The header that has Streamlit's own Plotly loaded early; nothing if it is called otherwise."""
    scripts = Path(st.__file__).parent / "static" / "static" / "js"
    names = [path.name for path in scripts.glob("PlotlyChart.*.js")]
    return tuple(
        (b"link", f"<./static/js/{name}>; rel=modulepreload; crossorigin".encode())
        for name in names
    )


MIDDLEWARE = [Middleware(KnownHosts), Middleware(ResponseHeaders)]

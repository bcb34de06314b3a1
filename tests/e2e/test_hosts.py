"""A real server answers to its own names only: what a page with a rebound name could reach."""

import base64
import http.client
import os

import pytest

from tests.e2e.server import serve

REBOUND = "rebound.example"


def status(server, path: str, host: str, method: str = "GET", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    try:
        connection.request(method, path, headers={"Host": host} | headers)
        return connection.getresponse().status
    finally:
        connection.close()


def websocket(server, host: str, origin: str) -> int:
    """The answer to a websocket handshake: 101 if it is open."""
    given = {
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Protocol": "streamlit",
    }
    given |= {"Connection": "Upgrade", "Upgrade": "websocket", "Origin": origin}
    return status(server, "/_stcore/stream", host, **given)


FILES = ["/", "/report", "/media/x.md", "/_stcore/host-config", "/_stcore/metrics"]
REFUSED = [("GET", path) for path in FILES]
REFUSED += [(method, "/_stcore/upload_file/s/f") for method in ("PUT", "DELETE", "OPTIONS")]
OTHERS = [REBOUND, f"localhost.{REBOUND}", f"127.0.0.1.{REBOUND}", f"localhost@{REBOUND}", ""]


def test_nothing_for_a_rebound_name(server):
    """The origin of a websocket is the host, as in a rebound page: the browser takes both for the same."""
    for method, path in REFUSED:
        assert status(server, path, f"{REBOUND}:{server.port}", method) == 421, path
    for host in (f"{name}:{server.port}" for name in OTHERS):
        assert websocket(server, host, f"http://{host}") == 403, host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_its_own_names_are_served_and_no_other_origin(server, host):
    host = f"{host}:{server.port}"
    assert status(server, "/report", host) == 200
    assert websocket(server, host, f"http://{host}") == 101
    for origin in (REBOUND, f"127.0.0.1:{server.port + 1}", "127.0.0.1"):
        assert websocket(server, host, f"http://{origin}") == 403
    assert websocket(server, host, "null") == 403


def test_a_group_names_its_host(tmp_path, nursery):
    names = "bidir.example.org *.lab.example.org 127.0.0.1"
    with serve(tmp_path, nursery, STREAMLIT_SERVER_ALLOWED_HOSTS=names) as server:
        for host in ("bidir.example.org", "gpu1.lab.example.org"):
            assert status(server, "/report", host) == 200
            assert websocket(server, host, f"https://{host}") == 101
        assert status(server, "/report", REBOUND) == 421
        assert websocket(server, REBOUND, f"http://{REBOUND}") == 403

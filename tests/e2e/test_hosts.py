"""A real server answers to its own names only: what a page with a rebound name could reach."""

import base64
import http.client
import os

import pytest

from tests.e2e.server import serve

pytestmark = pytest.mark.e2e
REBOUND = "rebound.example"


def status(server, path: str, host: str, method: str = "GET", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers={"Host": host} | headers)
        return connection.getresponse().status
    finally:
        connection.close()


def websocket(server, host: str, origin: str) -> int:
    """The answer to a websocket handshake: 101 if it is open."""
    return status(
        server,
        "/_stcore/stream",
        host,
        Connection="Upgrade",
        Upgrade="websocket",
        Origin=origin,
        **{
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Protocol": "streamlit",
        },
    )


PATHS = ["/", "/report", "/media/x.md", "/_stcore/host-config", "/_stcore/metrics"]


@pytest.mark.parametrize("path", PATHS)
def test_no_file_for_a_rebound_name(server, path):
    assert status(server, path, f"{REBOUND}:{server.port}") == 421


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS"])
def test_no_upload_for_a_rebound_name(server, method):
    assert status(server, "/_stcore/upload_file/s/f", f"{REBOUND}:{server.port}", method) == 421


OTHERS = [REBOUND, f"localhost.{REBOUND}", f"127.0.0.1.{REBOUND}", f"localhost@{REBOUND}", ""]


@pytest.mark.parametrize("host", OTHERS)
def test_no_websocket_for_a_rebound_name(server, host):
    """The origin is the host, as in a rebound page: the browser takes both for the same."""
    host = f"{host}:{server.port}"
    assert websocket(server, host, f"http://{host}") == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_its_own_names_are_served(server, host):
    host = f"{host}:{server.port}"
    assert status(server, "/report", host) == 200
    assert websocket(server, host, f"http://{host}") == 101


def test_its_own_name_with_a_foreign_origin_is_refused(server):
    assert websocket(server, f"127.0.0.1:{server.port}", f"http://{REBOUND}") == 403


def test_a_page_on_another_port_of_this_host_gets_no_websocket(server):
    for origin in (f"http://127.0.0.1:{server.port + 1}", "http://127.0.0.1", "null"):
        assert websocket(server, f"127.0.0.1:{server.port}", origin) == 403


def test_a_group_names_its_host(tmp_path, nursery):
    names = "bidir.example.org *.lab.example.org 127.0.0.1"
    with serve(tmp_path, nursery, STREAMLIT_SERVER_ALLOWED_HOSTS=names) as server:
        for host in ("bidir.example.org", "gpu1.lab.example.org"):
            assert status(server, "/report", host) == 200
            assert websocket(server, host, f"https://{host}") == 101
        assert status(server, "/report", REBOUND) == 421
        assert websocket(server, REBOUND, f"http://{REBOUND}") == 403

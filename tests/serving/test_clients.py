"""Slow and hostile clients are cut off, and change nothing for others."""

import http.client
import socket
import time

import numpy as np
import pytest

from tests.served import serving

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
BEGINNINGS = {"nothing": b"", "half a line": b"POST /v1/emb", "half a head": HEAD, "no HTTP": b"\x16\x03\x01" * 20}


@pytest.fixture(scope="module")
def hasty(embedder):
    """A server with short times and few connections."""
    limits = {"header_seconds": 1, "body_seconds": 1, "max_connections": 20, "max_buffered": 4000}
    with serving(embedder, **limits) as client:
        yield client


def answers(client, embedder) -> None:
    """Assert that a client that sends its request at once gets its vector."""
    status, document = client.post("/v1/embeddings", {"input": "a dog barks"})
    assert status == 200, document
    np.testing.assert_allclose(document["data"][0]["embedding"], embedder.embed_text(["a dog barks"])[0], atol=1e-5)


def read_until_closed(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection, which it does within a minute."""
    connection.settimeout(60)
    received = b""
    try:
        while part := connection.recv(2**16):
            received += part
    except ConnectionError:
        pass
    return received


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_connection_without_a_request_is_closed(hasty, embedder, beginning):
    with hasty.connect() as connection:
        connection.sendall(beginning)
        answers(hasty, embedder)
        received = read_until_closed(connection)
        assert received == b"" if beginning != BEGINNINGS["no HTTP"] else received.startswith(b"HTTP/1.1 400 ")


def test_a_head_a_byte_at_a_time_gets_no_more_time(hasty):
    start = time.monotonic()
    with hasty.connect() as connection, pytest.raises(OSError):
        for byte in HEAD * 100:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
            assert time.monotonic() < start + 60
    assert time.monotonic() > start + 0.9


@pytest.mark.parametrize("sent", [b"", b'{"input": ', b'{"input": "' + b"a" * 900])
def test_half_a_body_gets_408(hasty, embedder, sent):
    with hasty.connect() as connection:
        connection.sendall(HEAD + b"\r\n" + sent)
        answers(hasty, embedder)
        answer = read_until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"invalid_request_error" in answer


def test_a_body_a_byte_at_a_time_gets_408(hasty, embedder):
    with hasty.connect() as connection:
        connection.sendall(HEAD + b"\r\n")
        connection.settimeout(0.05)
        for _ in range(1000):
            connection.sendall(b" ")
            try:
                answer = connection.recv(2**16)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("beginning", [b"", HEAD + b'\r\n{"input": "'], ids=["idle", "half a body"])
def test_many_open_connections_leave_room_for_others(hasty, embedder, beginning):
    connections = []
    try:
        for number in range(200):
            connections.append(hasty.connect())
            connections[-1].sendall(beginning)
            if number % 20 == 0:
                answers(hasty, embedder)
        answers(hasty, embedder)
        for connection in connections[:170]:
            received = read_until_closed(connection)
            assert received[:13] in (b"", b"HTTP/1.1 408 ", b"HTTP/1.1 503 ")
    finally:
        for connection in connections:
            connection.close()


def get_health(connection) -> None:
    connection.request("GET", "/health")
    assert connection.getresponse().read().startswith(b'{"status":"ok"')


def test_new_connections_do_not_close_one_that_has_had_an_answer(embedder):
    with serving(embedder, max_connections=20) as client:
        kept = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
        get_health(kept)
        socket_of_first = kept.sock
        opened = []
        for number in range(100):
            opened.append(client.connect())
            if number % 25 == 0:
                get_health(kept)
        get_health(kept)
        assert kept.sock is socket_of_first
        for connection in (*opened, kept):
            connection.close()


def test_connections_that_have_had_an_answer_leave_room_for_new_ones(embedder):
    with serving(embedder, max_connections=20) as client:
        kept = [http.client.HTTPConnection("127.0.0.1", client.port, timeout=60) for _ in range(60)]
        for connection in kept:
            get_health(connection)
        opened = [client.connect() for _ in range(5)]
        for connection in opened:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200 ")
        for connection in (*opened, *kept):
            connection.close()


def test_large_bodies_that_arrive_slowly_make_room(hasty, embedder):
    """They hold 4000 bytes together; the oldest are ended."""
    connections = [hasty.connect() for _ in range(8)]
    try:
        for connection in connections:
            connection.sendall(HEAD + b"\r\n" + b" " * 900)
            answers(hasty, embedder)
        assert read_until_closed(connections[0]).startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 408 "))
    finally:
        for connection in connections:
            connection.close()


def test_a_client_that_reads_no_answer(hasty, embedder):
    with hasty.connect() as connection:
        connection.settimeout(1)
        try:
            for _ in range(2000):
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
        except TimeoutError:  # the server reads no more of it
            pass
        answers(hasty, embedder)


def test_a_connection_serves_several_requests(hasty):
    connection = http.client.HTTPConnection("127.0.0.1", hasty.port, timeout=60)
    connection.connect()
    kept = connection.sock
    for _ in range(3):
        connection.request("GET", "/health")
        assert connection.getresponse().read().startswith(b'{"status":"ok"') and connection.sock is kept
    assert read_until_closed(kept) == b""
    connection.close()

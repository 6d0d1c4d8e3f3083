"""The server, as browsers and others meet it, with answers that need no model."""

import contextlib
import http.client
import itertools
import json
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tprnet_jax.runtime.errors import UserError

web = pytest.importorskip("tprnet_jax.runtime.web", reason='needs pip install -e ".[serve]"')

MOST = 100_000


class Served:
    """A server in a thread; `answer` is what is done with an upload, `folder` where it lies."""

    def __init__(self, folder, worker):
        self.folder, self.answer = folder, None
        for suffix in (".html", ".css", ".js"):
            (folder / f"page{suffix}").write_text(f"the {suffix}")
        self.uploads = folder / "uploads"
        self.uploads.mkdir()
        uploads = web.Uploads(lambda *of: self.answer(*of), MOST, {".png"}, worker)
        about = {"model": "none"}
        app = web.application(folder / "page.html", about, uploads, {"here", *web.LOOPBACK})
        self.listener = web.listen("127.0.0.1", 0)
        self.host = web.url(self.listener).removeprefix("http://")
        self.server = web.server(app)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()

    def end(self):
        self.server.should_exit = True
        self.thread.join()

    def request(self, method="GET", path="/", body=None, **headers):
        """Status, headers and content of an answer."""
        connection = http.client.HTTPConnection(self.host)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def upload(self, content, name="a.png", **headers):
        """Status and lines."""
        path = f"/segment?name={quote(name)}"
        status, _, content = self.request("POST", path, content, **headers)
        return status, [json.loads(line) for line in content.splitlines()]

    def is_empty(self):
        """Whether no upload is left, now or soon."""
        deadline = time.monotonic() + 30
        while (left := list(self.uploads.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.01)
        return not left


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with ThreadPoolExecutor(1) as worker, pytest.MonkeyPatch.context() as patch:
        found = Served(tmp_path_factory.mktemp("served"), worker)
        patch.setattr(tempfile, "tempdir", str(found.uploads))
        yield found
        found.end()


def _about(path, name):
    yield {"file": path.name, "name": name, "content": path.read_bytes().decode()}
    yield {"second": True}


@pytest.mark.parametrize(
    ("name", "file", "shown"),
    [
        ("a.png", "upload.png", "a.png"),
        ("A.PNG", "upload.png", "A.PNG"),
        ("../../etc/x.png", "upload.png", "x.png"),
        ("C:\\scans\\x.exe", "upload", "x.exe"),
        ("\u00e9\n\u202e.png", "upload.png", "\u00e9??.png"),
        ("", "upload", "the file"),
    ],
)
def test_a_file_is_answered_in_lines_and_lies_under_a_name_of_ours(served, name, file, shown):
    served.answer = _about
    expected = [{"file": file, "name": shown, "content": "pixels"}, {"second": True}]
    assert served.upload(b"pixels", name) == (200, expected)
    assert served.is_empty()


def test_the_page_and_its_parts_are_there_and_nothing_else(served):
    for path, content in (("/", ".html"), ("/page.css", ".css"), ("/page.js", ".js")):
        assert served.request(path=path)[::2] == (200, f"the {content}".encode())
    assert json.loads(served.request(path="/about")[2]) == {"model": "none"}
    for path in ("/page.html", "/uploads", "/../page.css", "/%2e%2e/etc/passwd"):
        assert served.request(path=path)[0] == 404
    assert served.request(path="/segment")[0] == 405


def test_no_other_page_may_show_read_or_load_anything(served):
    for path in ("/", "/absent"):
        _, headers, _ = served.request(path=path)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert not {"unsafe-inline", "unsafe-eval", "http"} & set(policy.replace("'", " ").split())
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert not [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:1234", "[::1]:8080", "here"]
)
def test_the_machine_may_be_called_by_its_own_names(served, host):
    assert served.request(Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example@localhost:1@evil.example"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
    ],
    ids=str,
)
def test_another_page_that_leads_here_is_refused(served, headers):
    """By a name of its own for this machine, or by sending a form."""
    served.answer = None  # Would fail.
    status, lines = served.upload(b"pixels", **headers)
    assert status == 403
    assert list(lines[0]) == ["error"]


def test_the_pages_own_requests_are_taken(served):
    served.answer = _about
    assert served.upload(b"pixels", Origin=f"http://{served.host}")[0] == 200


def test_what_is_wrong_with_a_file_is_one_sentence_on_its_own_name(served):
    def answer(path, name):
        raise UserError(f"{path} is no image; give one")
        yield

    served.answer = answer
    assert served.upload(b"pixels") == (400, [{"error": "a.png is no image; give one"}])
    assert served.is_empty()


def test_what_is_wrong_later_ends_the_lines(served):
    def answer(path, name):
        yield {"first": 1}
        raise UserError(f"{path} ends early; give a whole copy")

    served.answer = answer
    last = {"error": "a.png ends early; give a whole copy"}
    assert served.upload(b"pixels") == (200, [{"first": 1}, last])
    assert served.is_empty()


@pytest.mark.parametrize("before", [[], [{"first": 1}]])
def test_an_error_of_the_servers_own_is_said_there(served, caplog, before):
    def answer(path, name):
        yield from before
        raise ZeroDivisionError("of ours")

    served.answer = answer
    status, lines = served.upload(b"pixels")
    assert (status, lines[:-1]) == (200 if before else 500, before)
    assert "error of its own" in lines[-1]["error"]
    assert "ZeroDivisionError: of ours" in caplog.text
    assert served.is_empty()


def test_as_many_bytes_as_are_allowed_are_taken_and_one_more_is_not(served):
    served.answer = lambda path, name: iter([{"bytes": path.stat().st_size}])
    assert served.upload(bytes(MOST)) == (200, [{"bytes": MOST}])
    for body in (bytes(MOST + 1), iter([bytes(MOST), b"1"])):  # Which is sent without its length.
        status, lines = served.upload(body)
        assert status == 413
        assert lines[0]["error"].startswith("a.png is larger than 0.1 MB; give a smaller file")
    assert served.is_empty()


def test_a_file_that_is_too_large_is_refused_before_it_ends(served):
    with socket.create_connection(served.listener.getsockname()) as client:
        client.sendall(
            f"POST /segment?name=a HTTP/1.1\r\nHost: {served.host}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(11):  # Of chunks of 0x2710 = 10,000 bytes, and no last one.
            client.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_one_file_at_a_time_is_worked_on_while_the_page_is_there(served):
    working, begun, go = [], threading.Semaphore(0), threading.Event()

    def answer(path, name):
        for _ in range(2):
            working.append(name)
            begun.release()
            assert go.wait(60)
            assert len(working) == 1
            working.remove(name)
            yield {}

    served.answer = answer
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(served.upload, b"pixels", name) for name in "abc"]
        begun.acquire()
        assert served.request()[0] == 200
        assert not any(each.done() for each in answers)
        go.set()
        assert [each.result() for each in answers] == [(200, [{}, {}])] * 3


def test_a_client_that_leaves_ends_the_work_on_its_file(served):
    worked = []

    def endless(path, name):
        for number in itertools.count():
            worked.append(number)
            yield {"number": number}
            time.sleep(0.01)

    served.answer = endless
    with contextlib.closing(http.client.HTTPConnection(served.host)) as connection:
        connection.request("POST", "/segment?name=a.png", b"pixels")
        with connection.getresponse() as begun:
            assert begun.readline() == b'{"number": 0}\n'
    assert served.is_empty()
    served.answer = _about
    assert served.upload(b"pixels")[0] == 200  # What was behind it in the queue has its turn.
    count = len(worked)
    time.sleep(0.1)
    assert len(worked) == count


def test_a_port_in_use_is_one_sentence(served):
    port = served.listener.getsockname()[1]
    with pytest.raises(UserError, match=rf"^config\.serve\.port={port} is in use .*; give another"):
        web.listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b"])
def test_an_address_of_no_machine_of_ours_is_one_sentence(host):
    with pytest.raises(UserError, match=rf"^config\.serve\.host={host} with port 0 cannot be used"):
        web.listen(host, 0)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_the_address_is_said_as_browsers_want_it(host, shown):
    try:
        listener = web.listen(host, 0)
    except UserError as error:
        pytest.skip(str(error))
    with listener:
        assert web.url(listener) == f"http://{shown}:{listener.getsockname()[1]}"

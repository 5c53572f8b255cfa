"""Downloads from a server on the loopback, which answers well and badly."""

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from vgg_jax.weights import PUBLISHED, Published, fetch
from vgg_jax.weights.fetch import CHUNK, cache_folder

fetching = sys.modules["vgg_jax.weights.fetch"]
CONTENT = bytes(range(256)) * 20_000  # 5 MB
BROKEN_AT = 45 * CHUNK
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request as the server's list of answers says; the last one stays."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append(self.headers.get("Range"))
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *args: Any) -> None:
        pass

    def send(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = [whole]
        self.requests: list[str | None] = []
        self.released = threading.Event()


def whole(handler: Handler) -> None:
    handler.send(200, CONTENT)


def ranged(handler: Handler) -> None:
    begin = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=")
    begin = int(begin.removesuffix("-"))
    if begin >= len(CONTENT):
        handler.send(416, b"")
    else:
        handler.send(206 if begin else 200, CONTENT[begin:])


def broken_off(handler: Handler) -> None:
    handler.send(200, CONTENT[:BROKEN_AT], len(CONTENT))
    handler.close_connection = True


def hanging(handler: Handler) -> None:
    handler.send(200, CONTENT[:BROKEN_AT], len(CONTENT))
    handler.wfile.flush()
    handler.server.released.wait(20)


def status(code: int) -> Answer:
    return lambda handler: handler.send(code, b"no")


def sending(content: bytes) -> Answer:
    return lambda handler: handler.send(200, content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server with the weights "x/y"; the cache is empty, pauses are short."""
    monkeypatch.setenv("VGG_JAX_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(fetching, "TIMEOUT", (5.0, 0.5))
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    publish(monkeypatch, url=f"http://127.0.0.1:{server.server_port}/vgg.bin")
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def publish(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    known = {"size": len(CONTENT), "digest": f"sha256:{SHA256}", **facts}
    row = Published(
        name="x/y",
        network="vgg11",
        file="vgg.bin",
        lineage=None,
        channels="RGB",
        license=None,
        **known,
    )
    monkeypatch.setitem(PUBLISHED, "x/y", row)


def cached() -> list[str]:
    """The files of the cache but for its locks."""
    paths = Path(cache_folder()).rglob("*")
    return [p.name for p in paths if p.is_file() and p.suffix != ".lock"]


def test_it_is_downloaded_once(
    server: Server,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["vgg_jax.weights.fetch"], "DELAY", 0.0)
    path = fetch("x/y")
    assert path == tmp_path / "cache/x/y/vgg.bin" and path.read_bytes() == CONTENT
    assert "fetch x/y" in capfd.readouterr().err
    assert fetch("x/y") == path and len(server.requests) == 1
    assert cached() == ["vgg.bin"]


def test_a_file_of_that_name_comes_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/y").write_text("mine")
    assert fetch("x/y").read_text() == "mine" and not server.requests


def test_a_cached_file_that_changed_is_not_taken(server: Server) -> None:
    fetch("x/y").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(ValueError, match="is not x/y: expected sha256"):
        fetch("x/y")


@pytest.mark.parametrize("answer", [ranged, whole])
def test_what_was_interrupted_goes_on(server: Server, answer: Answer) -> None:
    server.answers = [broken_off, answer]
    assert fetch("x/y").read_bytes() == CONTENT
    first, second = server.requests
    assert first is None and second == f"bytes={BROKEN_AT}-"


def test_an_unreachable_rest_leaves_nothing_that_is_taken_for_whole(
    server: Server,
) -> None:
    server.answers = [broken_off, status(503)]
    with pytest.raises(
        OSError, match=r"cannot fetch x/y: 503 .*; put http://127.* as "
    ):
        fetch("x/y")
    assert cached() == ["vgg.bin.partial"]
    server.answers = [ranged]
    assert fetch("x/y").read_bytes() == CONTENT
    assert server.requests[-1] == f"bytes={BROKEN_AT}-"


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.answers = [status(503), status(503), whole]
    assert fetch("x/y").read_bytes() == CONTENT


def test_a_missing_file_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    server.answers = [status(404)]
    with pytest.raises(OSError, match="cannot fetch x/y: 404") as error:
        fetch("x/y")
    assert len(server.requests) == 1 and "\n" not in str(error.value)
    assert str(error.value).endswith(
        f"as {tmp_path}/cache/x/y/vgg.bin (5,120,000 bytes, sha256 {SHA256})"
    )


def test_a_hanging_server_is_left(server: Server) -> None:
    server.answers = [hanging, ranged]
    begun = time.monotonic()
    assert fetch("x/y").read_bytes() == CONTENT
    assert time.monotonic() - begun < 10
    assert server.requests[1] == f"bytes={BROKEN_AT}-"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[::-1], f"expected sha256 {SHA256}"),
        (CONTENT[:-1], "expected 5,120,000 bytes, got 5,119,999"),
        (CONTENT + b"more", "expected 5,120,000 bytes, and the server sends more"),
    ],
)
def test_other_bytes_are_refused(
    server: Server, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [sending(content)]
    with pytest.raises(ValueError, match=message):
        fetch("x/y")
    assert "vgg.bin" not in cached()
    server.answers = [ranged]
    assert fetch("x/y").read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_is_begun_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = PUBLISHED["x/y"].url
    partial = tmp_path / "cache/x/y/vgg.bin.partial"
    partial.parent.mkdir(parents=True)
    server.answers = [ranged]
    for size in (len(CONTENT), None):  # without the size, the server says it: 416
        publish(monkeypatch, url=url, size=size)
        partial.write_bytes(CONTENT + b"more")
        path = fetch("x/y")
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_two_at_once_download_once(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:  # the lock is one of files, as of processes
        paths = list(pool.map(fetch, ["x/y", "x/y"]))
    assert paths[0] == paths[1] and paths[0].read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_without_a_server_one_line_says_what_to_put_where(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(monkeypatch, url="http://127.0.0.1:1/vgg.bin")
    with pytest.raises(
        OSError, match=r"put http://127\.0\.0\.1:1/\w+\.bin as "
    ) as error:
        fetch("x/y")
    assert "\n" not in str(error.value) and SHA256 in str(error.value)


def test_weights_of_a_package_say_which(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, package="some-package 1.0")
    with pytest.raises(OSError, match=r"part of some-package 1\.0; put vgg\.bin of"):
        fetch("x/y")


def test_the_hubs_library_fetches_what_lies_there(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def download(*place: str, revision: str) -> str:
        asked.append((*place, revision))
        (tmp_path / "blob").write_bytes(CONTENT)
        return str(tmp_path / "blob")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    publish(monkeypatch, repository="some/one", revision="abc")
    assert fetch("x/y") == tmp_path / "blob"
    assert asked == [("some/one", "vgg.bin", "abc")]
    publish(
        monkeypatch, repository="some/one", revision="abc", digest="sha256:00000000"
    )
    with pytest.raises(ValueError, match="is not x/y: expected sha256 00000000"):
        fetch("x/y")


def test_the_hub_offline_says_what_to_put_where(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "h"))
    publish(monkeypatch, repository="some/one", revision="abc")
    with pytest.raises(OSError, match=r"put hf://some/one@abc/vgg\.bin as ") as error:
        fetch("x/y")
    assert "\n" not in str(error.value)
    place = tmp_path / "cache/x/y/vgg.bin"
    assert str(place) in str(error.value)
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert fetch("x/y") == place

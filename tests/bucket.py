"""A bucket on the loopback, with the faults that real ones have."""

import datetime
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

NAME = "runs"


class PreconditionFailedError(Exception):
    pass


class Store(Storage):
    """The emulator's store, which answers `ifGenerationMatch` as Google's does."""

    demanded: str | None = None  # the generation that the request of now asks for

    def _write_config_to_file(self) -> None:
        """Keeps no record of the whole store with every write."""

    def _demand(self, bucket: str, name: str) -> None:
        held = self.objects.get(bucket, {}).get(name, {}).get("generation", "0")
        if self.demanded not in (None, held):
            raise PreconditionFailedError

    def create_file(self, bucket: str, name: str, *rest: Any) -> Any:
        self._demand(bucket, name)
        return super().create_file(bucket, name, *rest)

    def delete_file(self, bucket: str, name: str, *rest: Any) -> Any:
        self._demand(bucket, name)
        return super().delete_file(bucket, name, *rest)

    def patch_object(self, bucket: str, name: str, *rest: Any) -> Any:
        self._demand(bucket, name)
        now = datetime.datetime.now(datetime.UTC)
        rest[0]["updated"] = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return super().patch_object(bucket, name, *rest)


def move(request: Any, response: Any, storage: Store) -> None:
    """Renames an object, which the emulator does not know of."""
    bucket = request.params["bucket_name"]
    request.params["dest_bucket_name"] = bucket
    objects.copy(request, response, storage)
    if response.status == HTTPStatus.OK:
        storage.delete_file(bucket, request.params["object_id"])


server.HANDLERS = (
    (
        r"^/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)"
        r"/moveTo/o/(?P<dest_object_id>.+)$",
        {"POST": move},
    ),
    *server.HANDLERS,
)


class Handler(server.RequestHandler):
    """Answers a request, or refuses it as the bucket was told to."""

    def __init__(self, bucket: "Bucket", *rest: Any):
        self.bucket = bucket
        super().__init__(bucket.storage, *rest)

    def answer(self, method: str) -> None:
        with self.bucket.lock:
            status = self.bucket.refusal(method, self.path)
            if status is not None:
                server._read_raw_data(self)
            else:
                wanted = re.search(r"ifGenerationMatch=(\d+)", self.path)
                self.storage.demanded = wanted and wanted[1]
                try:
                    server.Router(self).handle(method)
                    return
                except PreconditionFailedError:
                    status = HTTPStatus.PRECONDITION_FAILED
        error = {"code": status.value, "message": status.phrase}
        body = json.dumps({"error": error}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def do_PATCH(self) -> None:
        self.answer("PATCH")

    def do_DELETE(self) -> None:
        self.answer("DELETE")


class HTTPServer(ThreadingHTTPServer):
    """A server that a client may leave in the middle of an answer."""

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class Bucket:
    """The bucket `gs://runs`, served from this process."""

    def __init__(self) -> None:
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        logging.getLogger("api.object").setLevel(logging.CRITICAL)
        self.storage = Store(use_memory_fs=True)
        buckets.create_bucket(NAME, self.storage)
        self.lock = threading.Lock()
        self.refuses: Callable[[str, str], HTTPStatus | None] = lambda *_: None
        self._httpd = HTTPServer(("127.0.0.1", 0), partial(Handler, self))
        threading.Thread(target=self._httpd.serve_forever, daemon=True).start()
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            # Nothing else is asked: no credentials, no metadata server, no Google.
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "GOOGLE_CLOUD_PROJECT": "test",
            "NO_GCE_CHECK": "true",
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_port}"

    def close(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()

    def refusal(self, method: str, path: str) -> HTTPStatus | None:
        """The error to answer a request with; None to serve it."""
        return self.refuses(method, path)

    def names(self, folder: str = "") -> list[str]:
        """The names of the objects in a folder."""
        with self.lock:
            held = list(self.storage.objects.get(NAME, {}))
        return sorted(name for name in held if name.startswith(folder))


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[Bucket]:
    bucket = Bucket()
    before = dict(os.environ)
    os.environ.update(bucket.environment)
    yield bucket
    bucket.close()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def bucket(bucket_server: Bucket) -> Iterator[Bucket]:
    """The bucket `gs://runs`, empty and without faults."""
    with bucket_server.lock:
        bucket_server.storage.objects.pop(NAME, None)
        bucket_server.refuses = lambda *_: None
    yield bucket_server
    bucket_server.refuses = lambda *_: None

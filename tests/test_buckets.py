"""Files in a bucket, its leases, and what it refuses."""

import json
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import cv2
import numpy as np
import pytest
from etils import epath

from tests.bucket import Bucket
from vgg_jax import buckets
from vgg_jax.config import DataConfig
from vgg_jax.data import mirror
from vgg_jax.data.sources import open_source
from vgg_jax.files import (
    LineLog,
    beside,
    load_arrays,
    parse_path,
    read_json,
    replacing,
    resolve,
    save_arrays,
    write_json,
)
from vgg_jax.report.__main__ import main as report


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket is asked again without a pause."""
    monkeypatch.setattr("gcsfs.retry.min", lambda *_: 0, raising=False)


@pytest.fixture
def lease(bucket: Bucket) -> Iterator[buckets.Lease]:
    buckets.connect()
    lease = buckets.Lease("gs://runs/run/lock")
    yield lease
    lease.release()


@pytest.mark.parametrize(
    "url", ["s3://runs/vgg", "az://runs/vgg", "gs:/runs/vgg", "gs:///vgg", "gs://"]
)
def test_stores_that_checkpoints_cannot_be_in_are_refused_in_a_line(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(["--workdir", url]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "expected a local path or gs://BUCKET/NAME" in line and url in line


def test_a_bucket_without_gcsfs_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"install -r requirements-gcs\.txt"):
        parse_path("gs://runs/vgg")


def test_paths_in_a_bucket_keep_their_slashes() -> None:
    workdir = parse_path("gs://runs/a/vgg16/")
    assert str(workdir / "eval.json") == "gs://runs/a/vgg16/eval.json"
    assert str(resolve(workdir)) == "gs://runs/a/vgg16"
    assert str(beside(workdir, "vgg11")) == "gs://runs/a/vgg11"
    assert str(beside(workdir, "../b/vgg11")) == "gs://runs/b/vgg11"
    assert str(beside(workdir, "gs://other/vgg11")) == "gs://other/vgg11"
    assert str(beside(workdir, "/disk/vgg11")) == "/disk/vgg11"
    assert str(beside(epath.Path("runs/b"), "gs://other/vgg11")) == "gs://other/vgg11"


def test_files_go_into_a_bucket_and_come_back(bucket: Bucket) -> None:
    folder = parse_path("gs://runs/run")
    write_json(folder / "eval.json", {"top1": 0.5})
    arrays = {"posteriors": np.eye(3, dtype=np.float32), "names": np.array(["a", "b"])}
    save_arrays(folder / "predictions" / "dense.npz", arrays)
    assert read_json(folder / "eval.json") == {"top1": 0.5}
    loaded = load_arrays(folder / "predictions" / "dense.npz", tuple(arrays))
    assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)
    assert bucket.names() == ["run/eval.json", "run/predictions/dense.npz"]


def test_a_write_that_fails_leaves_what_was_there(bucket: Bucket) -> None:
    path = parse_path("gs://runs/run/eval.json")
    write_json(path, 1)

    def stop_in_the_middle() -> None:
        with replacing(path) as partial:
            partial.write_text("2, but only half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert read_json(path) == 1


def test_lines_are_kept_from_flush_to_flush(bucket: Bucket) -> None:
    path = parse_path("gs://runs/run/metrics.jsonl")
    log = LineLog(path, ["1\n"])
    log.append("2\n")
    assert not path.exists()  # a bucket wants no write a step
    log.flush()
    log.append("3\n")
    assert path.read_text() == "1\n2\n"
    log.close()
    assert path.read_text() == "1\n2\n3\n"


def test_of_two_processes_one_has_the_lease(lease: buckets.Lease) -> None:
    other = buckets.Lease("gs://runs/run/lock")
    assert lease.acquire() is None and lease.is_held()
    assert "on host" in (other.acquire() or "") and not other.is_held()
    lease.release()
    assert not lease.is_held()
    assert other.acquire() is None and other.is_held()
    lease.release()  # it is another one's now
    assert other.is_held() and lease.owner() is not None
    other.release()


def test_a_lease_that_is_not_renewed_goes_to_the_next(
    lease: buckets.Lease, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "LEASE_SECONDS", 1.0)
    assert lease.acquire() is None
    time.sleep(1.5)
    other = buckets.Lease("gs://runs/run/lock")
    assert other.acquire() is not None  # it was renewed
    bucket.refuses = lambda method, _: (
        HTTPStatus.FORBIDDEN if method == "PATCH" else None
    )
    time.sleep(2.5)
    assert other.acquire() is None
    other.release()


def test_a_lease_that_another_process_took_is_lost(
    lease: buckets.Lease, bucket: Bucket
) -> None:
    assert lease.acquire() is None
    with bucket.lock:  # the process was stopped for long
        held = bucket.storage.objects["runs"]["run/lock"]
        held["updated"] = "2020-01-01T00:00:00.000000Z"
    lease._renewed -= 2 * buckets.LEASE_SECONDS
    other = buckets.Lease("gs://runs/run/lock")
    assert other.acquire() is None and other.is_held()
    assert not lease.is_held()
    lease.release()
    assert other.owner() is not None
    other.release()


def test_a_lease_of_a_dead_process_of_this_machine_is_free(
    lease: buckets.Lease, bucket: Bucket
) -> None:
    owner = buckets._this_process()
    for pid, is_free in ((owner["pid"], False), (2**22 + 1, True)):
        parse_path("gs://runs/run/lock").write_text(json.dumps(owner | {"pid": pid}))
        assert (lease.owner() is None) == is_free


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_process_elsewhere_shows_that_it_lives(
    is_alive: bool,
    lease: buckets.Lease,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert lease.acquire() is None
    elsewhere = buckets._this_process() | {"host": "elsewhere"}
    monkeypatch.setattr(buckets, "_this_process", lambda: elsewhere)

    def seconds_pass(_: float) -> None:
        if is_alive:
            lease._renew()
        else:
            held = bucket.storage.objects["runs"]["run/lock"]
            held["updated"] = "2020-01-01T00:00:00.000000Z"

    monkeypatch.setattr(buckets.time, "sleep", seconds_pass)
    owner = buckets.Lease("gs://runs/run/lock").owner()
    assert (owner is not None) == is_alive
    assert bucket.names() == (["run/lock"] if is_alive else [])


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (HTTPStatus.FORBIDDEN, "gs://runs: permission denied; give this machine"),
        (HTTPStatus.SERVICE_UNAVAILABLE, "the bucket does not answer (Service Unav"),
        (HTTPStatus.UNAUTHORIZED, "gcloud auth application-default login"),
    ],
)
def test_what_a_bucket_refuses_is_said_in_a_line(
    status: HTTPStatus,
    words: str,
    bucket: Bucket,
    at_once: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket.refuses = lambda *_: status
    assert report(["--workdir", "gs://runs/run"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_bucket_that_is_not_there_is_named(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError) as error:
        write_json(parse_path("gs://nowhere/run/config.json"), {})
    assert buckets.explain(error.value) == (
        "gs://nowhere/run/config.json is not there; is there such a bucket?"
    )


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no data set in web/b/runs/o/1.0.0; prepare it"),
        OSError("Forbidden by the administrator"),
        ValueError("UNAVAILABLE: no such thing"),
    ],
)
def test_other_errors_are_not_taken_for_a_buckets(error: Exception) -> None:
    assert buckets.explain(error) is None


def test_a_busy_bucket_is_asked_again(bucket: Bucket, at_once: None) -> None:
    left = 3

    def refuses(*_: str) -> HTTPStatus | None:
        nonlocal left
        left -= 1
        return HTTPStatus.SERVICE_UNAVAILABLE if left >= 0 else None

    bucket.refuses = refuses
    write_json(parse_path("gs://runs/run/eval.json"), 1)
    assert left < 0 and read_json(parse_path("gs://runs/run/eval.json")) == 1


def test_data_in_a_bucket_are_copied_once(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, png = cv2.imencode(".png", np.zeros((8, 8), np.uint8))
    for name in ("train/a/1", "train/b/1", "train/b/2", "test/a/1", "test/b/1"):
        parse_path(f"gs://runs/data/{name}.png").write_bytes(png.tobytes())
    config = DataConfig(
        dataset="folder", data_dir="gs://runs/data", cache_dir=str(tmp_path)
    )
    assert len(open_source(config, "test")) == 2
    local = tmp_path / "buckets" / "runs" / "data"
    copied = local / "train" / "b" / "2.png"
    copied.write_bytes(b"half")
    kept = (local / "train" / "a" / "1.png").stat().st_ino
    mirror.local_folder.cache_clear()
    source = open_source(config, "train")
    assert len(source) == 3 and source.class_names == ("a", "b")
    assert copied.read_bytes() == png.tobytes()  # the cut one is fetched again
    assert (local / "train" / "a" / "1.png").stat().st_ino == kept


def test_data_that_are_not_in_a_bucket_are_asked_for(
    bucket: Bucket, tmp_path: Path
) -> None:
    config = DataConfig(
        dataset="fashion_mnist", data_dir="gs://runs", cache_dir=str(tmp_path)
    )
    with pytest.raises(FileNotFoundError, match="no data in gs://runs/fashion_mnist"):
        open_source(config, "train")


def test_a_name_that_leads_out_of_the_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bucket keeps such names as they are; a disk follows them."""

    class Store:
        def find(self, folder: str, detail: bool) -> dict[str, dict[str, str]]:
            return {f"{folder}/../../../.bashrc": {"type": "file"}}

    monkeypatch.setattr(mirror.buckets, "file_system", Store)
    with pytest.raises(OSError, match="would be copied to another folder"):
        list(mirror._list("runs/data"))

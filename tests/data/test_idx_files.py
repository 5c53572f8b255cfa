import gzip
import hashlib
import http.server
import shutil
import socketserver
import subprocess
import threading
from pathlib import Path

import pytest

from vgg_jax.data.prepare import idx_files


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that count as the published ones: idx arrays of six bytes."""
    folder = tmp_path / "published"
    folder.mkdir()
    for i, name in enumerate(idx_files.CONTENT_SHA256):
        content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(i, i + 6)])
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(idx_files.CONTENT_SHA256, name, digest)
    return folder


@pytest.fixture
def nothing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No copy on disk, no apt-get, a dead network; returns a folder to work in."""
    monkeypatch.setattr(idx_files, "DEBIAN_FOLDER", "nowhere/at/all")
    monkeypatch.setattr(idx_files.shutil, "which", lambda tool: None)
    monkeypatch.setattr(idx_files, "OFFICIAL_URL", "http://127.0.0.1:9/")
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    return workdir


@pytest.fixture
def debian(published: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """An apt-get that knows a real package only with lists of its own."""
    state = {"calls": [], "error": "E: Unable to locate package"}

    def run(command, *, cwd, **options):
        state["calls"].append(command)
        private = any("Dir::State::Lists" in part for part in command)
        code, error = 0, ""
        if command[0] == "dpkg":
            shutil.copytree(published, cwd / "unpacked" / idx_files.DEBIAN_FOLDER)
        elif "download" in command:
            if state["error"] and not private:
                code, error = 100, state["error"]
            else:
                (cwd / "package.deb").touch()
        return subprocess.CompletedProcess(command, code, "", error)

    monkeypatch.setattr(idx_files.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(idx_files.subprocess, "run", run)
    return state


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(published: Path, monkeypatch: pytest.MonkeyPatch):
    def handler(*arguments):
        return Server(*arguments, directory=str(published))

    monkeypatch.setenv("no_proxy", "*")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()
        thread.join()


def test_read_idx_gzipped_or_not(published):
    name = next(iter(idx_files.CONTENT_SHA256))
    array = idx_files.read_idx(published, name)
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    packed = published / f"{name}.gz"
    (published / name).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert idx_files.read_idx(published, name).tolist() == array.tolist()


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "not gzip"])
def test_damaged_files_are_not_used(published, damage):
    name = next(iter(idx_files.CONTENT_SHA256))
    path = published / f"{name}.gz"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-12])
    elif damage == "flipped":
        content = bytearray(gzip.decompress(data))
        content[-1] ^= 1
        path.write_bytes(gzip.compress(content))
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"<html>moved</html>")
    with pytest.raises(idx_files.Unavailable, match=name):
        idx_files.validate_folder(published)


def test_a_copy_on_disk_comes_first(
    published, nothing_works, debian, server, monkeypatch
):
    monkeypatch.setattr(idx_files, "OFFICIAL_URL", server)
    monkeypatch.setattr(idx_files, "DEBIAN_FOLDER", str(published))
    assert idx_files.find_folder(nothing_works) == published
    assert not debian["calls"]


def test_the_package_comes_before_the_official_download(
    nothing_works, debian, server, monkeypatch
):
    monkeypatch.setattr(idx_files, "OFFICIAL_URL", server)
    debian["error"] = ""
    folder = idx_files.find_folder(nothing_works)
    assert [call[0] for call in debian["calls"]] == ["apt-get", "dpkg"]
    assert folder == nothing_works / "debian" / "unpacked" / idx_files.DEBIAN_FOLDER


@pytest.mark.parametrize("error", ["E: Unable to locate package", "E: 404  Not Found"])
def test_package_lists_that_are_missing_or_old_are_replaced(
    nothing_works, debian, error
):
    debian["error"] = error
    idx_files.validate_folder(idx_files._from_debian(nothing_works))
    assert sum("update" in call for call in debian["calls"]) == 1
    for call in debian["calls"]:
        if "update" in call:  # never the machine's own lists
            assert f"Dir::State::Lists={nothing_works}/debian/lists" in call


def test_a_dead_mirror_is_not_asked_again(nothing_works, debian):
    debian["error"] = "E: Failed to fetch: Connection timed out"
    with pytest.raises(idx_files.Unavailable, match="Connection timed out"):
        idx_files._from_debian(nothing_works)
    assert len(debian["calls"]) == 1


def test_official_download_comes_last(nothing_works, published, server, monkeypatch):
    monkeypatch.setattr(idx_files, "OFFICIAL_URL", server)
    folder = idx_files.find_folder(nothing_works)
    assert folder == nothing_works / "official"
    for path in published.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_wrong_download_is_refused(nothing_works, published, server, monkeypatch):
    monkeypatch.setattr(idx_files, "OFFICIAL_URL", server)
    name = list(idx_files.CONTENT_SHA256)[-1]
    (published / f"{name}.gz").write_bytes(
        gzip.compress(b"a page of a hotel's network")
    )
    with pytest.raises(FileNotFoundError, match=f"{name}.*checksum differs"):
        idx_files.find_folder(nothing_works)


def test_without_any_way_the_error_says_why_and_what_to_type(
    nothing_works, monkeypatch
):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(FileNotFoundError) as caught:
        idx_files.find_folder(nothing_works)
    message = str(caught.value)
    for part in (
        "no folder /nowhere/at/all",
        "no apt-get here",
        "cannot download http://127.0.0.1:9/",
        "train-images-idx3-ubyte.gz",
        "python -m vgg_jax.data.prepare fashion_mnist --from DIR",
    ):
        assert part in message

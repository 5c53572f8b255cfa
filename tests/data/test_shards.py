import contextlib
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from vgg_jax.data import shards as shards_module
from vgg_jax.data.base import CorruptImage
from vgg_jax.data.shards import Shard, Shards

RECORDS = 3  # of a file


def record(shard: int, position: int) -> bytes:
    """Bytes that cannot be compressed."""
    return hashlib.shake_128(f"{shard} {position}".encode()).digest(90)


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[[int], list[Shard]]:
    """(number of files) -> the files, of `RECORDS` records each."""

    def make(count: int) -> list[Shard]:
        made = []
        for number in range(count):
            path = tmp_path / f"shard-{number}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for position in range(RECORDS):
                writer.write(record(number, position))
            writer.close()
            made.append(Shard(path, RECORDS))
        return made

    return make


def open_files(folder: Path) -> int:
    """How many descriptors this process has of files in a folder."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            links.append(link.readlink())
    return sum(folder in path.parents for path in links)


def test_records_are_numbered_through_all_files(make_shards):
    shards = Shards(make_shards(4))
    expected = [record(n, p) for n in range(4) for p in range(RECORDS)]
    assert [shards[i] for i in range(len(shards))] == expected
    assert shards.read_all() == expected
    for number in (-1, len(shards)):
        with pytest.raises(IndexError, match=f"below 12, got {number}"):
            shards[number]


def test_few_files_are_open_at_a_time_and_their_readers_are_closed(
    make_shards, tmp_path, monkeypatch
):
    monkeypatch.setattr(shards_module, "allow_descriptors", lambda: 12)
    shards = Shards(make_shards(9))
    for i in range(len(shards)):
        assert shards[i] == record(*divmod(i, RECORDS))
        assert open_files(tmp_path) <= 3
    assert open_files(tmp_path) == 3
    del shards
    assert open_files(tmp_path) == 0


def test_threads_share_the_files_that_are_open(make_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "allow_descriptors", lambda: 8)
    shards, wrong = Shards(make_shards(9)), []

    def read(first: int) -> None:
        for i in range(400):
            number = (first + i * 7) % len(shards)
            if shards[number] != record(*divmod(number, RECORDS)):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert open_files(tmp_path) == 2


def test_1500_files_can_be_read_with_1024_descriptors(make_shards):
    """As `ulimit -Hn 1024` sets the limit; below it a process may raise its own."""
    files = make_shards(5)
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from vgg_jax.data.shards import Shard, Shards
names = {[str(shard.path) for shard in files]!r}
links = [Path(f"{{names[i % 5]}}-{{i}}") for i in range(1500)]
for i, link in enumerate(links):
    link.symlink_to(names[i % 5])
# Training and test data, both with as many files open as they may have.
sets = [Shards([Shard(link, {RECORDS}) for link in links]) for _ in range(2)]
with ThreadPoolExecutor(16) as pool:
    for shards in sets:
        list(pool.map(shards.__getitem__, range(0, len(shards), {RECORDS})))
print(len(list(Path("/proc/self/fd").iterdir())))
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert 500 < int(done.stdout) < 600


def test_a_missing_file_is_named_before_anything_is_read(make_shards):
    files = make_shards(3)
    files[1].path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*shard-1, one of the 3 "):
        Shards(files)


def test_a_file_that_vanishes_is_no_corrupt_image(make_shards):
    files = make_shards(2)
    shards = Shards(files)
    files[1].path.unlink()
    with pytest.raises(FileNotFoundError, match="shard-1"):
        shards[RECORDS]


def flip(path: Path, content: bytes) -> None:
    """Changes one bit in the middle of what a file holds."""
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_costs_one_record(make_shards):
    files = make_shards(2)
    flip(files[1].path, record(1, 2))
    shards = Shards(files)
    for i in range(5):
        assert shards[i] == record(*divmod(i, RECORDS))
    with pytest.raises(CorruptImage, match=r"cannot read record 2 of .*shard-1: "):
        shards[5]
    with pytest.raises(CorruptImage, match=r"shard-1 is damaged: "):
        shards.read_all()


@pytest.mark.parametrize("size", [3, 100, 2**16, -10, -1])
def test_a_truncated_file_is_named_and_costs_its_own_records(make_shards, size):
    files = make_shards(2)
    path = files[0].path
    path.write_bytes(path.read_bytes()[:size])
    shards = Shards(files)
    message = rf"{path} is damaged: expected 3 records, found \d"
    for i in range(RECORDS):
        with pytest.raises(CorruptImage, match=message):
            shards[i]
    assert shards[RECORDS] == record(1, 0)
    with pytest.raises(CorruptImage, match=message):
        shards.read_all()


def test_a_file_of_more_records_than_its_metadata_say_is_refused(make_shards):
    (file,) = make_shards(1)
    fewer = file._replace(records=RECORDS - 1)
    with pytest.raises(CorruptImage, match=r"expected 2 records, found 3; get the"):
        Shards([fewer])[0]


def test_a_number_of_records_that_no_file_holds_is_refused(make_shards):
    (file,) = make_shards(1)
    message = rf"expected 9999999999999 records in {file.path}, found a file of \d+ b"
    with pytest.raises(ValueError, match=message):
        Shards([Shard(file.path, 9999999999999)])

"""Damaged and malicious files of weights of every format.

A file is read or refused by one line, whatever it holds; nothing in it is run, and
what it declares takes no memory.
"""

import contextlib
import io
import pathlib
import pickle
import resource
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.weights.test_pickle_file import TREE
from vgg_jax.weights import formats

FILES = pathlib.Path(__file__).with_name("files")
# Small files of every format: those in the folder, and what takes a line to write.
SMALL: dict[str, bytes] = {
    path.name: path.read_bytes()
    for path in sorted(FILES.iterdir())
    if path.is_file() and path.suffix not in (".py", ".json")
} | {f"tree{protocol}.pkl": pickle.dumps(TREE, protocol) for protocol in (2, 3, 4, 5)}

MEMORY = 50 * 2**20


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Lets the process take `MEMORY` more bytes; a MemoryError follows."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    taken = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def read_or_refuse(path: pathlib.Path) -> str | None:
    """Reads a file and all its values; returns the line by which it is refused."""
    with little_memory():
        try:
            contents = formats.read(str(path))
        except ValueError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and message.isprintable()
            assert len(message) < 1000
            return message
        for arrays in contents.layers.values():
            for array in arrays.values():
                np.isfinite(array).all()
    return None


@st.composite
def damage(draw: st.DrawFn, data: bytes) -> bytes:
    """Changes, inserts, removes and doubles bytes, and cuts the end off."""
    damaged = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        # What tells the sizes is at the beginning or at the end of most formats.
        end = len(damaged)
        near = min(end, 600)
        place = draw(
            st.integers(0, near) | st.integers(end - near, end) | st.integers(0, end)
        )
        new = draw(
            st.binary(min_size=1, max_size=9)
            | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"9" * 19])
        )
        count = draw(st.integers(1, 40))
        match draw(st.sampled_from(["change", "insert", "remove", "double", "cut"])):
            case "change":
                damaged[place : place + len(new)] = new
            case "insert":
                damaged[place:place] = new
            case "remove":
                del damaged[place : place + count]
            case "double":
                damaged[place:place] = damaged[place : place + count]
            case "cut":
                del damaged[place:]
    return bytes(damaged)


@pytest.mark.parametrize("name", SMALL)
def test_damaged_files_are_read_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / name

    @settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage(SMALL[name]))
    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_or_refuse(path)

    read()


# Pickles, without the protocol before and the end behind. EXECUTED is a shell command.
EXECUTED = b"touch executed"
TEXT = b"X" + len(EXECUTED).to_bytes(4, "little") + EXECUTED
CODE = b"X\x20\0\0\0__import__('os').mkdir('executed')"[:37]
ORDERED = b"ccollections\nOrderedDict\n"
STORAGE = b"X\7\0\0\0storage" + b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HUGE = b"\x8a\x09" + (2**60).to_bytes(9, "little")


def text(value: bytes) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value


def whole(number: int) -> bytes:
    return b"\x8a\x0a" + number.to_bytes(10, "little", signed=True)


def storage(size: bytes, key: bytes = b"0", more: bytes = b"") -> bytes:
    """A persistent id, as PyTorch has for a storage."""
    return b"(" + STORAGE + text(key) + text(b"cpu") + size + more + b"tQ"


def tensor(
    size: int, offset: int, shape: list[int], strides: list[int], more: bytes = b""
) -> bytes:
    """A dictionary with a tensor of one storage."""
    tuples = [b"(" + b"".join(map(whole, values)) + b"t" for values in (shape, strides)]
    part = storage(whole(size), more=more) + whole(offset) + b"".join(tuples)
    return b"}" + text(b"a.weight") + REBUILD + b"(" + part + b"\x89NtRs"


def array(dtype: bytes, shape: list[int], data: bytes) -> bytes:
    """A dictionary with an array of NumPy."""
    made = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\1btR"
    kind = b"cnumpy\ndtype\n(" + text(dtype) + b"\x89\x88tR"
    state = b"(K\1(" + b"".join(map(whole, shape)) + b"t" + kind + b"\x89" + data + b"t"
    return b"}" + text(b"a.weight") + made + state + b"bs"


PICKLES = {
    "a call": b"cposix\nsystem\n(" + TEXT + b"tR",
    "a call by names on the stack": text(b"os")
    + text(b"system")
    + b"\x93("
    + TEXT
    + b"tR",
    "a function of Python": b"cbuiltins\neval\n(" + text(CODE) + b"tR",
    "an attribute of a function": b"ccollections\nOrderedDict.__init__.__globals__\n",
    "an attribute of a function on the stack": text(b"torch._utils._rebuild_tensor_v2")
    + text(b"__globals__")
    + b"\x93",
    "names that are no text": b"NN\x93",
    "an instance": b"(" + TEXT + b"iposix\nsystem\n",
    "an instance of the stack": b"(cposix\nsystem\n" + TEXT + b"o",
    "a new object": ORDERED + b")\x81",
    "a new object by keywords": ORDERED + b")}\x92",
    "an extension": b"\x82\1",
    "a state for a class": ORDERED + b"}" + text(b"__reduce__") + b"Nsb",
    "a state that sets attributes": ORDERED + b"N}" + text(b"update") + b"Ns\x86b",
    "a call of what is no function": TEXT + b"(tR",
    "a call of a storage": b"ctorch\nFloatStorage\n(tR",
    "a call without a tuple": ORDERED + b"NR",
    "a call with too many arguments": ORDERED + b"(]]tR",
    "pairs that are none": ORDERED + b"](NNe\x85R",
    "a persistent id in text": b"P0\n",
    "a persistent id that is no tuple": b"NQ",
    "a persistent id of a module": b"(" + text(b"module") + b"NNNtQ",
    "a storage of no type": b"(" + text(b"storage") + b"NX\0\0\0\0X\0\0\0\0K\1tQ",
    "a storage of minus one": storage(whole(-1)),
    "a storage of True": storage(b"\x88"),
    "a storage of text": storage(text(b"1")),
    "a storage in another": tensor(1, 0, [1], [1], text(b"1") + b"K\0K\1\x87"),
    "a storage of two sizes": tensor(2, 0, [2], [1])
    + text(b"b")
    + tensor(1, 0, [1], [1])
    + b"s",
    "a storage of a path": storage(whole(1), b"../../etc/passwd"),
    "a huge storage": tensor(2**60, 0, [2**60], [1]),
    "a huge tensor": tensor(1, 0, [2**60], [0]),
    "a huge and empty tensor": tensor(1, 0, [2**60, 2**60, 0], [1, 1, 1]),
    "a tensor of huge strides": tensor(1, 0, [1], [2**70]),
    "a tensor far away": tensor(1, 2**70, [1], [1]),
    "a tensor before its storage": tensor(1, -1, [1], [1]),
    "a tensor backwards": tensor(1, 0, [2], [-1]),
    "a tensor of more strides than axes": tensor(1, 0, [1], [1, 1]),
    "a tensor of too many axes": tensor(1, 0, [1] * 20, [1] * 20),
    "a tensor without a storage": REBUILD + b"(NNNNtR",
    "an array of objects": array(b"O8", [1], b"C\10" + bytes(8)),
    "an array of wide values": array(b"V1000000000", [1], b"C\0"),
    "an array of no type": array(b"f4,(1000000000)f4", [1], b"C\0"),
    "a huge array": array(b"f4", [2**60], b"C\4" + bytes(4)),
    "a huge and empty array": array(b"f4", [2**60, 2**60, 0], b"C\0"),
    "an array below zero": array(b"f4", [-1, -1], b"C\4" + bytes(4)),
    "an array of no bytes": array(b"f4", [1], b"N"),
    "a place far in the memo": b"}r\xff\xff\xff\x7f",
    "a place in the memo that is empty": b"j\xff\xff\xff\x7f",
    "a mark that is not there": b"t",
    "nothing on the stack": b"",
    "a tuple of nothing": b"\x87",
    "a list in itself": b"]q\0h\0a",
    "a dictionary in itself": b"}q\0" + text(b"a") + b"h\0s",
    "a deep tuple as a key": b"}N" + b"\x85" * 50_000 + b"Ns",
    "deep lists": b"]" * 10_000 + b"a" * 9_999,
    "deep dictionaries": (b"}" + text(b"a")) * 5_000 + b"}" + b"s" * 5_000,
    "a tuple that doubles": b"N" + b"q\0h\0\x86" * 500,
    "a tuple that doubles, as a key": b"}N" + b"q\0h\0\x86" * 100 + b"Ns",
    "a dictionary that doubles": b"}"
    + b"".join(
        b"q\0}" + text(b"a") + b"h\0s" + text(b"b") + b"h\0s" for _ in range(18)
    ),
    "a dictionary that doubles often": b"}" + b"q\0}X\1\0\0\0ah\0sX\1\0\0\0bh\0s" * 60,
    "a long name of many": b"}" + text(b"a" * 10**6) + b"}s",
    "a huge text": b"\x8d" + (2**60).to_bytes(8, "little") + b"a",
    "huge bytes": b"\x8e" + (2**60).to_bytes(8, "little") + b"a",
    "a huge array of bytes": b"\x96" + (2**40).to_bytes(8, "little") + b"a",
    "a huge frame": b"\x95" + (2**60).to_bytes(8, "little") + b"N",
    "a huge number": b"\x8b\xff\xff\xff\x7f1",
    "a long number": b"I" + b"9" * 100_000 + b"\n",
    "a long global": b"c" + b"a" * 10**6 + b"\n" + b"b" * 10**6 + b"\n",
    "a name with a line break": text(b"os\nsystem\x1b[2J") + text(b"a") + b"\x93",
    "text that is none": b"X\1\0\0\0\xff",
    "an unknown instruction": b"\xff",
}


def as_pickle(data: bytes) -> bytes:
    return b"\x80\4" + data + b"."


def as_stream(data: bytes) -> bytes:
    first = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
    size = (2**60).to_bytes(8, "little")
    return first + b"\x80\2" + data + b"." + pickle.dumps(["0"], 2) + size + bytes(64)


def as_zip(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\2" + data + b".")
        archive.writestr("a/data/0", bytes(64))
    return file.getvalue()


@pytest.mark.parametrize("carrier", [as_pickle, as_stream, as_zip])
@pytest.mark.parametrize("name", PICKLES)
def test_malicious_pickles_are_refused(
    name: str,
    carrier: object,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights"
    path.write_bytes(carrier(PICKLES[name]))  # type: ignore[operator]
    assert read_or_refuse(path) is not None
    assert list(tmp_path.iterdir()) == [path]


def test_a_pickle_without_end_takes_no_memory(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(
        as_pickle(b"]\x94" * 10**6)
    )  # lists, each with a place in the memo
    assert "at most 250,000 instructions" in (read_or_refuse(path) or "")


def test_the_name_of_what_a_pickle_wants_is_in_the_message(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "weights"
    for name in ("a call", "a call by names on the stack"):
        path.write_bytes(as_stream(PICKLES[name]))
        assert "system'" in (read_or_refuse(path) or "")
    path.write_bytes(as_stream(PICKLES["an instance"]))
    assert "INST 'posix system'" in (read_or_refuse(path) or "")


def zipped(*entries: tuple[str, bytes], compression: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


STATE = b"\x80\2" + tensor(16, 0, [16], [1]) + b"."
ZEROS = bytes(64)
GOOD = zipped(("a/data.pkl", STATE), ("a/data/0", ZEROS))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_malicious_zip_files_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(GOOD)
    assert read_or_refuse(path) is None
    # The pickle of a bomb would have gigabytes.
    bomb = zipped(("a/data.pkl", STATE), ("a/data/0", bytes(10**7)), compression=8)
    twice = zipped(("a/data.pkl", STATE), ("a/data/0", ZEROS), ("a/data/0", ZEROS))
    size = (64).to_bytes(4, "little")
    end = GOOD.rindex(size + size)  # in the directory
    large = GOOD[:end] + b"\xfe\xff\xff\x7f" * 2 + GOOD[end + 8 :]
    unequal = GOOD[:end] + b"\xfe\xff\xff\x7f" + GOOD[end + 4 :]
    outside = zipped(("../../data.pkl", STATE), ("../../data/1", ZEROS))
    for data in (bomb, twice, large, unequal, outside, zipped(("b", b""))):
        path.write_bytes(data)
        assert read_or_refuse(path) is not None
    assert list(tmp_path.iterdir()) == [path]

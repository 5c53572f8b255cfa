"""This module reads a pickle as data: what it builds are containers, numbers and text.

Python's own unpickler can be forbidden to call anything, but not to take gigabytes for
a file of eleven bytes (a number in its memo) or to end the process (the hash of a
deeply nested tuple). So this one looks at each instruction, as the standard library's
`pickletools` decodes it, and follows those that a writer of arrays uses.
"""

import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NamedTuple, TypeGuard, TypeVar

from vgg_jax.weights.contents import Refusal
from vgg_jax.weights.readers.mapped import MOST_AXES

# A training state of a large network has a tenth as many; each can take 150 bytes.
MOST_INSTRUCTIONS = 250_000
# What a tree of dictionaries can have.
MOST_ENTRIES, DEEPEST, LONGEST_NAME = 20_000, 20, 500

Leaf = TypeVar("Leaf")


class Global(NamedTuple):
    """The name of a function or a class in a pickle, such as `torch.FloatStorage`."""

    name: str


class Built(ABC):
    """What a pickle makes in two steps: by a call, then by a state that it is given."""

    @abstractmethod
    def build(self, state: object) -> None:
        """Takes the state."""


# What is called in place of a function or class that a pickle names; None for one that
# it may name and not call.
Rebuilder = Callable[..., object] | None

_CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINSTRING", "SHORT_BINSTRING"),  # text of Python 2
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unpickle(
    stream: IO[bytes],
    rebuilders: Mapping[str, Rebuilder],
    load_persistent: Callable[[object], object] | None = None,
) -> object:
    """Reads one pickle, and leaves the stream behind it.

    Args:
        stream: the bytes of the pickle, of protocol 2 or later.
        rebuilders: by the names of the functions and classes that the pickle may name:
            what makes a value of their arguments in their place.
        load_persistent: makes a value of what the pickle calls a persistent id.

    Raises:
        ValueError: the pickle names something else, has an instruction that arrays do
            not need, or is damaged; damage can raise `LookupError` or `TypeError` too.
    """
    marks: list[list[object]] = []
    stack: list[object] = []
    memo: dict[int, object] = {}
    argument: Any
    copied = 0
    for count, (opcode, argument, place) in enumerate(pickletools.genops(stream)):
        if count == MOST_INSTRUCTIONS:
            raise Refusal(
                f"expected a pickle of at most {MOST_INSTRUCTIONS:,} instructions; "
                "save the arrays alone"
            )
        name = opcode.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name in ("PROTO", "FRAME"):
            continue
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name == "TUPLE":
            items, stack = stack, marks.pop()
            stack.append(tuple(items))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "APPEND":
            value = stack.pop()
            _list(stack[-1]).append(value)
        elif name == "APPENDS":
            items, stack = stack, marks.pop()
            _list(stack[-1]).extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [(key, value)])
        elif name == "SETITEMS":
            items, stack = stack, marks.pop()
            _set_items(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_allowed(argument.replace(" ", ".", 1), rebuilders))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_allowed(f"{_text(module)}.{_text(attribute)}", rebuilders))
        elif name == "BINPERSID" and load_persistent is not None:
            stack.append(load_persistent(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            copied = _count_copied(copied, arguments, place or 0)
            stack.append(_call(function, arguments, rebuilders))
        elif name == "BUILD":
            state = stack.pop()
            target = stack[-1]
            copied = _count_copied(copied, state, place or 0)
            if isinstance(target, Built):
                target.build(state)
            elif not isinstance(target, dict):  # PyTorch's have `_metadata`
                raise Refusal("expected a state for an array or a dictionary")
        elif name == "STOP":
            return stack.pop()
        else:
            raise Refusal(
                f"the pickle has the instruction {name} {argument or ''!r:.100}, which "
                "arrays do not need; nothing of it was run. It is damaged, or holds "
                "other things than arrays: save the arrays alone"
            )
    raise Refusal("the pickle has no end; the file is damaged or not whole")


def _count_copied(copied: int, arguments: object, place: int) -> int:
    """Adds up the text and the lists that calls copy, and returns the new sum.

    A pickle that gives the same text to many calls would take far more memory than it
    has bytes. Short ones, such as names, are not counted.

    Raises:
        ValueError: they are more than the bytes of the stream before `place`.
    """
    for value in arguments if isinstance(arguments, tuple) else ():
        if isinstance(value, str | list | tuple) and len(value) > LONGEST_NAME:
            copied += len(value)
    if copied > place:
        raise Refusal(
            f"the pickle makes {copied:,} values of {place:,} bytes; it is damaged or "
            "malicious"
        )
    return copied


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise Refusal("expected a list to append to")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refusal("expected the name of a global as text")
    return value


def _set_items(target: object, items: Iterable[tuple[object, object]]) -> None:
    """Puts pairs into a dictionary whose keys are text or numbers.

    The hash of a tuple can take time and stack without bound.
    """
    if not isinstance(target, dict):
        raise Refusal("expected a dictionary to put items into")
    for key, value in items:
        if not isinstance(key, str | int | float | None):
            raise Refusal("expected text or numbers as keys of a dictionary")
        target[key] = value


def _allowed(name: str, rebuilders: Mapping[str, Rebuilder]) -> Global:
    if name not in rebuilders:
        raise Refusal(
            f"the pickle wants {name!r:.100}, which is no array; nothing of it was "
            "run. Save the arrays alone (in PyTorch the state_dict)"
        )
    return Global(name)


def _call(
    function: object, arguments: object, rebuilders: Mapping[str, Rebuilder]
) -> object:
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise Refusal("expected a call of a function with a tuple of arguments")
    rebuilder = rebuilders[function.name]
    if rebuilder is None:
        raise Refusal(f"expected {function.name} to be named, not called")
    return rebuilder(*arguments)


def make_ordered_dict(items: object = ()) -> dict[object, object]:
    """Stands in for `collections.OrderedDict`, which takes pairs in a list."""
    made: dict[object, object] = {}
    if not isinstance(items, list | tuple):
        raise Refusal("expected a list of pairs for an OrderedDict")
    for item in items:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise Refusal("expected a list of pairs for an OrderedDict")
        _set_items(made, [(item[0], item[1])])
    return made


def are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    """Returns whether a value of a pickle can be an array's shape or strides."""
    return (
        isinstance(value, tuple)
        and len(value) <= MOST_AXES
        and all(map(is_size, value))
    )


def is_size(value: object) -> TypeGuard[int]:
    """Returns whether a value of a pickle is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def flatten(tree: object, leaf: type[Leaf], separator: str) -> dict[str, Leaf]:
    """Names the leaves of nested dictionaries; other entries are left out.

    Args:
        tree: the dictionaries.
        leaf: the class of the leaves.
        separator: what stands between the keys in a name.

    Raises:
        ValueError: there are more entries, levels or letters than weights have.
    """
    leaves: dict[str, Leaf] = {}
    level: list[tuple[str, object]] = [("", tree)]
    entries = 0
    for _ in range(DEEPEST):
        below: list[tuple[str, object]] = []
        for prefix, node in level:
            for key, value in node.items() if isinstance(node, dict) else ():
                entries += 1
                name = f"{prefix}{key}"
                if entries > MOST_ENTRIES or len(name) > LONGEST_NAME:
                    raise Refusal(
                        f"expected at most {MOST_ENTRIES:,} entries, with names of at "
                        f"most {LONGEST_NAME} characters"
                    )
                if isinstance(value, leaf):
                    leaves[name] = value
                elif isinstance(value, dict):
                    below.append((name + separator, value))
        level = below
    if level:
        raise Refusal(f"expected at most {DEEPEST} dictionaries within another")
    return leaves

"""Reads from the HLO text of a compiled program what the program costs.

`compiled.as_text()` has a line an instruction, and beside it the layer whose operation
it is ("op_name"). The TPU compiler also writes its own estimate of the cycles of most
of them ("estimated_cycles"); of a program for a GPU the bytes can be counted that each
kernel reads and writes.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Instructions that do nothing themselves, or whose time is hidden behind others'.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "custom-call",
    "copy-start",
    "copy-done",
    "slice-start",
    "slice-done",
    "async-start",
    "async-update",
    "async-done",
}
# Instructions of a program for a GPU that run no kernel of their own.
_NO_KERNEL = _FREE - {"custom-call"} | {"after-all", "partition-id"}
# What multiplies matrices on a GPU: a call of a library, or a fusion of one of these.
_LIBRARIES = re.compile(r'custom_call_target="__(cudnn|cublas)')
_PRODUCTS = {"dot", "convolution"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_NOTABLE_BYTES = 2**20  # results below this are not worth a warning
# Words of a source name that say how a function was transformed, not what it is.
_WRAPPERS = re.compile(
    r"jit|jvp|transpose|vmap|cond|while|body|closed_call|branch_\d+_fun|checkpoint|"
    r"remat\w*|shard_map|"
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
# An array with its layout, "bf16[32,56,64]{2,0,1:T(8,128)(2,1)S(1)}": the dimensions
# from the innermost on, the tile of the innermost ones, and a memory that is not HBM.
_ARRAY = re.compile(
    r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?[^}]*?(S\([1-9]\d*\))?\})?"
)
_LAYOUT = re.compile(r"\{[^}]*\}|/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that takes time.

    Args:
        source: the layer and the JAX operation, "conv1_1/conv_general_dilated".
        result: the type and shape of what it computes, "bf16[32,224,224,64]".
        cycles: the compiler's estimate for all executions together.
        executions: how often it runs; in a loop more than once.
    """

    source: str
    result: str
    cycles: int
    executions: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """All instructions of one kind that combine arrays of several chips.

    Args:
        kind: one of `COLLECTIVES`.
        count: how many there are.
        bytes: the size of the whole arrays that they combine on one chip.
    """

    kind: str
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Unestimated:
    """All instructions of one opcode whose cycles the compiler does not estimate.

    Args:
        opcode: what they are, "select-and-scatter".
        count: how many there are.
        bytes: what they must at least read from memory (HBM) and write to it, for all
            executions together, tiles that are not full counted whole.
    """

    opcode: str
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one execution of a program costs on one chip.

    Args:
        operations: the instructions with an estimate, the costliest first.
        collectives: what is combined with other chips, a value a kind.
        without_estimate: the instructions without an estimate that give a mebibyte or
            more, a value an opcode.
        unknown_loops: how many loops do not tell how often they turn; each is counted
            as one turn.
    """

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    without_estimate: tuple[Unestimated, ...]
    unknown_loops: int

    @property
    def cycles(self) -> int:
        """The sum of the compiler's estimates, as if nothing overlapped."""
        return sum(operation.cycles for operation in self.operations)

    @property
    def bytes_without_estimate(self) -> int:
        """The memory traffic of all that has no estimate, in bytes."""
        return sum(one.bytes for one in self.without_estimate)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction of a program for a GPU.

    Args:
        source: the layer and the JAX operation, "conv1_1/conv_general_dilated".
        result: the type and shape of what it computes.
        is_product: whether it is a convolution or a product of matrices.
        bytes: what it reads from memory and writes to it, for all executions together,
            each array once; of one of which it takes slices, these.
    """

    source: str
    result: str
    is_product: bool
    bytes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    rest: str  # operands and attributes as they stand

    def called(self, attribute: str) -> str | None:
        match = re.search(rf"\b{attribute}=%?([\w.-]+)", self.rest)
        return match and match[1]


def program_costs(text: str) -> Costs:
    """Adds up what an HLO module's entry computation costs, loops turn by turn.

    Raises:
        ValueError: the text is not that of a compiled module.
    """
    computations, entry = _parse(text)
    operations = []
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    without: Counter[str] = Counter()
    traffic: Counter[str] = Counter()
    unknown_loops = 0
    for instruction, fused, times in _executed(computations, entry, 1):
        if instruction.opcode == "while":
            unknown_loops += _turns(computations, instruction) is None
        kind = _collective(instruction)
        if kind:
            counts[kind] += times
            sizes[kind] += times * _combined(instruction, computations)
        if fused or kind:
            continue
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        if estimate:
            operations.append(
                Operation(
                    source=_source(instruction),
                    result=_LAYOUT.sub("", instruction.result),
                    cycles=times * int(estimate[1]),
                    executions=times,
                )
            )
        elif (
            instruction.opcode not in _FREE
            and _bytes(instruction.result) >= _NOTABLE_BYTES
        ):
            without[instruction.opcode] += times
            traffic[instruction.opcode] += times * _traffic(instruction, computations)
    return Costs(
        operations=tuple(sorted(operations, key=lambda o: -o.cycles)),
        collectives=tuple(
            Collective(kind, counts[kind], sizes[kind])
            for kind in COLLECTIVES
            if counts[kind]
        ),
        without_estimate=tuple(
            Unestimated(opcode, count, traffic[opcode])
            for opcode, count in without.items()
        ),
        unknown_loops=unknown_loops,
    )


def kernels(text: str) -> tuple[Kernel, ...]:
    """Returns the kernels of an HLO module for a GPU but for collectives, in order.

    Raises:
        ValueError: the text is not that of a compiled module.
    """
    computations, entry = _parse(text)
    found = []
    for instruction, fused, times in _executed(computations, entry, 1):
        opcode = instruction.opcode
        kind = opcode.removesuffix("-start")
        done = opcode.endswith("-done")
        if fused or done or opcode in _NO_KERNEL or kind in COLLECTIVES:
            continue
        inner = computations.get(instruction.called("calls") or "", [])
        found.append(
            Kernel(
                source=_source(instruction),
                result=_LAYOUT.sub("", instruction.result),
                is_product=opcode in _PRODUCTS
                or _LIBRARIES.search(instruction.rest) is not None
                or any(one.opcode in _PRODUCTS for one in inner),
                bytes=times * _moved(instruction, inner, computations),
            )
        )
    return tuple(found)


def _moved(
    instruction: _Instruction,
    inner: list[_Instruction],
    computations: dict[str, list[_Instruction]],
) -> int:
    """Returns the bytes that a kernel reads and writes: each array, or its slices.

    Args:
        instruction: the kernel.
        inner: the instructions of a fusion, the last of which makes the result.
        computations: those of the program.
    """
    if instruction.opcode.endswith("-start"):
        # Its body is one instruction; where it has none, its result has the operands.
        body = [i for i in inner if i.opcode != "parameter"]
        if len(body) != 1:
            return _bytes(instruction.result)
        inner = computations.get(body[0].called("calls") or "", [])
        return _moved(body[0], inner, computations)
    written = _bytes(instruction.result)
    if not inner:  # an instruction by itself is the body of its own
        inner = [instruction]
        names = instruction.operands
    else:
        parameters = {
            i.rest.partition(")")[0]: i.name for i in inner if i.opcode == "parameter"
        }
        names = tuple(parameters[str(k)] for k in range(len(instruction.operands)))
    if inner[-1].opcode == "dynamic-update-slice":
        # In place: the update is all that is written.
        update = inner[-1].operands[1]
        types = {i.name: i.result for i in inner}
        operands = _operands(instruction, computations)
        types |= dict(zip(names, operands, strict=True))
        written = _bytes(types[update])
    return written + sum(
        min(_bytes(whole), _bytes_read(name, whole, inner))
        for name, whole in zip(names, _operands(instruction, computations), strict=True)
    )


def _bytes_read(name: str, whole: str, inner: list[_Instruction]) -> int:
    """Returns the bytes that a fusion reads of an operand, of which it may take slices.

    Args:
        name: of the operand inside of the fusion.
        whole: its type.
        inner: the fusion's instructions.
    """
    total = 0
    for user in inner:
        if name not in user.operands:
            continue
        is_first = user.operands.index(name) == 0
        if is_first and user.opcode in _SLICES:
            total += _bytes(user.result)
        elif user.opcode == "bitcast":
            total += _bytes_read(user.name, whole, inner)
        elif not (is_first and user.opcode == "dynamic-update-slice"):
            return _bytes(whole)
    return total


def _source(instruction: _Instruction) -> str:
    """Returns the source of an instruction, or its own name where it tells none."""
    name = re.search(r'op_name="([^"]*)"', instruction.rest)
    return source_name(name[1]) if name else instruction.name


def source_name(op_name: str) -> str:
    """Returns the layer and the JAX operation that an HLO operation's name tells.

    "jit(step)/transpose(jvp(conv1_1))/dot" -> "conv1_1/dot (gradient)".
    """
    words = re.split(r"[/()]+", op_name)
    if words[0] == "jit":
        words = words[2:]  # the program's own name says nothing
    kept = "/".join(word for word in words if not _WRAPPERS.fullmatch(word))
    return f"{kept or op_name} (gradient)" if "transpose(" in op_name else kept


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns each computation's instructions by its name, and the entry's name.

    Raises:
        ValueError: the text is not that of a compiled module.
    """
    computations: dict[str, list[_Instruction]] = {}
    entry = None
    current: list[_Instruction] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif match := _INSTRUCTION.match(line):
            _, name, result, opcode, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", rest.partition(")")[0]))
            current.append(_Instruction(name, opcode, result, operands, rest))
    if entry is None:
        raise ValueError("expected the text of a compiled HLO module, found no ENTRY")
    return computations, entry


def _executed(
    computations: dict[str, list[_Instruction]], name: str, times: int
) -> Iterator[tuple[_Instruction, bool, int]]:
    """Yields all instructions that a computation runs, also in those that it calls.

    Each comes with whether it is inside a fusion, and with how often it runs.
    """
    for instruction in computations.get(name, []):
        yield instruction, False, times
        inner, fused, turns = [], False, times
        match instruction.opcode:
            case "while":
                inner = [instruction.called("body")]
                turns = times * (_turns(computations, instruction) or 1)
            case "call":
                inner = [instruction.called("to_apply")]
            case "conditional":  # the branches' sum, not knowing which one is taken
                branches = re.search(r"branch_computations=\{(.*?)\}", instruction.rest)
                inner = re.findall(r"[\w.-]+", branches[1]) if branches else []
                inner += re.findall(
                    r"\b(?:true|false)_computation=%?([\w.-]+)", instruction.rest
                )
            case "fusion" | "async-start":
                inner = [instruction.called("calls")]
                fused = instruction.opcode == "fusion"
        for callee in inner:
            for below, within, count in _executed(computations, callee or "", turns):
                yield below, fused or within, count


def _turns(
    computations: dict[str, list[_Instruction]], loop: _Instruction
) -> int | None:
    """Returns how often a loop turns, or None where the text does not tell.

    It is told for a loop that counts from 0 to a constant, as `jax.lax.scan` makes.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = computations.get(loop.called("condition") or "", [])
    limits = [i.rest.partition(")")[0] for i in condition if i.opcode == "constant"]
    counts_up = any(
        i.opcode == "compare" and "direction=LT" in i.rest for i in condition
    )
    return int(limits[0]) if len(limits) == 1 and counts_up else None


def _collective(instruction: _Instruction) -> str | None:
    """Returns a collective's kind; an asynchronous one counts where it is done."""
    opcode = instruction.opcode.removesuffix("-done")
    return opcode if opcode in COLLECTIVES else None


def _combined(
    instruction: _Instruction, computations: dict[str, list[_Instruction]]
) -> int:
    """Returns the bytes of the whole arrays that a collective combines.

    The result of a reduce-scatter is only a part of them.
    """
    if instruction.opcode != "reduce-scatter":
        return _bytes(instruction.result)
    return sum(map(_bytes, _operands(instruction, computations)))


def _operands(
    instruction: _Instruction, computations: dict[str, list[_Instruction]]
) -> list[str]:
    """Returns the types of what an instruction takes, as `result` has them."""
    (computation,) = (c for c in computations.values() if instruction in c)
    types = {i.name: i.result for i in computation}
    return [types[name] for name in instruction.operands]


def _traffic(
    instruction: _Instruction, computations: dict[str, list[_Instruction]]
) -> int:
    """Returns the bytes of HBM that an instruction's operands and result take."""
    arrays = [instruction.result, *_operands(instruction, computations)]
    return sum(map(_bytes_in_memory, arrays))


def _bytes_in_memory(types: str) -> int:
    """Returns the bytes that arrays take of HBM, with the padding of their tiles.

    "bf16[32,56,64]{2,0,1:T(8,128)(2,1)}" -> 32 x 56 x 128 x 2. An array in another
    memory, as S(1) says, takes none.
    """
    total = 0
    for dtype, sides, order, tile, elsewhere in _ARRAY.findall(types):
        if elsewhere:
            continue
        lengths = [int(side) for side in sides.split(",") if side]
        dimensions = [int(d) for d in order.split(",") if d]
        tiles = [int(side) for side in tile.split(",") if side]
        for dimension, side in zip(dimensions, reversed(tiles), strict=False):
            lengths[dimension] = -(-lengths[dimension] // side) * side
        total += math.prod(lengths) * _bits(dtype) // 8
    return total


def _bytes(shapes: str) -> int:
    """Returns the bytes of one or several arrays: "(f32[2,3]{1,0}, pred[])" -> 25."""
    return sum(
        math.prod(map(int, filter(None, sides.split(",")))) * _bits(dtype) // 8
        for dtype, sides in _SHAPE.findall(shapes)
    )


def _bits(dtype: str) -> int:
    """Returns the bits of a type: "bf16" -> 16, "f8e4m3fn" -> 8, "token" -> 0."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8 * (dtype == "pred")

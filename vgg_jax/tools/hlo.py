"""What a program compiled for TPU does, from the text of its HLO alone.

`compiled.as_text()` has a line an instruction. The compiler writes its own estimate of
the cycles beside most of them ("estimated_cycles"), and the layer whose operation it is
("op_name").
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
_NOTABLE_BYTES = 2**20  # results below this are not worth a warning
# Words of a source name that say how a function was transformed, not what it is.
_WRAPPERS = re.compile(
    r"jit|jvp|transpose|vmap|cond|while|body|closed_call|branch_\d+_fun|checkpoint|"
    r"remat\w*|shard_map|"
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_LAYOUT = re.compile(r"\{[^}]*\}|/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that takes time."""

    source: str  # the layer and the JAX operation: "conv1_1/conv_general_dilated"
    result: str  # "bf16[32,224,224,64]"
    cycles: int  # of all its executions
    executions: int  # more than one in a loop


@dataclasses.dataclass(frozen=True)
class Collective:
    """Instructions of one kind that combine arrays of several chips."""

    kind: str  # one of `COLLECTIVES`
    count: int
    bytes: int  # of the whole arrays that they combine on one chip


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one execution of a program on one chip."""

    operations: tuple[Operation, ...]  # the costliest first
    collectives: tuple[Collective, ...]
    without_estimate: dict[str, int]  # opcodes of a mebibyte or more, and how many
    unknown_loops: int  # whose turns the text does not tell: counted as one

    @property
    def cycles(self) -> int:
        """The sum of the compiler's estimates, as if nothing overlapped."""
        return sum(operation.cycles for operation in self.operations)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    rest: str  # operands and attributes as they stand

    def called(self, attribute: str) -> str | None:
        found = re.search(rf"\b{attribute}=%?([\w.-]+)", self.rest)
        return found and found[1]


def costs(text: str) -> Costs:
    """What the entry computation of an HLO module costs, loops turn by turn.

    Raises:
        ValueError: not the text of a compiled module.
    """
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError("expected the text of a compiled HLO module, found no ENTRY")
    operations = []
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    without: Counter[str] = Counter()
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
            name = re.search(r'op_name="([^"]*)"', instruction.rest)
            operations.append(
                Operation(
                    source=source_name(name[1]) if name else instruction.name,
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
    return Costs(
        operations=tuple(sorted(operations, key=lambda o: -o.cycles)),
        collectives=tuple(
            Collective(kind, counts[kind], sizes[kind])
            for kind in COLLECTIVES
            if counts[kind]
        ),
        without_estimate=dict(without),
        unknown_loops=unknown_loops,
    )


def source_name(op_name: str) -> str:
    """ "jit(step)/transpose(jvp(conv1_1))/dot" -> "conv1_1/dot (gradient)"."""
    words = re.split(r"[/()]+", op_name)
    if words[0] == "jit":
        words = words[2:]  # the program's own name says nothing
    kept = "/".join(word for word in words if not _WRAPPERS.fullmatch(word))
    return f"{kept or op_name} (gradient)" if "transpose(" in op_name else kept


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str | None]:
    """Instructions of each computation by its name, and the name of the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry = None
    current: list[_Instruction] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            _, name, result, opcode, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", rest.partition(")")[0]))
            current.append(_Instruction(name, opcode, result, operands, rest))
    return computations, entry


def _executed(
    computations: dict[str, list[_Instruction]], name: str, times: int
) -> Iterator[tuple[_Instruction, bool, int]]:
    """(instruction, whether inside a fusion, executions) from a computation down."""
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
            case "fusion" | "async-start":
                inner = [instruction.called("calls")]
                fused = instruction.opcode == "fusion"
        for callee in inner:
            for found, within, count in _executed(computations, callee or "", turns):
                yield found, fused or within, count


def _turns(
    computations: dict[str, list[_Instruction]], loop: _Instruction
) -> int | None:
    """Turns of a loop that counts from 0 to a constant, as `jax.lax.scan` makes."""
    condition = computations.get(loop.called("condition") or "", [])
    limits = [i.rest.partition(")")[0] for i in condition if i.opcode == "constant"]
    counts_up = any(
        i.opcode == "compare" and "direction=LT" in i.rest for i in condition
    )
    return int(limits[0]) if len(limits) == 1 and counts_up else None


def _collective(instruction: _Instruction) -> str | None:
    """Its kind; asynchronous ones count where they are done."""
    opcode = instruction.opcode.removesuffix("-done")
    return opcode if opcode in COLLECTIVES else None


def _combined(
    instruction: _Instruction, computations: dict[str, list[_Instruction]]
) -> int:
    """Bytes of the whole arrays: a reduce-scatter's result is only a part of them."""
    result = _bytes(instruction.result)
    if instruction.opcode != "reduce-scatter":
        return result
    (around,) = (c for c in computations.values() if instruction in c)
    given = {i.name: _bytes(i.result) for i in around}
    return sum(given[name] for name in instruction.operands)


def _bytes(shapes: str) -> int:
    """Of an array or a tuple of arrays: "(f32[2,3]{1,0}, pred[])" -> 25."""
    return sum(
        math.prod(map(int, filter(None, sides.split(",")))) * _bits(dtype) // 8
        for dtype, sides in _SHAPE.findall(shapes)
    )


def _bits(dtype: str) -> int:
    """ "bf16" -> 16, "f8e4m3fn" -> 8; what has no size, such as a token, has none."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8 * (dtype == "pred")

"""Reads from the HLO text of a program compiled for TPU what the program costs.

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
class Costs:
    """What one execution of a program costs on one chip.

    Args:
        operations: the instructions with an estimate, the costliest first.
        collectives: what is combined with other chips, a value a kind.
        without_estimate: how many instructions of each opcode give a mebibyte or more
            and have no estimate.
        unknown_loops: how many loops do not tell how often they turn; each is counted
            as one turn.
    """

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    without_estimate: dict[str, int]
    unknown_loops: int

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
        match = re.search(rf"\b{attribute}=%?([\w.-]+)", self.rest)
        return match and match[1]


def program_costs(text: str) -> Costs:
    """Adds up what an HLO module's entry computation costs, loops turn by turn.

    Raises:
        ValueError: the text is not that of a compiled module.
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
    """Returns the layer and the JAX operation that an HLO operation's name tells.

    "jit(step)/transpose(jvp(conv1_1))/dot" -> "conv1_1/dot (gradient)".
    """
    words = re.split(r"[/()]+", op_name)
    if words[0] == "jit":
        words = words[2:]  # the program's own name says nothing
    kept = "/".join(word for word in words if not _WRAPPERS.fullmatch(word))
    return f"{kept or op_name} (gradient)" if "transpose(" in op_name else kept


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str | None]:
    """Returns each computation's instructions by its name, and the entry's name."""
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
    result = _bytes(instruction.result)
    if instruction.opcode != "reduce-scatter":
        return result
    (computation,) = (c for c in computations.values() if instruction in c)
    sizes = {i.name: _bytes(i.result) for i in computation}
    return sum(sizes[name] for name in instruction.operands)


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

"""The text of an optimised module: its operations and their HBM traffic."""

import math
import re
from typing import NamedTuple

_COMMENT = re.compile(r"/\*.*?\*/")
_COMPUTATION = re.compile(r"^(ENTRY )?%([^\s(]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)(.*)")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAMES = re.compile(r"%([\w.\-]+)")
_SOME = {"gather", "dynamic-slice", "slice", "slice-start"}
"""The opcodes that read as many bytes of an operand as they return."""

_IN_PLACE = "dynamic-update-slice"


class Operation(NamedTuple):
    """An instruction of a computation.

    Attributes:
      name: the name, which is also that of its dump.
      opcode: "fusion", "copy", ...
      result: the text of its shape, with layout and memory space.
      operands: the names of its operands, or the number of a parameter.
      rest: the text of its attributes.
    """

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    rest: str

    def calls(self, attribute: str) -> tuple[str, ...]:
        """Returns the names of computations: the body of a loop, the branches of a conditional."""
        match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return tuple(_NAMES.findall(match[1])) if match else ()

    @property
    def source(self) -> str:
        """Returns the last part of the path of the JAX operation that it is from."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return "/".join(match[1].split("/")[-2:]) if match else ""


class Module(NamedTuple):
    """The operations of each computation by name, in execution order."""

    entry: str
    computations: dict[str, dict[str, Operation]]


def parse(text: str) -> Module:
    """Parses a module."""
    entry = ""
    computations: dict[str, dict[str, Operation]] = {}
    operations: dict[str, Operation] = {}
    for line in _COMMENT.sub("", text).splitlines():
        if match := _COMPUTATION.match(line):
            operations = computations[match[2]] = {}
            entry = match[2] if match[1] else entry
        elif match := _OPERATION.match(line):
            name, result, opcode, operands, rest = match.groups()
            names = tuple(_NAMES.findall(operands)) or (operands,)
            operations[name] = Operation(name, opcode, result, names, rest)
    return Module(entry, computations)


def turns(module: Module, loop: Operation) -> int | None:
    """Returns the iterations of a loop that counts from 0 to a constant, as `fori_loop` does."""
    condition = module.computations[loop.calls("condition")[0]]
    test = [*condition.values()][-1]
    bound = condition.get(test.operands[-1])
    counts = test.opcode == "compare" and "direction=LT" in test.rest
    if not counts or bound is None or bound.opcode != "constant":
        return None
    return int(bound.operands[0])


def hbm_bytes(shape: str) -> int:
    """Returns the bytes of the arrays of a shape that are in HBM, padded to their tiles."""
    return sum(_bytes(*array) for array in _ARRAY.findall(shape) if not _is_elsewhere(array[3]))


def _is_elsewhere(layout: str) -> bool:
    return bool(re.search(r"S\([1-9]", layout))


def _bytes(kind: str, bits: str, dimensions: str, layout: str) -> int:
    sizes = [int(size) for size in dimensions.split(",") if size]
    order, _, tiles = layout.partition(":")
    minor = [sizes[int(place)] for place in order.split(",") if place]
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    for place, size in enumerate(reversed(tile[1].split(",")) if tile else ()):
        if place < len(minor):
            minor[place] = math.ceil(minor[place] / int(size)) * int(size)
    return math.prod(minor or sizes) * int(bits or 8) // 8  # pred has no number and takes a byte


def bytes_read(module: Module, operations: dict[str, Operation], operation: Operation) -> int:
    """Returns the bytes read from HBM; a gather or a slice reads as many as it returns."""
    inside = module.computations.get((operation.calls("calls") or ("",))[0], {})
    parameters = {one.operands[0]: one.name for one in inside.values() if one.opcode == "parameter"}

    def read(number: int, name: str) -> int:
        whole = hbm_bytes(operations[name].result) if name in operations else 0
        if operation.opcode in _SOME:
            return min(whole, hbm_bytes(_in_hbm(operation.result)))
        if operation.opcode == _IN_PLACE and number == 0:
            return 0
        parameter = parameters.get(str(number))
        users = [one for one in inside.values() if parameter in one.operands]
        if users and all(one.opcode in _SOME for one in users):
            return min(whole, sum(hbm_bytes(_in_hbm(one.result)) for one in users))
        return whole

    return sum(read(*operand) for operand in enumerate(operation.operands))


def bytes_written(operations: dict[str, Operation], operation: Operation) -> int:
    """Returns the bytes written to HBM; an update in place writes only the update."""
    whole = hbm_bytes(operation.result)
    if operation.opcode == _IN_PLACE:
        return min(whole, hbm_bytes(_in_hbm(operations[operation.operands[1]].result)))
    return whole


def _in_hbm(shape: str) -> str:
    return re.sub(r"S\(\d+\)", "", shape)

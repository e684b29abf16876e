"""Properties of a compiled program read from its text, such as the bytes moved between devices."""

import re

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "u64": 8, "s64": 8}

_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-[a-z]+)(-start)?\("
)


def bytes_moved(compiled, branch=max) -> int:
    """Returns the bytes that each device receives in a program, with one iteration of each loop.

    `branch` chooses a branch of each conditional by its bytes.
    """
    computations, entry = _computations(compiled.as_text())

    def cost(name: str) -> int:
        total = 0
        for line in computations[name]:
            if match := _COLLECTIVE.search(line):
                total += _size(match[1])
            branches = [b for b in _called(line) if b in computations]
            if " conditional(" in line:
                total += branch(map(cost, branches))
            else:
                total += sum(map(cost, branches))
        return total

    return cost(entry)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found, entry, name = {}, "", ""
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = match[2]
            found[name] = []
            entry = name if match[1] else entry
        elif name:
            found[name].append(line)
    return found, entry


def _called(line: str) -> list[str]:
    return [
        name.strip(" %")
        for names in re.findall(
            r"(?:calls|to_apply|body|condition|\w+_computations?)=([^=]*)", line
        )
        for name in re.findall(r"%[\w.\-]+", names)
    ]


def _size(shapes: str) -> int:
    total = 0
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        size = BYTES[dtype]
        for n in dims.split(","):
            size *= int(n or 1)
        total += size
    return total

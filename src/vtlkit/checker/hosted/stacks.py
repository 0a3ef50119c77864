"""What lies on a frame's evaluation stack while it calls something: told from its bytecode, as Python does not show it.

A suspended function's future depends on its variables and on what its stack holds. Most calls leave nothing there, or
what is known anyway: a constant, a global, a variable, the exit of a `with`, an iterator whose position the loop's
variable shows. `only_known` says whether that is so at an instruction; where it cannot tell it says no.
"""

from __future__ import annotations

import dis
from functools import cache
from itertools import pairwise
from types import CodeType
from typing import Final

_SAFE: Final = frozenset(("null", "const", "global", "variable", "exit", "range-iterator"))
_PUSHING: Final = {
    "PUSH_NULL": "null",
    "LOAD_CONST": "const",
    "LOAD_SMALL_INT": "const",
    "LOAD_GLOBAL": "global",
    "LOAD_NAME": "value",
    "LOAD_FAST": "variable",
    "LOAD_FAST_CHECK": "variable",
    "LOAD_FAST_BORROW": "variable",
    "LOAD_DEREF": "variable",
    "LOAD_CLOSURE": "variable",
}
_NO_RESULT: Final = ("STORE_", "DELETE_", "POP_", "LIST_", "SET_", "DICT_", "MAP_")
_TRANSPARENT: Final = frozenset(
    ("RESUME", "NOP", "CACHE", "PRECALL", "KW_NAMES", "MAKE_CELL", "COPY_FREE_VARS", "EXTENDED_ARG")
)
_ENDS: Final = frozenset(("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"))
_ALWAYS_JUMPS: Final = frozenset(("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"))

Stack = tuple[str, ...]


def only_known(code: CodeType, lasti: int) -> bool:
    """Whether all that is on the stack during the call at offset `lasti` follows from the frame's variables."""
    offsets = _left(code)
    # In the middle of a call it may already stand behind the instruction's caches.
    while lasti > 0 and lasti not in offsets:
        lasti -= 2
    left = offsets.get(lasti)
    return left is not None and all(kind in _SAFE for kind in left)


@cache
def _left(code: CodeType) -> dict[int, Stack]:
    """Offset -> what an instruction leaves on the stack while it executes; without offsets that are not understood."""
    try:
        handlers = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        return {}
    instructions = list(dis.get_instructions(code))
    following = {one.offset: two.offset for one, two in pairwise(instructions)}
    by_offset = {instruction.offset: instruction for instruction in instructions}
    loops = _counted_loops(instructions)
    before: dict[int, Stack] = {}
    left: dict[int, Stack] = {}
    todo: list[tuple[int, Stack]] = [(instructions[0].offset, ())]
    while todo:
        offset, stack = todo.pop()
        if offset in before:
            if len(before[offset]) != len(stack):
                return {}
            merged = tuple([one if one == two else "value" for one, two in zip(before[offset], stack, strict=True)])
            if merged == before[offset]:
                continue
            stack = merged
        before[offset] = stack
        instruction = by_offset[offset]
        after = _after(instruction, stack, jump=False, loops=loops)
        if after is None:
            return {}
        left[offset] = _during(instruction.opname, stack, after)
        if instruction.opname not in _ENDS | _ALWAYS_JUMPS and offset in following:
            todo.append((following[offset], after))
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            jumped = _after(instruction, stack, jump=True, loops=loops)
            if jumped is None:
                return {}
            todo.append((instruction.argval, jumped))
        for handler in handlers:
            if handler.start <= offset < handler.end and handler.depth <= len(stack):
                todo.append((handler.target, (*stack[: handler.depth], *["value"] * (1 + handler.lasti))))
    return left


def _after(instruction: dis.Instruction, stack: Stack, *, jump: bool, loops: frozenset[int]) -> Stack | None:
    name, argument = instruction.opname, instruction.arg
    if name in _TRANSPARENT and name != "PRECALL":
        return stack
    try:
        effect = dis.stack_effect(instruction.opcode, argument, jump=jump)
    except ValueError:
        return None
    depth = len(stack) + effect
    if depth < 0:
        return None
    if name in _PUSHING:
        kinds = [_PUSHING[name]] * effect
        if name == "LOAD_GLOBAL" and effect == 2:
            kinds = ["null", "global"]
        return (*stack, *kinds)
    if name == "BEFORE_WITH":
        return (*stack[:-1], "exit", "value")
    if name == "GET_ITER":
        return (*stack[:-1], "range-iterator" if instruction.offset in loops else "value")
    if name == "FOR_ITER":
        return stack[:depth] if jump else (*stack, "value")
    if name == "SWAP" and argument is not None and argument <= len(stack):
        items = list(stack)
        items[-argument], items[-1] = items[-1], items[-argument]
        return tuple(items)
    if name == "COPY" and argument is not None and argument <= len(stack):
        return (*stack, stack[-argument])
    if name.startswith(_NO_RESULT) or "JUMP" in name:
        return stack[:depth]
    if effect >= 0:
        return (*stack[:-1], *["value"] * (depth - len(stack[:-1])))
    return (*stack[: depth - 1], "value") if depth else ()


def _during(name: str, before: Stack, after: Stack) -> Stack:
    shorter = min(len(before), len(after))
    if name in ("LOAD_GLOBAL", "LOAD_FAST", "LOAD_CONST", "LOAD_DEREF", "PUSH_NULL", *_TRANSPARENT):
        return before
    if name.startswith(_NO_RESULT):
        return after[:shorter]
    if name == "FOR_ITER":
        return before
    return before[: max(shorter - 1, 0)]


def _counted_loops(instructions: list[dis.Instruction]) -> frozenset[int]:
    """Offsets of GET_ITER over `range(...)` of constants and of variables that nothing behind it writes, whose loop
    variable nobody else writes."""
    stores = [one for one in instructions if one.opname in ("STORE_FAST", "STORE_DEREF", "DELETE_FAST")]
    stored = [one.argval for one in stores]
    counted = set()
    for index, instruction in enumerate(instructions):
        if instruction.opname != "GET_ITER":
            continue
        start = index - 1
        arguments = []
        while start >= 0 and instructions[start].opname in ("CALL", "PRECALL", "LOAD_CONST", "LOAD_FAST", "LOAD_DEREF"):
            arguments.append(instructions[start])
            start -= 1
        if start >= 1 and (instructions[start].opname, instructions[start].argval) == ("LOAD_GLOBAL", "len"):
            start -= 1
        callee = instructions[start] if start >= 0 else None
        if callee is None or callee.opname != "LOAD_GLOBAL" or callee.argval != "range":
            continue
        names = [one.argval for one in arguments if one.opname in ("LOAD_FAST", "LOAD_DEREF")]
        variable = _loop_variable(instructions, index)
        later = [one.argval for one in stores if one.offset > instruction.offset]
        if variable is not None and stored.count(variable) == 1 and not any(name in later for name in names):
            counted.add(instruction.offset)
    return frozenset(counted)


def _loop_variable(instructions: list[dis.Instruction], index: int) -> str | None:
    names = [one.opname for one in instructions[index + 1 : index + 3]]
    if names == ["FOR_ITER", "STORE_FAST"]:
        return str(instructions[index + 2].argval)
    return None

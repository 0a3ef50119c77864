"""What lies on a frame's evaluation stack while it calls something: told from its bytecode, as Python does not show it.

A suspended function's future depends on its variables and on what its stack holds. Most calls leave nothing there, or
what is known anyway: a constant, a function, a variable that has not changed since, the exit of a lock that is held, an
iterator whose position the loop's variable shows. `at` says what is left at an instruction, as expressions over the
frame's variables; `frames_known.py` judges these. Whatever is not understood here is UNKNOWN, and so is everything of a
code object with an instruction that is not in these tables, or under a version of Python on which they were not tested.
"""

from __future__ import annotations

import dis
import sys
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import CodeType
from typing import Final

TESTED: Final = ((3, 11), (3, 12), (3, 13))
"""Versions of CPython whose instructions are known here."""

Item = tuple[object, ...]
"""What one place on the stack holds: (kind, ...). Expressions nest: ("attribute", ("variable", "self"), "_lock")."""
Stack = tuple[Item, ...]

UNKNOWN: Final[Item] = ("unknown",)
NULL: Final[Item] = ("null",)
CONSTANT: Final[Item] = ("constant",)
COUNTED: Final[Item] = ("counted",)
"""An iterator over a range, as far on as the loop's variable says."""

_TRANSPARENT: Final = frozenset(
    (
        "RESUME",
        "NOP",
        "CACHE",
        "PRECALL",
        "KW_NAMES",
        "MAKE_CELL",
        "COPY_FREE_VARS",
        "EXTENDED_ARG",
        "SETUP_ANNOTATIONS",
    )
)
_VARIABLES: Final = {"LOAD_FAST": "variable", "LOAD_FAST_CHECK": "variable", "LOAD_DEREF": "closed over"}
_REPLACES_TOP: Final = frozenset(
    (
        *(
            "UNARY_NOT",
            "UNARY_NEGATIVE",
            "UNARY_INVERT",
            "TO_BOOL",
            "GET_YIELD_FROM_ITER",
            "LIST_TO_TUPLE",
            "FORMAT_SIMPLE",
        ),
        *("CONVERT_VALUE", "CALL_INTRINSIC_1", "PUSH_EXC_INFO", "CHECK_EXC_MATCH", "UNPACK_SEQUENCE", "GET_LEN"),
        *("MATCH_MAPPING", "MATCH_SEQUENCE", "UNPACK_EX", "WITH_EXCEPT_START"),
    )
)
"""Takes one value at most and leaves some in its place: what is below stays."""
_PUSHES: Final = frozenset(
    (
        "LOAD_NAME",
        "IMPORT_FROM",
        "LOAD_BUILD_CLASS",
        "LOAD_ASSERTION_ERROR",
        "LOAD_CLOSURE",
        "LOAD_FAST_AND_CLEAR",
        "LOAD_CLASSDEREF",
    )
)
_COMBINES: Final = frozenset(
    (
        *("BINARY_OP", "BINARY_SUBSCR", "BINARY_SLICE", "COMPARE_OP", "IS_OP", "CONTAINS_OP", "CALL", "CALL_KW"),
        *("CALL_FUNCTION_EX", "BUILD_TUPLE", "BUILD_LIST", "BUILD_SET", "BUILD_MAP", "BUILD_STRING", "BUILD_SLICE"),
        *("BUILD_CONST_KEY_MAP", "MAKE_FUNCTION", "FORMAT_VALUE", "FORMAT_WITH_SPEC", "SET_FUNCTION_ATTRIBUTE"),
        *("IMPORT_NAME", "CALL_INTRINSIC_2", "MATCH_CLASS"),
    )
)
"""Takes some values and leaves one."""
_TAKES: Final = frozenset(
    (
        *(
            "POP_TOP",
            "STORE_FAST",
            "STORE_DEREF",
            "STORE_NAME",
            "STORE_GLOBAL",
            "STORE_ATTR",
            "STORE_SUBSCR",
            "STORE_SLICE",
        ),
        *("DELETE_FAST", "DELETE_DEREF", "DELETE_NAME", "DELETE_GLOBAL", "DELETE_ATTR", "DELETE_SUBSCR", "POP_EXCEPT"),
        *("LIST_APPEND", "LIST_EXTEND", "SET_ADD", "SET_UPDATE", "DICT_UPDATE", "DICT_MERGE", "MAP_ADD", "END_FOR"),
        *("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"),
        *("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_IF_TRUE_OR_POP", "JUMP_IF_FALSE_OR_POP"),
        *(
            f"POP_JUMP_{direction}IF_{when}"
            for direction in ("", "FORWARD_", "BACKWARD_")
            for when in ("TRUE", "FALSE", "NONE", "NOT_NONE")
        ),
    )
)
"""Takes some values and leaves nothing."""
_ENDS: Final = frozenset(("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"))
_ALWAYS_JUMPS: Final = frozenset(("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"))


@dataclass(frozen=True, slots=True)
class Suspended:
    """An instruction during which a frame may be suspended."""

    name: str
    argument: str
    """The name in the code that it refers to, or ""."""
    left: Stack
    """What stays on the stack meanwhile."""
    callee: Item
    """What it calls, if it is a call."""


def at(code: CodeType, lasti: int) -> Suspended | None:
    """The instruction at an offset, or in whose caches the offset lies. None: it is not understood."""
    known = _analysed(code)
    while lasti not in known.starts:
        lasti -= 2
        if lasti < 0:
            return None
    return known.suspended.get(lasti)


@dataclass(frozen=True, slots=True)
class _Known:
    starts: frozenset[int]
    suspended: dict[int, Suspended]


@cache
def _analysed(code: CodeType) -> _Known:
    instructions = list(dis.get_instructions(code))
    starts = frozenset([instruction.offset for instruction in instructions])
    if sys.version_info[:2] not in TESTED or sys.implementation.name != "cpython":
        return _Known(starts, {})
    before = _stacks(code, instructions)
    found = {}
    for instruction in instructions:
        stack = before.get(instruction.offset)
        if stack is None:
            continue
        after = _after(instruction, stack, jump=False, loops=_counted_loops(code))
        assert after is not None
        argument = instruction.argval if isinstance(instruction.argval, str) else ""
        left, callee = _during(instruction, stack, after), _callee(instruction, stack)
        found[instruction.offset] = Suspended(instruction.opname, argument, left, callee)
    return _Known(starts, found)


def _stacks(code: CodeType, instructions: list[dis.Instruction]) -> dict[int, Stack]:
    """Offset -> what is on the stack before the instruction. Empty if there is any that is not understood."""
    handlers = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    loops = _counted_loops(code)
    following = {one.offset: two.offset for one, two in pairwise(instructions)}
    by_offset = {instruction.offset: instruction for instruction in instructions}
    before: dict[int, Stack] = {}
    todo: list[tuple[int, Stack]] = [(instructions[0].offset, ())]
    while todo:
        offset, stack = todo.pop()
        if offset in before:
            if len(before[offset]) != len(stack):
                return {}
            merged = tuple([one if one == two else UNKNOWN for one, two in zip(before[offset], stack, strict=True)])
            if merged == before[offset]:
                continue
            stack = merged
        before[offset] = stack
        instruction = by_offset[offset]
        jumps = instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs
        after = _after(instruction, stack, jump=False, loops=loops)
        jumped = _after(instruction, stack, jump=True, loops=loops) if jumps else ()
        if after is None or jumped is None:
            return {}
        if instruction.opname not in _ENDS | _ALWAYS_JUMPS and offset in following:
            todo.append((following[offset], after))
        if jumps:
            todo.append((instruction.argval, jumped))
        for handler in handlers:
            if handler.start <= offset < handler.end:
                # What the instruction itself changes, it may have changed.
                kept = _changed(instruction, stack)[: handler.depth]
                if len(kept) < handler.depth:
                    return {}
                todo.append((handler.target, (*kept, *[UNKNOWN] * (1 + handler.lasti))))
    return before


def _after(instruction: dis.Instruction, stack: Stack, *, jump: bool, loops: frozenset[int]) -> Stack | None:
    """The stack behind an instruction. None: it is not understood."""
    name, argument = instruction.opname, instruction.arg
    if name in _TRANSPARENT:
        # PRECALL's part is done together with that of CALL.
        return stack
    effect = dis.stack_effect(instruction.opcode, argument, jump=jump)
    if name == "CALL" and sys.version_info < (3, 12):
        effect = -1 - (argument or 0)
    depth = len(stack) + effect
    after = _moved(instruction, stack, depth, jump=jump, loops=loops)
    return None if after is None or len(after) != depth else after


def _moved(
    instruction: dis.Instruction, stack: Stack, depth: int, *, jump: bool, loops: frozenset[int]
) -> Stack | None:
    name, argument = instruction.opname, instruction.arg or 0
    if name in _VARIABLES:
        return (*stack, (_VARIABLES[name], instruction.argval))
    if name == "LOAD_CONST":
        return (*stack, CONSTANT)
    if name == "PUSH_NULL":
        return (*stack, NULL)
    if name == "LOAD_GLOBAL":
        return (*stack, *[("global", instruction.argval)] * (depth - len(stack)))
    if name in ("LOAD_ATTR", "LOAD_METHOD"):
        item = ("attribute", stack[-1], instruction.argval)
        return (*stack[:-1], *[item] * (depth - len(stack) + 1))
    if name == "BEFORE_WITH":
        return (*stack[:-1], ("exit", stack[-1]), UNKNOWN)
    if name == "GET_ITER":
        return (*stack[:-1], COUNTED if instruction.offset in loops else UNKNOWN)
    if name == "FOR_ITER":
        return (stack[:depth] if depth <= len(stack) else (*stack, UNKNOWN)) if jump else (*stack, UNKNOWN)
    if name == "SWAP":
        items = list(stack)
        items[-argument], items[-1] = items[-1], items[-argument]
        return tuple(items)
    if name == "COPY":
        return (*stack, stack[-argument])
    if name == "LOAD_FAST_LOAD_FAST":
        return (*stack, *[("variable", each) for each in instruction.argval])
    if name == "CALL" and argument == 0 and (callee := _callee(instruction, stack))[0] == "attribute":
        return (*stack[: depth - 1], ("called", callee))
    return _usual(instruction, _changed(instruction, stack), depth)


def _usual(instruction: dis.Instruction, stack: Stack, depth: int) -> Stack | None:
    name = instruction.opname
    if name in _TAKES:
        return stack[:depth]
    if name in _PUSHES:
        return (*stack, UNKNOWN)
    if name in _REPLACES_TOP:
        return (*stack[:-1], *[UNKNOWN] * (depth - len(stack) + 1))
    if name in _COMBINES:
        return (*stack[: depth - 1], UNKNOWN) if depth else None
    return None


def _changed(instruction: dis.Instruction, stack: Stack) -> Stack:
    """Without what is known by a variable that the instruction changes: the stack has its old value."""
    name = instruction.opname
    if not name.startswith(("STORE_", "DELETE_")) and name != "LOAD_FAST_AND_CLEAR":
        return stack
    return tuple([UNKNOWN if _mentions(item, instruction.argval) else item for item in stack])


def _mentions(item: object, name: object) -> bool:
    return item == name or (isinstance(item, tuple) and any(_mentions(part, name) for part in item[1:]))


def _during(instruction: dis.Instruction, before: Stack, after: Stack) -> Stack:
    """What stays while the instruction executes."""
    name = instruction.opname
    if name in _TAKES:
        return after[: min(len(before), len(after))]
    if name in ("FOR_ITER", *_TRANSPARENT, *_PUSHES):
        return before
    return before[: max(min(len(before), len(after)) - 1, 0)]


def _callee(instruction: dis.Instruction, stack: Stack) -> Item:
    """What a call calls: one of two places has it, the other NULL or what it is bound to."""
    if instruction.opname not in ("CALL", "CALL_KW"):
        return UNKNOWN
    below = (instruction.arg or 0) + (instruction.opname == "CALL_KW")
    if len(stack) < below + 2:
        return UNKNOWN
    one, other = stack[-below - 2], stack[-below - 1]
    if one[0] == "exit":
        return one
    if one in (NULL, other):
        return other
    return one if other == NULL else UNKNOWN


@cache
def _counted_loops(code: CodeType) -> frozenset[int]:
    """Offsets of GET_ITER over `range(...)` of constants and own variables that nothing behind it writes, whose loop
    variable nobody else writes."""
    instructions = list(dis.get_instructions(code))
    stores = [one for one in instructions if one.opname.startswith(("STORE_", "DELETE_"))]
    stored = [one.argval for one in stores]
    if any(isinstance(name, tuple) for name in stored):
        # Two at once, as of 3.13: left alone.
        return frozenset()
    counted = set()
    for index, instruction in enumerate(instructions):
        if instruction.opname != "GET_ITER":
            continue
        arguments = _range_arguments(instructions[:index])
        variable = _loop_variable(instructions, index)
        if arguments is None or variable is None or stored.count(variable) != 1:
            continue
        later = [one.argval for one in stores if one.offset > instruction.offset]
        if not any(name in later for name in arguments):
            counted.add(instruction.offset)
    return frozenset(counted)


def _range_arguments(before: list[dis.Instruction]) -> list[str] | None:
    """Variables that `range(...)`, just before, was called with; None if it was not, or with anything else."""
    names = []
    calls = 0
    for one in reversed(before):
        if one.opname == "CALL":
            calls += 1
        elif one.opname in ("LOAD_FAST", "LOAD_FAST_CHECK"):
            names.append(str(one.argval))
        elif one.opname == "LOAD_GLOBAL" and one.argval == "range" and calls == 1:
            return names
        elif one.opname not in ("PRECALL", "LOAD_CONST"):
            return None
    return None


def _loop_variable(instructions: list[dis.Instruction], index: int) -> str | None:
    names = [one.opname for one in instructions[index + 1 : index + 3]]
    if names == ["FOR_ITER", "STORE_FAST"]:
        return str(instructions[index + 2].argval)
    return None

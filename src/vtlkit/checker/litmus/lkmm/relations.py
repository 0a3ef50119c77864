"""Relations over numbered events: a list of integers, in which bit j of row i says that (i, j) is in it.

Sets are integers, too. Nothing here changes its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Relation = list[int]


def bits(mask: int) -> Iterator[int]:
    """Members of a set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def empty(size: int) -> Relation:
    """No pair."""
    return [0] * size


def identity(members: int, size: int) -> Relation:
    """Each member with itself."""
    return [members & 1 << index for index in range(size)]


def product(left: int, right: int, size: int) -> Relation:
    """Each of the one with each of the other."""
    return [right if left >> index & 1 else 0 for index in range(size)]


def of_pairs(pairs: Iterable[tuple[int, int]], size: int) -> Relation:
    """These pairs."""
    rows = [0] * size
    for first, second in pairs:
        rows[first] |= 1 << second
    return rows


def union(first: Relation, *others: Relation) -> Relation:
    """Pairs that are in any of them."""
    rows = list(first)
    for other in others:
        rows = [row | more for row, more in zip(rows, other, strict=True)]
    return rows


def common(left: Relation, right: Relation) -> Relation:
    """Pairs that are in both."""
    return [row & other for row, other in zip(left, right, strict=True)]


def minus(left: Relation, right: Relation) -> Relation:
    """Pairs of the one that are not in the other."""
    return [row & ~other for row, other in zip(left, right, strict=True)]


def optional(relation: Relation) -> Relation:
    """The relation, and each event with itself."""
    return [row | 1 << index for index, row in enumerate(relation)]


def from_set(members: int, relation: Relation) -> Relation:
    """Pairs that begin in the set."""
    return [row if members >> index & 1 else 0 for index, row in enumerate(relation)]


def to_set(relation: Relation, members: int) -> Relation:
    """Pairs that end in the set."""
    return [row & members for row in relation]


def between(members: int, relation: Relation, others: int) -> Relation:
    """Pairs that begin in the one set and end in the other."""
    return [row & others if members >> index & 1 else 0 for index, row in enumerate(relation)]


def compose(first: Relation, *others: Relation) -> Relation:
    """Pairs that lead through all of them, one after the other."""
    for other in others:
        rows = []
        for row in first:
            reached = 0
            while row:
                low = row & -row
                reached |= other[low.bit_length() - 1]
                row ^= low
            rows.append(reached)
        first = rows
    return first


def inverse(relation: Relation) -> Relation:
    """Each pair the other way round."""
    rows = [0] * len(relation)
    for index, row in enumerate(relation):
        for other in bits(row):
            rows[other] |= 1 << index
    return rows


def closure(relation: Relation) -> Relation:
    """Pairs that are joined by one or more."""
    rows = list(relation)
    for middle in range(len(rows)):
        through, bit = rows[middle], 1 << middle
        if through:
            rows = [row | through if row & bit else row for row in rows]
    return rows


def star(relation: Relation) -> Relation:
    """Pairs that are joined by any number, each event with itself among them."""
    return optional(closure(relation))


def is_empty(relation: Relation) -> bool:
    """Whether there is no pair."""
    return not any(relation)


def is_irreflexive(relation: Relation) -> bool:
    """Whether no event is related to itself."""
    return not any(row >> index & 1 for index, row in enumerate(relation))


def is_acyclic(relation: Relation) -> bool:
    """Whether there is no way back."""
    return is_irreflexive(closure(relation))

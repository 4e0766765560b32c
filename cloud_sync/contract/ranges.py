"""A set of whole numbers kept as ranges: a year of results of one stream is a handful of pairs.

Pure arithmetic; knows nothing of streams.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """Whole numbers as disjoint inclusive ranges in order, never touching each other."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Put ``first`` to ``last``, both included, into the set. Nothing when last < first."""
        if last < first:
            return
        low = bisect_left(self._lasts, first - 1)  # the first range that touches or lies behind
        high = bisect_right(self._firsts, last + 1)  # one past the last range that touches
        if low < high:
            first = min(first, self._firsts[low])
            last = max(last, self._lasts[high - 1])
        self._firsts[low:high] = [first]
        self._lasts[low:high] = [last]

    def within(self, first: int, last: int) -> Ranges:
        """Those numbers of the set that lie between ``first`` and ``last``, both included."""
        low = bisect_left(self._lasts, first)
        high = bisect_right(self._firsts, last)
        return Ranges((max(first, self._firsts[i]), min(last, self._lasts[i])) for i in range(low, high))

    def missing(self, first: int, last: int) -> Ranges:
        """Those numbers between ``first`` and ``last`` that are not in the set."""
        holes = Ranges()
        for begin, end in self.within(first, last):
            holes.add(first, begin - 1)
            first = end + 1
        holes.add(first, last)
        return holes

    @property
    def last(self) -> int:
        """The greatest number; 0 when empty."""
        return self._lasts[-1] if self._lasts else 0

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges([*self, *other])

    def __sub__(self, other: Ranges) -> Ranges:
        return Ranges(hole for first, last in self for hole in other.missing(first, last))

    def __and__(self, other: Ranges) -> Ranges:
        return Ranges(part for first, last in self for part in other.within(first, last))

    def __contains__(self, number: int) -> bool:
        i = bisect_left(self._lasts, number)
        return i < len(self._firsts) and self._firsts[i] <= number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._firsts, self._lasts, strict=True)))

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # the set changes, so it has no hash

    def __repr__(self) -> str:
        return f"Ranges({', '.join(f'{a}' if a == b else f'{a}-{b}' for a, b in self)})"

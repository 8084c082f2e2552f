"""Which occupations of Wyckoff positions make a composition exactly, and have the space group and no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from policies.representations.elbow_room import rooms
from policies.representations.orbit_tables import ANY, tables
from policies.representations.patterns import Elements, Pattern, always_kept, kept, pinned, pins

Counts = tuple[int, ...]


@cache
def atoms_of(max_atoms: int, group: int) -> tuple[tuple[int, bool], ...]:
    """(atoms in the primitive cell, whether it can be occupied again and again) of the positions of a group."""
    t = tables(max_atoms)
    rows = range(int(t.base[group]), int(t.base[group]) + int(t.count[group]))
    return tuple((int(t.atoms[row]), bool(t.dof[row] > 0)) for row in rows)


def smallest_free(max_atoms: int, group: int) -> int:
    """Atoms of the smallest position of a group that can be occupied again and again."""
    return min(m for m, again in atoms_of(max_atoms, group) if again)


@cache
def makeable(max_atoms: int, group: int, counts: Counts) -> bool:
    """Whether a group's positions can hold so many atoms of each of some elements."""
    return _held(max_atoms, group, 0, 0, ANY, tuple(sorted(c for c in counts if c)))


def _held(max_atoms: int, group: int, used: int, first: int, cap: int, others: Counts) -> bool:
    """Whether the positions that are not used up, as bits, can hold the counts (sorted), the first on positions of up
    to `cap` atoms."""
    free, fixed = _parts(max_atoms, group, used)
    return _sum_up(free, first, cap, others) or (bool(fixed) and _fillable(free, fixed, first, cap, others))


@cache
def _parts(max_atoms: int, group: int, used: int) -> tuple[Counts, Counts]:
    """The atoms of the positions that can be occupied again and again, each once, and of those left that cannot."""
    table = atoms_of(max_atoms, group)
    fixed = sorted(m for i, (m, again) in enumerate(table) if not again and not used >> i & 1)
    return tuple(sorted({m for m, again in table if again})), tuple(fixed)


@cache
def _fillable(free: Counts, fixed: Counts, first: int, cap: int, others: Counts) -> bool:
    """`_held` by positions for any number of times, and those for once, all by their atoms."""
    if _sum_up(free, first, cap, others):
        return True
    if not fixed:
        return False
    m, rest = fixed[-1], fixed[:-1]
    if m <= min(first, cap) and _fillable(free, rest, first - m, cap, others):
        return True
    for c in sorted({c for c in others if c >= m}):
        i = others.index(c)
        fewer = tuple(sorted((*others[:i], *others[i + 1 :], *([c - m] if c > m else []))))
        if _fillable(free, rest, first, cap, fewer):
            return True
    return _fillable(free, rest, first, cap, others)


def _sum_up(parts: Counts, first: int, cap: int, others: Counts) -> bool:
    """Whether all counts are sums of parts, each as often as one likes, the first of parts of up to `cap`."""
    if not _sums(parts, cap) >> first & 1:
        return False
    wanted = 0
    for c in others:
        wanted |= 1 << c
    return not wanted & ~_sums(parts, ANY)


@cache
def _sums(parts: Counts, cap: int) -> int:
    """The sums below `ANY` of parts of up to `cap`, as bits."""
    reached, within = 1, (1 << ANY) - 1
    for part in parts:
        step = part
        while part <= cap and step < ANY:
            reached |= reached << step & within
            step *= 2
    return reached


@cache
def choices(max_atoms: int, group: int, pattern: Pattern, rest: Counts, cap: int) -> tuple[Counts, Counts]:
    """Positions (indices) that the next site may be on, and those of them with which the crystal can have its group.

    pattern: the sites so far, elements labelled 0, 1, ... as they come. rest: atoms still to be placed of the current
    element, not 0, and of each that comes after it. cap: the largest position, in atoms, that may follow.
    """
    label = max((label for _, label in pattern), default=-1) + (cap == ANY)
    labels = {label for _, label in pattern} - {label}
    finished = _in_order([[i for i, other in pattern if other == some] for some in labels])
    current = tuple(sorted(i for i, other in pattern if other == label))
    others = tuple(sorted(rest[1:]))
    possible = [*_steps(max_atoms, group, finished, current, rest[0], cap, others)]
    certain = pinned(group, finished)
    proper = [i for i, m in possible if certain or _can_have(
        max_atoms, group, *_after(finished, current, i, rest[0] - m, m), others, 0)]
    return tuple(i for i, _ in possible), tuple(proper)


def clipped(max_atoms: int, group: int, rest: Counts, room: Sequence[int]) -> Counts:
    """`room`, for how many sites positions have room, with `ANY` where that is enough for all of `rest`."""
    most = sum(rest)
    return tuple(ANY if some >= most // m and again else some
                 for (m, again), some in zip(atoms_of(max_atoms, group), room, strict=True))


@cache
def lasting(max_atoms: int, group: int, rest: Counts, cap: int, room: Counts, lines: Counts = ()) -> Counts:
    """Positions (indices) on which a site leaves what there is room for.

    rest, cap: as for `choices`. room: for how many sites each position has it, `ANY` for any number. lines: positions
    with room for this site, after which nothing may have to be on points.
    """
    those = points(max_atoms, group, rest, room)
    return tuple(i for i, (m, _) in enumerate(atoms_of(max_atoms, group)) if m <= min(rest[0], cap) and (
        (room[i] and _lasts(max_atoms, group, rest, room, i))
        or (i in lines and _lasts(max_atoms, group, rest, room, i, those))))


@cache
def needed(max_atoms: int, group: int, rest: Counts, room: Counts, i: int) -> tuple[Counts, Counts]:
    """The points (positions) that must be occupied later if the next site is on position i, and all that some may have
    to be; arguments as for `lasting`."""
    others = tuple(j for j in points(max_atoms, group, rest, room) if j != i)
    if _lasts(max_atoms, group, rest, room, i, others):
        return (), ()
    return tuple(j for j in others if not _lasts(max_atoms, group, rest, room, i, (j,))), others


@cache
def points(max_atoms: int, group: int, rest: Counts, room: Counts) -> Counts:
    """The points (positions) that may have to be occupied."""
    return tuple(j for j, (m, again) in enumerate(atoms_of(max_atoms, group))
                 if room[j] and not again and m <= max(rest))


def _lasts(max_atoms: int, group: int, rest: Counts, room: Counts, i: int, without: Counts = ()) -> bool:
    """Whether there is room for what is left after a site on position i, without some positions."""
    free, fixed = _room(max_atoms, group, room, without)
    return _enough(free, fixed, atoms_of(max_atoms, group)[i][0], 0 < room[i] < ANY and i not in without, rest)


@cache
def _room(max_atoms: int, group: int, room: Counts, without: Counts) -> tuple[Counts, Counts]:
    """The atoms of positions with room for any number of sites, each once, and of those with room for some, each for
    every site."""
    table = [(m, some) for (m, _), some in zip(atoms_of(max_atoms, group), room, strict=True)]
    return (tuple(sorted({m for m, some in table if some == ANY})),
            tuple(sorted(m for j, (m, some) in enumerate(table) if 0 < some < ANY and j not in without
                         for _ in range(some))))


@cache
def _enough(free: Counts, fixed: Counts, m: int, once: bool, rest: Counts) -> bool:
    """Whether positions (see `_fillable`) hold what is left after a site of m atoms. once: it was one of the fixed."""
    if once:
        at = fixed.index(m)
        fixed = (*fixed[:at], *fixed[at + 1 :])
    return _fillable(free, fixed, rest[0] - m, m, tuple(sorted(rest[1:])))


@cache
def fits(max_atoms: int, group: int, counts: Counts, sides: tuple[float, ...]) -> bool:
    """Whether a cell that holds a box with these sides (Å) certainly has room for so many atoms of each element."""
    room = clipped(max_atoms, group, counts, rooms(max_atoms, group, sides, 1))
    return any(room[i] and m <= counts[0] and _lasts(max_atoms, group, counts, room, i)
               for i, (m, _) in enumerate(atoms_of(max_atoms, group)))


@cache
def can_have(max_atoms: int, group: int, counts: Counts, fresh: int = 0) -> bool:
    """Whether so many atoms of some elements, and `fresh` more of elements not yet chosen, can have the group and no
    more symmetry."""
    return _can_have(max_atoms, group, (), (), 0, ANY, tuple(sorted(counts)), fresh)


def _can_have(max_atoms: int, group: int, finished: Elements, current: Counts, first: int, cap: int, others: Counts,
              fresh: int) -> bool:
    """Whether sites can be completed such that they have the group and no more symmetry.

    finished: positions of the elements that get no more sites. current: those of the one that gets `first` more atoms
    on positions of up to `cap`. others, fresh: see `can_have`.
    """
    used = _used(finished, current)
    if pinned(group, finished):
        return _held(max_atoms, group, used, first, cap, _with(others, fresh))
    return (_can_be_pinned(max_atoms, group, used, current, first, cap, others, fresh)
            or _unpinned(max_atoms, group, finished, current, first, cap, others, fresh))


@cache
def _unpinned(max_atoms: int, group: int, finished: Elements, current: Counts, first: int, cap: int, others: Counts,
              fresh: int) -> bool:
    """`_can_have` where no element has, or can get, its only site on a position that pins the group."""
    if not first and others:
        return _unpinned(max_atoms, group, finished, (), others[-1], ANY, others[:-1], fresh)
    left = kept(group, finished)
    if left == 1:
        return _held(max_atoms, group, _used(finished, current), first, cap, _with(others, fresh))
    if not first and not fresh:
        return False
    if left & _certain(max_atoms, group, current, max(first, fresh, *others[-1:])) != 1:
        return False
    if first:
        return any(_unpinned(max_atoms, group, *_after(finished, current, i, first - m, m), others, fresh) for i, m in
                   _steps(max_atoms, group, finished, current, first, cap, _with(others, fresh)))
    # Every site a new element: the way to the least symmetry.
    return any(_unpinned(max_atoms, group, _in_order([*finished, (i,)]), (), 0, ANY, (), fresh - m)
               for i, m in _steps(max_atoms, group, finished, (), fresh, ANY, ()))


@cache
def _certain(max_atoms: int, group: int, current: Counts, most: int) -> int:
    """The isometries that keep sites on some positions and on any others of up to so many atoms, as bits."""
    found = -1
    for i, (m, _) in enumerate(atoms_of(max_atoms, group)):
        if i in current or m <= most:
            found &= always_kept(group)[i]
    return found


def _after(finished: Elements, current: Counts, i: int, left: int, m: int) -> tuple[Elements, Counts, int, int]:
    """The first arguments of `_can_have` after one more site of the current element, on position i of m atoms."""
    if left:
        return finished, tuple(sorted((*current, i))), left, m
    return _in_order([*finished, (*current, i)]), (), 0, ANY


def _in_order(elements: Sequence[Sequence[int]]) -> Elements:
    return tuple(sorted(tuple(sorted(sites)) for sites in elements))


def _with(counts: Counts, one: int) -> Counts:
    return tuple(sorted((*counts, one))) if one else counts


def _steps(max_atoms: int, group: int, finished: Elements, current: Counts, first: int, cap: int, others: Counts
           ) -> Iterator[tuple[int, int]]:
    """(position, its atoms) for those positions that leave what can be completed, the least symmetric first."""
    used, most = _used(finished, current), min(first, cap)
    table = atoms_of(max_atoms, group)
    held: dict[tuple[int, bool], bool] = {}  # of positions with as many atoms any leaves the same
    for i in reversed(range(len(table))):
        m, again = table[i]
        if m > most or (used >> i & 1 and not again):
            continue
        if (m, again) not in held:
            held[m, again] = _held(max_atoms, group, used if again else used | 1 << i, first - m, m, others)
        if held[m, again]:
            yield i, m


def _used(finished: Elements, current: Counts) -> int:
    """The positions that are occupied, as bits."""
    used = 0
    for sites in (*finished, current):
        for i in sites:
            used |= 1 << i
    return used


@cache
def _pins(max_atoms: int, group: int) -> tuple[tuple[int, int, bool], ...]:
    """The positions that pin the group, and `atoms_of` each."""
    table = enumerate(atoms_of(max_atoms, group))
    return tuple((i, m, again) for i, (m, again) in table if m <= max_atoms and pins()[group][i])


def _can_be_pinned(max_atoms: int, group: int, used: int, current: Counts, first: int, cap: int, others: Counts,
                   fresh: int) -> bool:
    """Whether an element that is still to come can have its only site on a position that pins the group: the way of
    most."""
    whole = others if current or not first else _with(others, first)  # elements without sites so far
    begun = first if current else 0
    tried = set()
    for i, m, again in _pins(max_atoms, group):
        if (m, again) in tried or (used >> i & 1 and not again):
            continue
        tried.add((m, again))
        taken = used if again else used | 1 << i
        if m in whole:
            j = whole.index(m)
            if _held(max_atoms, group, taken, begun, cap, _with((*whole[:j], *whole[j + 1 :]), fresh)):
                return True
        if m <= fresh and _held(max_atoms, group, taken, begun, cap, _with(whole, fresh - m)):
            return True
    return False

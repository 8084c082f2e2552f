"""Which occupations of Wyckoff positions make a composition exactly, and have the space group and no more."""

from __future__ import annotations

from functools import cache

from policies.representations.elbow_room import rooms
from policies.representations.orbit_tables import ANY, tables
from policies.representations.patterns import Pattern, has_group, pins

Counts = tuple[int, ...]
#: Occupations looked at before a space group is taken to be possible.
_PATIENCE = 200


@cache
def atoms_of(max_atoms: int, group: int) -> tuple[tuple[int, bool], ...]:
    """(atoms in the primitive cell, whether it can be occupied again and again) of the positions of a group."""
    t = tables(max_atoms)
    rows = range(int(t.base[group]), int(t.base[group]) + int(t.count[group]))
    return tuple((int(t.atoms[row]), bool(t.dof[row] > 0)) for row in rows)


def smallest_free(max_atoms: int, group: int) -> int:
    """Atoms of the smallest position of a group that can be occupied again and again."""
    return min(m for m, again in atoms_of(max_atoms, group) if again)


def makeable(max_atoms: int, group: int, counts: Counts) -> bool:
    """Whether a group's positions can hold so many atoms of each of some elements."""
    return _held(max_atoms, group, (), 0, ANY, tuple(sorted(c for c in counts if c)))


def _held(max_atoms: int, group: int, used: tuple[int, ...], first: int, cap: int, others: Counts) -> bool:
    """Whether the positions that are not used up can hold the counts, the first on positions of up to `cap` atoms."""
    return _fillable(*_parts(max_atoms, group, tuple(sorted(used))), first, cap, others)


@cache
def _parts(max_atoms: int, group: int, used: tuple[int, ...]) -> tuple[Counts, Counts]:
    """The atoms of the positions that can be occupied again and again, each once, and of those left that cannot."""
    table = atoms_of(max_atoms, group)
    fixed = sorted(m for i, (m, again) in enumerate(table) if not again and i not in used)
    return tuple(sorted({m for m, again in table if again})), tuple(fixed)


@cache
def _fillable(free: Counts, fixed: Counts, first: int, cap: int, others: Counts) -> bool:
    """`_held` by positions for any number of times, and those for once, all by their atoms."""
    if _sums_up(free, first, cap) and all(_sums_up(free, c, ANY) for c in others):
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


@cache
def _sums_up(parts: Counts, total: int, cap: int) -> bool:
    """Whether a total is a sum of parts of up to `cap`, each as often as one likes."""
    reached = 1
    for part in parts:
        if part <= min(cap, total):
            for n in range(part, total + 1):
                reached |= (reached >> (n - part) & 1) << n
    return bool(reached >> total & 1)


@cache
def choices(max_atoms: int, group: int, pattern: Pattern, rest: Counts, cap: int) -> tuple[Counts, Counts]:
    """Positions (indices) that the next site may be on, and those of them with which the crystal can have its group.

    pattern: the sites so far, elements labelled 0, 1, ... as they come. rest: atoms still to be placed of the current
    element, not 0, and of each that comes after it. cap: the largest position, in atoms, that may follow.
    """
    possible = _steps(max_atoms, group, pattern, _label(pattern, cap), rest, cap)
    return (tuple(i for i, _, _ in possible),
            tuple(i for i, _, after in possible if can_have(max_atoms, group, *after)))


@cache
def lasting(max_atoms: int, group: int, rest: Counts, cap: int, room: tuple[int, ...]
            ) -> dict[int, tuple[Counts, Counts]]:
    """Positions (indices) on which a site leaves what there is room for; for each the points that must be occupied
    later, and all that some may have to be. rest, cap: as for `choices`. room: how many sites each position has room
    for, `ANY` for any number.
    """
    table, most, others = atoms_of(max_atoms, group), sum(rest), tuple(sorted(rest[1:]))
    free = tuple(sorted({m for (m, _), some in zip(table, room, strict=True) if some == ANY}))
    few = tuple(0 if some == ANY else min(some, most // m) for (m, _), some in zip(table, room, strict=True))

    points = tuple(j for j, (_, again) in enumerate(table) if not again and few[j])

    def holds(i: int, *without: int) -> bool:
        fixed = (m for j, (m, _) in enumerate(table) if j not in without for _ in range(few[j] - (j == i)))
        return _fillable(free, tuple(sorted(fixed)), rest[0] - table[i][0], table[i][0], others)

    def needed(i: int) -> tuple[Counts, Counts]:
        others = tuple(j for j in points if j != i)
        if holds(i, *others):
            return (), ()
        return tuple(j for j in others if not holds(i, j)), others

    return {i: needed(i) for i, (m, _) in enumerate(table) if room[i] and m <= min(rest[0], cap) and holds(i)}


@cache
def fits(max_atoms: int, group: int, counts: Counts, sides: tuple[float, ...]) -> bool:
    """Whether a cell that holds a box with these sides (Å) certainly has room for so many atoms of each element."""
    return bool(lasting(max_atoms, group, counts, ANY, rooms(max_atoms, group, sides, 1)))


def _label(pattern: Pattern, cap: int) -> int:
    """The label of the next site: a new one if nothing bounds it by what came before."""
    last = max((label for _, label in pattern), default=-1)
    return last + 1 if cap == ANY else last


def _steps(max_atoms: int, group: int, pattern: Pattern, label: int, rest: Counts, cap: int
           ) -> list[tuple[int, int, tuple[Pattern, Counts, int]]]:
    """(position, its atoms, what is left) for positions that leave something that can be completed, in their order."""
    used = tuple(i for i, _ in pattern)
    found = []
    for i, (m, again) in enumerate(atoms_of(max_atoms, group)):
        if m > min(rest[0], cap) or (not again and i in used):
            continue
        if _held(max_atoms, group, (*used, i), rest[0] - m, m, tuple(sorted(rest[1:]))):
            left = (rest[0] - m, *rest[1:]) if rest[0] > m else rest[1:]
            found.append((i, m, ((*pattern, (i, label)), left, m if rest[0] > m else ANY)))
    return found


@cache
def can_have(max_atoms: int, group: int, pattern: Pattern, rest: Counts, cap: int = ANY, fresh: int = 0) -> bool:
    """Whether sites can be completed such that they have the group and no more symmetry; arguments as for `choices`.

    fresh: atoms after those of `rest`, of elements not yet chosen. Where that takes long to find out, it is taken to be
    so. False where they cannot be completed at all.
    """
    if _can_be_pinned(max_atoms, group, tuple(i for i, _ in pattern), rest, cap, fresh):
        return True
    patience = [_PATIENCE]

    def walk(pattern: Pattern, rest: Counts, cap: int, fresh: int) -> bool:
        label = _label(pattern, cap)
        if _pinned(group, [site for site in pattern if site[1] < label or not rest]):
            others = tuple(sorted((*rest[1:], *([fresh] if fresh else []))))
            return _held(max_atoms, group, tuple(i for i, _ in pattern), rest[0] if rest else 0, cap, others)
        if not rest and not fresh:
            return bool(pattern) and has_group(group, pattern)
        patience[0] -= 1
        if patience[0] < 0:
            return True
        if rest:
            steps = [(*after, fresh) for _, _, after in _steps(max_atoms, group, pattern, label, rest, cap)]
        else:  # every site a new element: the way to the least symmetry
            steps = [(after[0], (), ANY, fresh - m)
                     for _, m, after in _steps(max_atoms, group, pattern, label, (fresh,), ANY)]
        return any(walk(*step) for step in reversed(steps))  # the least symmetric position first

    return walk(pattern, rest, cap, fresh)


def _pinned(group: int, finished: list[tuple[int, int]]) -> bool:
    """Whether the only site of an element that gets no more sites has the group by itself."""
    labels = [label for _, label in finished]
    return any(pins(group)[i] and labels.count(label) == 1 for i, label in finished)


def _can_be_pinned(max_atoms: int, group: int, used: tuple[int, ...], rest: Counts, cap: int, fresh: int) -> bool:
    """Whether an element that is still to come can have its only site on a position that pins the group: the way of
    most. Elements of `rest` after a first one that is bound by `cap` are free to."""
    first, others = (rest[0], rest[1:]) if rest and cap < ANY else (0, rest)
    for i, (m, again) in enumerate(atoms_of(max_atoms, group)):
        if not pins(group)[i] or (not again and i in used):
            continue
        taken = (*used, i)
        if m in others:
            j = others.index(m)
            left = (*others[:j], *others[j + 1 :], *([fresh] if fresh else []))
            if _held(max_atoms, group, taken, first, cap, tuple(sorted(left))):
                return True
        if m <= fresh:
            left = (*others, *([fresh - m] if fresh > m else []))
            if _held(max_atoms, group, taken, first, cap, tuple(sorted(left))):
                return True
    return False

"""Runs a reward on real crystals and says what is wrong with it: `python -m rewards.check my.module:MyReward width=2`.

It looks at what the reward pool relies on: shapes and ranges, NaN for what could not be measured, the same score for a
crystal alone, in another order and in another company, no randomness, nothing changed that was given, small enough to
be sent to a worker, and quick.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pymatgen.core import Structure

from rewards import REWARDS, Reward, make
from rlgen.properties import measure
from rlgen.protostructure import library
from rlgen.types import Condition, UserError

#: Two scores that differ by less are the same: batches of a network round differently.
SAME = 1e-3
#: What a crystal may take (s), and a reward's pickle hold (bytes), before the check says that it is much.
SLOW, LARGE = 1.0, 1_000_000

Level = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """wrong: the pool, or what is learnt, goes wrong by it. note: it works, and could be better."""

    level: Level
    what: str


def crystals(count: int = 24) -> list[Structure]:
    """Real crystals of at most 20 atoms, from the AFLOW prototypes that pymatgen carries: elements to quaternaries."""
    found: list[Structure] = []
    for entry in library().AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure
        if len(structure) <= 20 and structure.is_ordered:
            found.append(Structure(structure.lattice, [site.specie.element if hasattr(site.specie, "element")
                                                       else site.specie for site in structure], structure.frac_coords))
    return found[:: max(len(found) // count, 1)][:count]


def asked_of(structures: Sequence[Structure]) -> list[Condition]:
    """What prompts may ask: of the first crystal nothing, of the second what it is, of the third nothing, of the fourth
    what the third is, and so on."""
    asked: list[Condition] = [{} for _ in structures]
    for i in range(1, len(structures), 2):
        s = structures[i if i % 4 == 1 else i - 1]
        asked[i] = {"space_group": int(measure("space_group", s)), "n_atoms": int(measure("n_atoms", s)),
                    "element": s.composition.elements[0].symbol, "density": round(s.density, 2)}
    return asked


def check(reward: Reward, structures: Sequence[Structure], conditions: Sequence[Condition]) -> Iterator[Finding]:
    """All findings about a reward on crystals (B) and what is asked of each, as they are made."""
    yield from _declaration(reward)
    started = time.perf_counter()
    try:
        if hasattr(reward, "warm_up"):
            reward.warm_up()
            yield Finding("ok", f"warm_up took {time.perf_counter() - started:.1f} s")
        before = [_content(*pair) for pair in zip(structures, conditions, strict=True)]
        started = time.perf_counter()
        raw = _measured(reward, structures, conditions)
        seconds = (time.perf_counter() - started) / len(structures)
    except UserError as error:
        yield Finding("wrong", f"it does not run: {error}")
        return
    except Exception as error:  # whatever a user's reward throws is what this is to find
        yield _raised(reward, error, structures, conditions)
        return
    yield from _values(reward, raw, len(structures))
    if np.shape(raw) != (len(structures),):
        return
    if [_content(*pair) for pair in zip(structures, conditions, strict=True)] != before:
        yield Finding("wrong", "measure changes the crystals or conditions it is given: other rewards see them too")
    yield from _honesty(reward, np.asarray(raw, dtype=float), structures, conditions)
    yield from _travel(reward, np.asarray(raw, dtype=float), structures, conditions)
    level: Level = "note" if seconds > SLOW else "ok"
    yield Finding(level, f"{1000 * seconds:.1f} ms per crystal" + (": a batch of 128 takes minutes" if level == "note"
                                                                   else ""))


def _content(structure: Structure, condition: Condition) -> tuple:
    """All of a crystal and its condition that a reward must leave as it is."""
    sites = tuple(str(site.specie) for site in structure), structure.frac_coords.tobytes()
    return *sites, structure.lattice.matrix.tobytes(), repr(structure.site_properties), repr(condition)


def _declaration(reward: Reward) -> Iterator[Finding]:
    cls: Any = type(reward)
    if not cls.__dataclass_params__.frozen:
        yield Finding("wrong", "the dataclass is not frozen: write @dataclass(frozen=True), so that every worker has "
                               "the same parameters")
    if not (isinstance(reward.name, str) and reward.name.isidentifier()):
        yield Finding("wrong", f"name is {reward.name!r}: it names columns and curves, and must be a plain word")
    elif reward.name in REWARDS and REWARDS[reward.name] != f"{cls.__module__}:{cls.__qualname__}":
        yield Finding("wrong", f"name is {reward.name!r}, which is that of rlgen's own {REWARDS[reward.name]}")
    if not isinstance(reward.unit, str):
        yield Finding("wrong", f"unit is {reward.unit!r}: a text, "" for none")
    if not isinstance(reward.per_sample, bool):
        yield Finding("wrong", f"per_sample is {reward.per_sample!r}: True or False")


def _measured(reward: Any, structures: Sequence[Structure], conditions: Sequence[Condition]) -> Any:
    """Raw values as the pool gets them: by the richest of the three ways that a reward may have."""
    for way in ("measure_with_columns", "measure_with_reasons"):
        if hasattr(reward, way):
            return getattr(reward, way)(list(structures), list(conditions))[0]
    return reward.measure(list(structures), list(conditions))


def _raised(
    reward: Reward, error: Exception, structures: Sequence[Structure], conditions: Sequence[Condition]
) -> Finding:
    """What was raised, where, and over which crystal, if it is one alone."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"
    guilty = []
    for structure, condition in zip(structures, conditions, strict=True):
        try:
            _measured(reward, [structure], [condition])
        except Exception:  # the same that was met in the batch, or another
            guilty.append(f"{structure.composition.reduced_formula}, asked {dict(condition) or 'nothing'}")
    over = f"over {len(guilty)} of {len(structures)} crystals, first {guilty[0]}" if guilty else "over a batch only"
    return Finding("wrong", f"measure raises {where} {over}; give NaN where there is no value")


def _values(reward: Reward, raw: Any, count: int) -> Iterator[Finding]:
    if np.shape(raw) != (count,):
        yield Finding("wrong", f"measure gives the shape {np.shape(raw)} for {count} crystals: must be ({count},)")
        return
    try:
        values = np.asarray(raw, dtype=float)
    except (TypeError, ValueError):
        yield Finding("wrong", "measure gives what is no number; NaN stands for none")
        return
    if np.isinf(values).any():
        yield Finding("wrong", f"measure gives infinity for {np.isinf(values).sum()} crystals: the pool takes them for "
                               "failed; give NaN, or a large number if that is meant")
    missing = np.isnan(values)
    if missing.all():
        yield Finding("wrong", "measure gives NaN for every crystal: nothing would be learnt")
        return
    kept = values[~missing]
    copy = kept.copy()
    score = np.asarray(reward.transform(kept), dtype=float)
    if not np.array_equal(kept, copy):
        yield Finding("wrong", "transform changes the raw values it is given")
    if score.shape != kept.shape:
        yield Finding("wrong", f"transform gives the shape {score.shape} for {kept.shape}")
        return
    if not ((score >= -1e-9) & (score <= 1 + 1e-9)).all():
        yield Finding("wrong", f"transform gives scores from {np.nanmin(score):.3g} to {np.nanmax(score):.3g}: they "
                               "must be in [0, 1], 1 the best")
    with_nan = np.asarray(reward.transform(np.append(kept[:1], np.nan)), dtype=float)
    if not np.isnan(with_nan[-1]):
        yield Finding("wrong", f"transform makes {with_nan[-1]:.3g} of NaN: a crystal that was not measured would earn")
    if np.ptp(score) == 0 and len(score) > 1:
        yield Finding("note", f"every crystal has the score {score[0]:.3g}: nothing is learnt from that")
    unit = f" {reward.unit}" if isinstance(reward.unit, str) and reward.unit else ""
    yield Finding("ok", f"raw {kept.min():.3g} to {kept.max():.3g}{unit}, score {score.min():.2f} to "
                        f"{score.max():.2f}, {missing.sum()} of {count} not measured")


def _honesty(
    reward: Reward, raw: np.ndarray, structures: Sequence[Structure], conditions: Sequence[Condition]
) -> Iterator[Finding]:
    """Whether a score is a crystal's own."""

    def of(rows: Sequence[int]) -> np.ndarray:
        found = _measured(reward, [structures[i] for i in rows], [conditions[i] for i in rows])
        return np.asarray(found, dtype=float)

    def differ(found: np.ndarray, rows: Sequence[int]) -> list[str]:
        far = ~np.isclose(found, raw[list(rows)], rtol=SAME, atol=SAME, equal_nan=True)
        return [f"{structures[i].composition.reduced_formula}: {f:.4g} instead of {raw[i]:.4g}"
                for i, f, bad in zip(rows, found, far, strict=True) if bad]

    everyone, half = list(range(len(raw))), list(range(0, len(raw), 2))
    if bad := differ(of(everyone), everyone):
        yield Finding("wrong", f"the same crystals measured again have other values ({bad[0]}): a run could not be "
                               "repeated; take randomness out")
        return
    if bad := differ(of(everyone[::-1]), everyone[::-1]):
        yield Finding("wrong", f"a value depends on the crystal's place in the batch ({bad[0]})")
    alone = np.concatenate([of([i]) for i in everyone])
    depends = differ(alone, everyone) or differ(of(half), half)
    if reward.per_sample and depends:
        yield Finding("wrong", f"per_sample is True, but a value depends on the other crystals of the batch "
                               f"({depends[0]}): workers see only parts of a batch; say per_sample = False")
    elif not reward.per_sample and not depends:
        yield Finding("note", "per_sample is False, but no value depends on other crystals: with True it would be "
                              "shared among workers")
    else:
        yield Finding("ok", "a value is the crystal's own" if reward.per_sample else "a value is of the whole batch")


def _travel(
    reward: Reward, raw: np.ndarray, structures: Sequence[Structure], conditions: Sequence[Condition]
) -> Iterator[Finding]:
    """Whether a reward arrives at a worker as what it is."""
    try:
        packed = pickle.dumps(reward)
        arrived = pickle.loads(packed)
    except Exception as error:  # pickle passes on whatever a class throws
        yield Finding("wrong", f"it cannot be sent to a worker: {type(error).__name__}: {error}")
        return
    if type(reward).__module__ == "__main__":
        yield Finding("wrong", "it lives in the script that was called: workers import it by its module's name")
    few = slice(0, 4)
    there = np.asarray(_measured(arrived, structures[few], conditions[few]), dtype=float)
    same = np.allclose(there, raw[few], rtol=SAME, atol=SAME, equal_nan=True) or not reward.per_sample
    if not same:
        yield Finding("wrong", "sent to a worker it gives other values: what it needs must be in its parameters")
    if len(packed) > LARGE:
        yield Finding("note", f"{len(packed) / 1e6:.1f} MB go to every worker: load what is heavy in warm_up, by a "
                              "function with functools.lru_cache")
    elif same:
        yield Finding("ok", f"{len(packed):,} bytes go to a worker")


def main(arguments: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    """0: nothing is wrong, 1: something is, 2: there is no such reward."""
    parser = argparse.ArgumentParser(prog="python -m rewards.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reward", help="my.module:MyReward, or the name of one of rlgen's: " + ", ".join(REWARDS))
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="its parameters, as in reward.<name>.…")
    parser.add_argument("--crystals", type=int, default=24, help="how many it is run on (default 24)")
    chosen = parser.parse_args(arguments)
    try:
        reward = make(chosen.reward, **_parameters(chosen.parameters))
        structures = crystals(chosen.crystals)
        show(f"{chosen.reward} on {len(structures)} crystals from {structures[0].composition.reduced_formula} to "
             f"{structures[-1].composition.reduced_formula}")
        wrong = 0
        for finding in check(reward, structures, asked_of(structures)):
            show(f"{finding.level:6}{finding.what}")
            wrong += finding.level == "wrong"
    except UserError as error:
        print(f"rewards.check: {error}", file=sys.stderr)
        return 2
    show(f"{wrong} wrong" if wrong else "nothing is wrong: python -m rlgen.finetune reward=…")
    return int(wrong > 0)


def _parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """Parameters from name=value, a dot leading into a mapping: width.density=2."""
    from ast import literal_eval

    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign:
            raise UserError(f"{pair!r} is not name=value")
        try:
            value = literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        *path, last = key.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return found


if __name__ == "__main__":
    raise SystemExit(main())

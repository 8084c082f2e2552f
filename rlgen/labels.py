"""What is known of crystals that a policy is to be asked for, and the scales that it is told on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlgen.conditions import CATEGORIES, NUMBER_OF, Category, Transform, check_name
from rlgen.data import Record
from rlgen.data.progress import bar
from rlgen.properties import measure
from rlgen.types import UserError


def label(records: Sequence[Record], name: str, *, optional: bool = False) -> np.ndarray:
    """(M,) a property of crystals, NaN where it is unknown.

    A column of the data that is called so counts before what would be measured. Where there is neither it is unknown of
    all if it is `optional`, else a UserError.
    """
    if any(name in record.properties for record in records):
        return np.array([record.properties.get(name, np.nan) for record in records])
    try:
        with bar(f"measuring {name}", len(records)) as progress:
            values = []
            for record in records:
                values.append(measure(name, record.structure))
                progress.advance(1)
        return np.array(values)
    except UserError as error:
        if optional:
            return np.full(len(records), np.nan)
        columns = sorted({column for record in records for column in record.properties})
        raise UserError(f"conditions: the data have no column {name} (numbers of theirs: {', '.join(columns) or 'none'}"
                        f"), and {error}") from error


def labels(records: Sequence[Record], names: Sequence[str], *, optional: bool = False) -> dict[str, np.ndarray]:
    """`label` by name, but for the crystal system, which follows from the space group that is written; of a category
    with a threshold the number."""
    return {name: label(records, NUMBER_OF.get(name, name), optional=optional) for name in names
            if name != "crystal_system"}


def scales(names: Sequence[str], given: Mapping[str, Mapping[str, Any]], values: Mapping[str, np.ndarray]
           ) -> dict[str, dict[str, Any]]:
    """The scale of each property as a plain dict: what is given of it (kind, low, high, bins; threshold), the rest
    fitted."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        check_name(name)
        try:
            scale = (_category(CATEGORIES[name], values.get(name), **given.get(name, {})) if name in CATEGORIES else
                     Transform.fit(values[name], **given.get(name, {})))
        except (TypeError, UserError) as error:
            raise UserError(f"conditions.{name}: {error}") from error
        found[name] = scale.to_dict()
    return found


def _category(category: Category, values: np.ndarray | None, **given: Any) -> Category:
    """UserError where a threshold leaves all values on one side."""
    category = replace(category, **given)
    found = [] if values is None else np.unique(category.places(values[np.isfinite(values)])).tolist()
    if values is not None and len(found) < 2:
        names = [category.names[int(place)] for place in found]
        raise UserError(f"all that is known is {names[0]} with threshold={category.threshold}: there is nothing to ask "
                        "for" if names else "no values")
    return category

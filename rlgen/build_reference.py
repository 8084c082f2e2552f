"""Makes a novelty reference of a data set: an index of its crystals, or, as rlgen ships it, of their labels only.

python -m rlgen.build_reference DATA known.sqlite                             # then data=known.sqlite
python -m rlgen.build_reference mp20 rlgen/assets/novelty_mp20.parquet
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlgen.crystal_index import SUFFIX, CrystalIndex
from rlgen.data import load
from rlgen.protostructure import UNLABELLED
from rlgen.reference import LOOKUP_SYMPRECS, protostructure_label
from rlgen.types import UserError


def build_index(dataset: str, target: Path) -> str:
    """Write the crystals of a data set, all its splits, as they are. Returns what was done, in one line."""
    data = load(dataset)
    index = CrystalIndex.build(data, data.name, target)
    return f"{target}: {index.size:,} crystals, {target.stat().st_size / 1e6:.1f} MB"


def build_labels(dataset: str, target: Path) -> str:
    """Write the labels of a data set: columns `label`, `split` (the first split, in the order train, val, test, that
    has it), sorted by label. Returns what was done, in one line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = load(dataset)
    split_of: dict[str, str] = {}
    unlabelled = 0
    for split, records in data.splits.items():
        for record in records:
            structure = record.structure
            labels = {protostructure_label(structure, symprec) for symprec in LOOKUP_SYMPRECS}
            labels = {label for label in labels if not label.endswith(UNLABELLED)}
            unlabelled += not labels
            for label in labels:
                split_of.setdefault(label, split)
    ordered = sorted(split_of)
    table = pa.table({"label": ordered, "split": pa.array([split_of[x] for x in ordered]).dictionary_encode()})
    table = table.replace_schema_metadata({"source": data.name, "symprec": ", ".join(map(str, LOOKUP_SYMPRECS))})
    # Sorted labels share their beginnings, which is what the delta encoding stores once.
    pq.write_table(
        table,
        target,
        compression="zstd",
        compression_level=19,
        use_dictionary=["split"],
        column_encoding={"label": "DELTA_BYTE_ARRAY"},
        write_statistics=False,
    )
    return (
        f"{target}: {len(ordered):,} labels of {len(data):,} crystals ({unlabelled} unlabelled), "
        f"{target.stat().st_size / 1e6:.2f} MB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="mp20, prototypes, or a path")
    parser.add_argument("target", type=Path, help="the file to write: .sqlite with crystals, .parquet with labels")
    options = parser.parse_args()
    try:
        kinds = {SUFFIX: build_index, ".parquet": build_labels}
        if options.target.suffix not in kinds:
            raise UserError(f"{options.target}: a reference ends in {' or '.join(kinds)}")
        print(kinds[options.target.suffix](options.dataset, options.target))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

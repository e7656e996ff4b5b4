"""`python -m benchmarks.storage [--only KEY ...] [--quick] [--json]`: a key a row, peers in turn.

Each row can be run alone in less than 200 s.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.storage import metadata, mounts, rows
from benchmarks.storage.place import Place, place

ROWS: dict[str, Callable[[Place], dict[str, Any]]] = {
    each.__name__: each
    for each in (
        rows.sdk_read_vs_obstore,
        rows.gateway_cpu_ms_per_mb,
        rows.grpc_vs_raw_s3,
        rows.array_read_vs_raw,
        rows.array_write_vs_raw,
        rows.patch_cached_ms,
        rows.small_files_per_s,
        rows.ingest_files_per_s,
        mounts.mount_small_vs_local,
        mounts.mount_seq_mb_s,
        mounts.loader_decode_vs_local,
        mounts.loader_raw_vs_local,
        rows.commits_per_s,
        metadata.metadata_open_s,
    )
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    parser.add_argument("--only", action="append", choices=sorted(ROWS), help="rows; default all")
    parser.add_argument("--quick", action="store_true", help="smaller inputs, two rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="hyper-bench-") as scratch,
        place(Path(scratch), quick=options.quick) as where,
    ):
        for key in options.only or ROWS:
            print(f"{key} ...", file=sys.stderr, flush=True)
            found[key] = ROWS[key](where)
            print(f"{key}: {found[key]['value']}", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(found))
        return
    for key, figures in found.items():
        print(f"{key:28} {figures['value']:.4g}")


if __name__ == "__main__":
    main()

"""`python -m benchmarks.storage [--only KEY ...] [--quick] [--json]`: a key a row, peers in turn.

Each row can be run alone in less than 200 s.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
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


def main() -> int:
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
            try:
                found[key] = ROWS[key](where)
            except Exception as error:  # noqa: BLE001  (the row's result; the others are measured)
                traceback.print_exc()
                found[key] = {"value": None, "reason": f"{type(error).__name__}: {error}"[:500]}
            print(f"{key}: {found[key]['value']}", file=sys.stderr, flush=True)
    failed = [key for key, figures in found.items() if figures["value"] is None]
    if options.json:
        print(json.dumps(found))
    else:
        for key, figures in found.items():
            print(f"{key:28} " + ("failed" if key in failed else f"{figures['value']:.4g}"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

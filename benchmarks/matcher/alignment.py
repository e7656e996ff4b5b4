"""Quality and time of aligning a folder of sections: `python -m benchmarks.matcher.alignment`.

The last line with `--json` is the result object of our aligner.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.matcher.sections import read_stack
from hyper_matcher.align.pipeline import align_stack


def main(argv: list[str] | None = None) -> int:
    """Align a folder in memory and print what came out."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data"))
    parser.add_argument(
        "--sections", default=str(data / "em" / "aligntk_raw"), help="DIR[:a-b], both ends included"
    )
    parser.add_argument("--json", action="store_true", help="end with the result object")
    arguments = parser.parse_args(argv)
    volume = read_stack(arguments.sections)
    align_stack(volume[:2, :512, :512])  # compile
    stack = align_stack(volume)
    for stage, seconds in stack.stages.items():
        print(f"{stage:10} {seconds:7.2f} s")
    result = stack.result
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:20} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

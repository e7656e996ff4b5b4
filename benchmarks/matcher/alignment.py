"""Quality and time of aligning a folder of sections: `python -m benchmarks.matcher.alignment`.

The last line with `--json` is the result object of our aligner.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hyper_matcher.align.pipeline import align_stack

_SUFFIXES = (".png", ".tif", ".tiff")


def main(argv: list[str] | None = None) -> int:
    """Align a folder in memory and print what came out."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data"))
    parser.add_argument("--sections", type=Path, default=data / "em" / "aligntk_raw")
    parser.add_argument("--json", action="store_true", help="end with the result object")
    arguments = parser.parse_args(argv)
    files = sorted(p for p in arguments.sections.glob("*") if p.suffix in _SUFFIXES)
    if len(files) < 2:
        print(f"error: {arguments.sections}: fewer than two sections there", file=sys.stderr)
        return 2
    volume = np.stack([np.asarray(Image.open(file)) for file in files])
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

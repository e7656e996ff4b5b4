"""Run a tutorial as written: every block marked `sh`, in one shell, in the repository's folder.

python -m scripts.run_tutorial docs/tutorial-scientist.md
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: str) -> str:
    """What a reader would type."""
    return "\n".join(_BLOCK.findall(page))


def main() -> int:
    """Run the pages in turn; stops at the first command that fails, and says so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    for page in parser.parse_args().pages:
        script = commands(page.read_text())
        print(f"== {page}", flush=True)
        done = subprocess.run(["bash", "-eux"], input=script, text=True, cwd=ROOT, check=False)
        if done.returncode != 0:
            print(f"{page}: a command ended with status {done.returncode}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

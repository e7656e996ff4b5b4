"""Pages whose commands are run again, with what they print below them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.record_session import LINES, Shell, record, shortened

PAGE = """\
A page.

```console
$ A=1
$ echo "a is $A"; printf '10%%\\r20%%\\n'
yesterday's output
```
```sh
echo no
```
```console
$ {second}
$ echo "{root}"
```
"""


def recorded(**words: str) -> tuple[str, int]:
    shell = Shell()
    try:
        page = PAGE.replace("{second}", words["second"]).replace("{root}", words["root"])
        return record(page, shell.run)
    finally:
        shell.close()


def test_output_is_replaced_and_variables_last() -> None:
    page, status = recorded(second="seq 40", root=str(Path.cwd() / "x"))
    assert status == 0 and "yesterday" not in page
    assert '$ A=1\n# 0 s\n$ echo "a is $A"' in page
    assert "\na is 1\n20%\n# 0 s\n```\n```sh\necho no\n```\n" in page
    assert f"1\n2\n3\n4\n[{40 - LINES} more lines]\n31\n" in page
    assert page.count("[26 more lines]") == 1 and "\n./x\n# 0 s\n" in page


@pytest.mark.parametrize(("second", "status"), [("false", 1), ("exit 3", 3)])
def test_a_command_that_fails_is_the_last(second: str, status: int) -> None:
    page, last = recorded(second=second, root="never")
    assert last == status
    assert page.endswith(f'$ {second}\n# 0 s, exit status {status}\n$ echo "never"\n```\n')


def test_empty_lines_are_left_out() -> None:
    assert shortened(["", "a", "", "b"]) == ["a", "b"]

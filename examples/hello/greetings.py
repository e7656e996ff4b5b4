"""A task function and a program: what a recipe can run."""

from __future__ import annotations

import os
import sys

from hyper import TaskContext


def greet(context: TaskContext, *, name: str, excited: bool) -> dict[str, str | int]:
    """Called in a warm process; what it returns is the task's result."""
    greeting = f"hello, {name}{'!' if excited else '.'}"
    context.log(greeting)
    context.report(letters=len(greeting))
    return {"greeting": greeting, "task": context.index}


def main() -> None:
    """Run as a command: its arguments come from the recipe's template."""
    word = sys.argv[1]
    print(f"{os.environ['HYPER_TASK']} says {word}")


if __name__ == "__main__":
    main()

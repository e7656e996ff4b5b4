"""Which files of a folder git would leave out: .gitignore files in it and, in a repository, above.

Rules are those of gitignore(5): the last pattern that fits decides, deeper files before higher
ones, and nothing in an ignored folder comes back. `.git/info/exclude` and the user's own excludes
are left aside: the same folder is the same wherever it is uploaded from. Patterns are
read by pathspec: unlike git's, `!folder/` brings back what its file leaves out inside, too.
"""

from __future__ import annotations

from pathlib import Path

from pathspec import GitIgnoreSpec

from hyper.errors import InvalidArgumentError

FILE = ".gitignore"


class GitIgnore:
    """The rules that hold in a folder.

    Args:
        folder: absolute. Rules above it are left aside where they ignore the folder itself.
    """

    def __init__(self, folder: Path) -> None:
        self._specs: dict[Path, GitIgnoreSpec | None] = {}
        self._folder, self._above = folder, _repository_above(folder)
        if any(self.ignores(each, is_folder=True) for each in [*self._above[:-1], folder]):
            self._above = []

    def ignores(self, path: Path, *, is_folder: bool) -> bool:
        """Whether a file or folder is left out, nothing above it being so."""
        for folder in path.parents:  # the deepest first
            if not (folder.is_relative_to(self._folder) or folder in self._above):
                continue
            spec = self._spec(folder)
            if spec is None:
                continue
            name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
            found = spec.check_file(name).include
            if found is not None:
                return bool(found)
        return False

    def _spec(self, folder: Path) -> GitIgnoreSpec | None:
        if folder not in self._specs:
            file = folder / FILE
            lines = (
                file.read_bytes().decode(errors="replace").splitlines() if file.is_file() else []
            )
            try:
                self._specs[folder] = GitIgnoreSpec.from_lines(lines) if lines else None
            except ValueError as error:
                raise InvalidArgumentError(f"{file}: {error}", reason="INVALID_RECIPE") from error
        return self._specs[folder]


def _repository_above(folder: Path) -> list[Path]:
    """Folders above, nearest first, up to the repository's; none if it is in no repository."""
    if (folder / ".git").exists():
        return []
    for count, parent in enumerate(folder.parents, start=1):
        if (parent / ".git").exists():
            return list(folder.parents[:count])
    return []

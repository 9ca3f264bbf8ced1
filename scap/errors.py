"""The one exception that users of SCAP see."""

from pathlib import Path


class ScapError(ValueError):
    """An error that the user can fix: the message names the key, file or layer and says how."""


class DamagedFile(ScapError):
    """A file that is missing, or not what it should be: `path` names it, so that the caller can say what makes it again."""

    def __init__(self, path: str | Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}; make it again")
        self.path, self.problem = str(path), problem

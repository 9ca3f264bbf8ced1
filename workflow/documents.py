"""Documents without typed numbers: blocks that are made from tables, settings and code.

    <!-- made by: summary half-criteria show=top1 -->

    (the table)

    <!-- end -->

Inside a line, a block holds one value. `python -m workflow.documents` makes all blocks again; a test fails where one differs.
The word after `made by:` is a renderer (RENDERERS); `name=value` is an argument of it, or picks the rows of a table:
`criterion=scap,l1` several values, `C=64..` a range.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from scap.errors import ScapError
from workflow.manual import MANUAL, ROOT
from workflow.tables import TABLES

DOCUMENTS = ("README.md", "benchmarks/README.md", "docs/*.md")
BLOCK = re.compile(r"<!-- made by: (?P<call>[^>]+?) -->(?P<body>.*?)<!-- end -->", re.DOTALL)
RENDERERS: dict[str, Callable[..., str]] = {function.__name__: function for function in (*TABLES, *MANUAL)}


def fill(text: str) -> str:
    """A document with all its blocks made again; ScapError quotes a block that cannot be."""
    return BLOCK.sub(_made, text)


def _made(match: re.Match[str]) -> str:
    name, *words = shlex.split(match["call"])
    given = dict(word.split("=", 1) for word in words if "=" in word)
    try:
        body = RENDERERS[name](*(word for word in words if "=" not in word), **given)
    except (ScapError, KeyError, TypeError, ValueError, AttributeError, pd.errors.MergeError) as error:
        raise ScapError(f"'made by: {match['call']}': {error}") from error
    gap = "\n\n" if match["body"].startswith("\n") else ""
    return f"<!-- made by: {match['call']} -->{gap}{body}{gap}<!-- end -->"


def documents() -> list[Path]:
    """The documents whose blocks are made."""
    return sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))


def main() -> None:
    """Make every block again and say which documents changed."""
    for path in documents():
        before = path.read_text()
        try:
            after = fill(before)
        except ScapError as error:
            raise SystemExit(f"error: {path.relative_to(ROOT)}: {error}") from error
        if after != before:
            path.write_text(after)
            print(f"{path.relative_to(ROOT)}: made again")


if __name__ == "__main__":
    main()

"""CSV tables."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd


def write_table(path: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows with the same keys, numbers in full precision."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(list(rows)).to_csv(path, index=False)

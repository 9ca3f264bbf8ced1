"""CSV tables, whole or not at all; scap.reading reads them."""

from collections.abc import Iterable, Mapping

import pandas as pd

from scap.writing import write_whole


def write_table(path: str, rows: pd.DataFrame | Iterable[Mapping[str, object]]) -> None:
    """Write rows with the same keys, numbers in full precision."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    write_whole(path, table.to_csv(index=False))

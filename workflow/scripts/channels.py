"""Tables with a row for every channel of a layer."""

import pandas as pd
from numpy.typing import NDArray

from scap.errors import DamagedFile
from scap.reading import COSINE, FRACTION, channel_values, read_table


def read_fidelity(path: str, layer: str) -> NDArray:
    """The fidelity of every channel of a layer, (K,); DamagedFile where the table is not of this layer."""
    values = channel_values(read_table(path, ["layer"], ["channel", "fidelity"]), "fidelity", COSINE, source=path)
    if list(values) != [layer]:
        raise DamagedFile(path, f"is of layer {', '.join(values)}, not of {layer}")
    return values[layer]


def read_scores(path: str) -> pd.DataFrame:
    """A score table: `layer`, `channel`, a column a term, `score`; layers in the order of the file."""
    table = read_table(path, ["layer"], ["channel", "score"], whole=["channel"])
    channel_values(table, "score", FRACTION, source=path)
    return table.astype({"channel": int})

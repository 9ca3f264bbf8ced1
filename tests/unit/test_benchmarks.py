"""Tables of measurements: what a run that was stopped may go on from."""

from argparse import Namespace

import pandas as pd
import pytest

from benchmarks.common import earlier_rows, machine, write_table


@pytest.mark.parametrize(
    ("note", "where", "kept"), [("as now", machine(), 1), ("as before", machine(), 0), ("as now", "another machine", 0)]
)
def test_rows_of_another_machine_or_way_are_measured_again(note, where, kept, tmp_path):
    options = Namespace(results=tmp_path, quick=False)
    write_table("times", [{"case": "a", "s": 1.5}], options, note, show=False)
    table = pd.read_csv(tmp_path / "times.csv").assign(machine=where)
    table.to_csv(tmp_path / "times.csv", index=False)
    assert earlier_rows("times", options, "as now") == [{"case": "a", "s": 1.5}] * kept

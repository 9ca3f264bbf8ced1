"""Figures carry the tables' numbers, and name what they cannot draw (how they look: tests/workflow/test_pictures.py)."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from drawn import CRITERIA, FIGURES, MIXED, QUARTER, SCHEDULES, VGG, channels, history, method, runs, scores, sensitivity, write
from matplotlib.colors import to_hex

from scap.errors import ScapError
from scap.figures.channels import channels_figure, scores_figure
from scap.figures.headline import headline_figure
from scap.figures.method import method_figure
from scap.figures.runs import finetuning_figure, tradeoff_figure
from scap.figures.sensitivity import sensitivity_figure
from scap.figures.style import save
from scap.published import ROWS


def test_save_names_the_formats(tmp_path):
    with pytest.raises(ScapError, match=r"figure\.jpeg.*\.png or \.pdf"):
        save(FIGURES["finetuning"](tmp_path), [tmp_path / "figure.jpeg"])


def test_method_shows_the_panels_and_shares_the_colours_of_the_spectra(tmp_path):
    path = method(tmp_path / "method.csv", 4, 6)
    figure = method_figure(path)
    table = pd.read_csv(path)
    panels = ("input", "output", "spectrum", "reconstruction")
    images = [axes.images[0] for axes in figure.axes[:4]]
    for panel, image in zip(panels, images, strict=True):
        expected = table[table["panel"] == panel]["value"].to_numpy().reshape(4, 6)
        np.testing.assert_array_equal(image.get_array(), expected)
    assert images[2].get_clim() == images[3].get_clim()
    # Bins of an fftshifted spectrum lie at the frequencies that numpy gives them.
    left, right, bottom, top = images[2].get_extent()
    centres = left + (np.arange(6) + 0.5) * (right - left) / 6
    np.testing.assert_allclose(centres, np.fft.fftshift(np.fft.fftfreq(6)), atol=1e-12)
    centres = top + (np.arange(4) + 0.5) * (bottom - top) / 4
    np.testing.assert_allclose(centres, np.fft.fftshift(np.fft.fftfreq(4)), atol=1e-12)


def test_method_colours_survive_an_empty_frequency(tmp_path):
    path = method(tmp_path / "method.csv", 4, 4)
    table = pd.read_csv(path)
    table.loc[table.index[-1], "value"] = -np.inf
    limits = method_figure(write(path, table)).axes[3].images[0].get_clim()
    assert np.isfinite(limits).all()


def test_scores_draws_every_channel_the_threshold_and_the_shares(tmp_path):
    path = scores(tmp_path / "scores.csv", QUARTER)
    figure = scores_figure(path, 0.6)
    table = pd.read_csv(path)
    for axes, column in zip(figure.axes, ("fidelity", "score"), strict=True):
        dots = axes.collections[0]
        np.testing.assert_allclose(dots.get_offsets()[:, 1], table[column])
        layers = np.rint(dots.get_offsets()[:, 0]).astype(int)
        assert [list(QUARTER)[index] for index in layers] == list(table["layer"])
        colours = {kept: {to_hex(c) for c in dots.get_facecolors()[table["score"].ge(0.6) == kept]} for kept in (0, 1)}
        assert len(colours[0]) == len(colours[1]) == 1
        assert colours[0] != colours[1]
    score = figure.axes[1]
    assert [label.get_text() for label in score.get_xticklabels()] == list(QUARTER)
    assert [list(line.get_ydata()) for line in score.get_lines()] == [[0.6, 0.6]]
    shares = table["score"].ge(0.6).groupby(table["layer"], sort=False).mean() * 100
    assert [label.get_text() for label in score.child_axes[0].get_xticklabels()] == [f"{s:.0f}" for s in shares]


def test_scores_leaves_out_a_panel_without_fidelity(tmp_path):
    figure = scores_figure(scores(tmp_path / "scores.csv", QUARTER, fidelity=False), 0.6)
    assert [axes.get_ylabel() for axes in figure.axes] == ["score (dimensionless)"]


def test_scores_with_a_damaged_fidelity_are_refused(tmp_path):
    path = scores(tmp_path / "scores.csv", QUARTER)
    write(path, pd.read_csv(path).assign(fidelity="high"))
    with pytest.raises(ScapError, match=r"scores\.csv: column 'fidelity', row 1 is not a number"):
        scores_figure(path)


def test_scores_of_a_budget_have_no_threshold(tmp_path):
    figure = scores_figure(scores(tmp_path / "scores.csv", QUARTER), title="vgg16, scap")
    for axes in figure.axes:
        assert len({to_hex(colour) for colour in axes.collections[0].get_facecolors()}) == 1
        assert not axes.get_lines()
        assert not axes.child_axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["median"]
    assert figure.get_suptitle() == "vgg16, scap"


def test_channels_bars_and_numbers(tmp_path):
    path = write(tmp_path / "channels.csv", {"layer": ["a", "b"], "before": [64, 512], "after": [16, 2]})
    axes = channels_figure(path).axes[0]
    before, after = axes.containers
    assert [bar.get_height() for bar in before] == [64, 512]
    assert [bar.get_height() for bar in after] == [16, 2]
    assert [text.get_text() for text in axes.texts] == ["16/64\n25 %", "2/512\n0.4 %"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


def test_tradeoff_lines_are_the_means_over_seeds(tmp_path):
    path = runs(tmp_path / "runs.csv", criteria=["scap", "l1"], schedule=SCHEDULES)
    table = pd.read_csv(path)
    figure = tradeoff_figure(path)
    for axes, column in zip(figure.axes, ("macs_removed", "params_removed"), strict=True):
        lines = {container.get_label(): container for container in axes.containers}
        assert set(lines) == {"scap (paper)", "scap (distilled)", "l1 (paper)", "l1 (distilled)"}
        chosen = table[(table["criterion"] == "l1") & (table["schedule"] == "distilled")].groupby("size")
        line, _, (across, along) = lines["l1 (distilled)"].lines
        np.testing.assert_allclose(line.get_xydata()[:, 0], 100 * chosen[column].mean())
        np.testing.assert_allclose(line.get_xydata()[:, 1], chosen["top1"].mean())
        half = [np.ptp(bar[:, 1]) / 2 for bar in along.get_segments()]
        np.testing.assert_allclose(half, chosen["top1"].std())
        half = [np.ptp(bar[:, 0]) / 2 for bar in across.get_segments()]
        np.testing.assert_allclose(half, 100 * chosen[column].std())
        baseline = [line for line in axes.get_lines() if list(line.get_xdata()) == [0, 1]]
        np.testing.assert_allclose([line.get_ydata() for line in baseline], [[93.1, 93.1]])


def test_tradeoff_tells_criteria_by_colour_and_marker_and_schedules_by_dashes(tmp_path):
    path = runs(tmp_path / "runs.csv", criteria=CRITERIA, schedule=SCHEDULES)
    lines = [container.lines[0] for container in tradeoff_figure(path).axes[0].containers]
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines]
    assert len(set(looks)) == 20
    assert len({colour for colour, _, _ in looks}) == len({marker for _, marker, _ in looks}) == 10
    assert len({dashes for _, _, dashes in looks}) == 2
    # Also where a schedule is one point and has no line: open markers.
    assert {line.get_linestyle(): line.get_markerfacecolor() == "white" for line in lines} == {"-": False, "--": True}


def test_points_of_every_compensation_have_markers_of_their_own(tmp_path):
    """Where all are of one size there is no line to tell them apart."""
    path = runs(tmp_path / "runs.csv", compensation=["none", "batch-norm", "channelwise", "full"], sizes=["macs-0.5"])
    lines = [container.lines[0] for container in tradeoff_figure(path).axes[0].containers]
    assert len({(line.get_fillstyle(), line.get_markerfacecolor()) for line in lines}) == len(lines) == 4


def test_tradeoff_one_seed_has_no_spread(tmp_path):
    figure = tradeoff_figure(runs(tmp_path / "runs.csv", seeds=[0]))
    assert not any(container.has_yerr for axes in figure.axes for container in axes.containers)
    assert "one seed" in figure.legends[0].get_title().get_text()


def test_tradeoff_does_not_mix_networks(tmp_path):
    table = pd.read_csv(runs(tmp_path / "runs.csv"))
    both = pd.concat([table, table.assign(network="resnet20", top1_baseline=90)])
    figure = tradeoff_figure(write(tmp_path / "both.csv", both))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["vgg16, scap", "resnet20, scap", "vgg16 baseline (93.10 %)", "resnet20 baseline (90.00 %)"]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()], figure.legends[0].get_title().get_text()


def test_tradeoff_names_the_axes_in_which_runs_differ(tmp_path):
    """Widths tell lines apart, compensation and schedule dashes; what all runs share is said once."""
    path = runs(tmp_path / "runs.csv", criteria=["scap", "l1"], widths=["own", "scap"], compensation=["none", "full"])
    texts, title = legend(tradeoff_figure(path))
    assert texts[:-1] == ["scap, widths: own", "scap, widths: scap", "l1, widths: own", "l1, widths: scap", "none", "full"]
    assert title == "points: τ = 0.4, 0.5, 0.6; mean ± s.d. over 3 seeds; schedule: paper"


def test_tradeoff_names_all_kinds_of_sizes(tmp_path):
    texts, title = legend(tradeoff_figure(runs(tmp_path / "runs.csv", sizes=MIXED, seeds=[0])))
    assert texts == ["scap", "baseline (93.00 %)"]
    assert title.startswith("points: share of FLOPs left 0.5, share of parameters left 0.1, τ = 0.4, 0.6; one seed; ")


def test_two_budgets_are_said_in_words(tmp_path):
    figure = tradeoff_figure(runs(tmp_path / "runs.csv", sizes=["macs-0.5", "macs-0.0989-params-0.037"], seeds=[0]))
    text = figure.legends[0].get_title().get_text()
    assert "share of FLOPs left 0.0989 and share of parameters left 0.037, share of FLOPs left 0.5" in text


def test_tradeoff_says_from_where_to_where_many_sizes_reach(tmp_path):
    many = [f"threshold-{value / 10}" for value in range(1, 9)]
    assert "τ = 0.1 to 0.8 (8 values)" in legend(tradeoff_figure(runs(tmp_path / "runs.csv", sizes=many)))[1]


@pytest.mark.parametrize(("held_out", "column"), [(True, "holdout_top1"), (False, "train_top1")])
def test_finetuning_draws_holdout_else_training_accuracy(held_out, column, tmp_path):
    path = history(tmp_path / "history.csv", 7, held_out)
    table = pd.read_csv(path)
    top, bottom = finetuning_figure({"scap": path}).axes
    np.testing.assert_allclose(top.get_lines()[0].get_xydata(), table[["epoch", column]])
    np.testing.assert_allclose(bottom.get_lines()[0].get_xydata(), table[["epoch", "loss"]])
    assert top.get_ylabel().startswith("hold-out" if held_out else "training")


def test_finetuning_marks_the_odd_one_out(tmp_path):
    paths = {"scap": history(tmp_path / "a.csv", 3), "l1": history(tmp_path / "b.csv", 3, held_out=False)}
    figure = finetuning_figure(paths)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["scap", "l1 (training)"]
    assert figure.axes[0].get_ylabel() == "top-1 (%)"


def test_sensitivity_is_sorted_by_distance_and_shows_means_and_ranges(tmp_path):
    left, right = sensitivity_figure(sensitivity(tmp_path / "s.csv", criteria=3)).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["criterion-0", "criterion-1", "criterion-2"]  # upwards
    flops, params = (container.lines[0].get_xdata() for container in left.containers)
    assert flops == pytest.approx([51, 52, 53])
    assert params == pytest.approx([60, 61, 62])
    (bars,) = left.containers[0].lines[2]
    assert bars.get_segments()[0][:, 0] == pytest.approx([50, 52])
    assert right.containers[0].lines[0].get_xdata() == pytest.approx([0.99, 0.97, np.nan], nan_ok=True)
    assert [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == "--"] == pytest.approx([90.11, 96.30])


def test_sensitivity_tells_sizes_apart_and_names_the_one_that_all_have(tmp_path):
    left, _ = sensitivity_figure(sensitivity(tmp_path / "s.csv", criteria=2)).axes
    assert left.get_xlabel() == "removed at τ = 0.6 (%); dashed: published"
    left, _ = sensitivity_figure(sensitivity(tmp_path / "s.csv", criteria=2, sizes=["macs-0.5"])).axes
    assert left.get_xlabel() == "removed at share of FLOPs left 0.5 (%); dashed: published"
    left, _ = sensitivity_figure(sensitivity(tmp_path / "s.csv", criteria=1, sizes=["threshold-0.4", "macs-0.5"])).axes
    assert left.get_xlabel() == "removed (%); dashed: published"
    assert {text.get_text() for text in left.get_yticklabels()} == {"criterion-0, threshold-0.4", "criterion-0, macs-0.5"}


def test_headline_places_our_runs_among_published_rows(tmp_path):
    path = runs(tmp_path / "runs.csv", criteria=["scap", "l1"], sizes=["threshold-0.6"])
    ours, figure = tradeoff_figure(path), headline_figure(path)
    for axes, other, column in zip(figure.axes, ours.axes, ["macs_removed", "params_removed"], strict=True):
        assert len(axes.get_lines()) == len(other.get_lines()) + len(ROWS)
        drawn = [(line.get_label(), *line.get_xydata()[0]) for line in axes.get_lines()[-len(ROWS) :]]
        assert drawn == [(row.name, pytest.approx(100 * getattr(row, column)), row.top1) for row in ROWS]
        low, high = axes.get_xlim()
        assert all(low <= 100 * getattr(row, column) <= high for row in ROWS)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*(text.get_text() for text in ours.legends[0].get_texts()), *(row.name for row in ROWS)]


def test_headline_shows_published_rows_apart_from_runs_far_below_them(tmp_path):
    path = tmp_path / "runs.csv"
    table = pd.read_csv(runs(path, criteria=["scap", "l1"], sizes=["threshold-0.6"]))

    def heights(collapsed):
        """Where 85 and 90 % are in the height of the axes, and the lower limit."""
        table.assign(top1=table["top1"].where(table["criterion"] != "scap", collapsed)).to_csv(path, index=False)
        axes = headline_figure(path).axes[0]
        points = axes.transAxes.inverted().transform(axes.transData.transform([(80, 85), (80, 90)]))
        return [y for _, y in points], axes.get_ylim()[0]

    (foot, rows), low = heights(np.where(table["seed"] == table["seed"].min(), 90.0, 0.0))  # a bar that reaches below 0 %
    assert (foot, low) == (pytest.approx(0.25), 0)
    assert rows > 0.5
    (foot, _), low = heights(91.0)
    assert low > 80
    assert foot < 0.25


def test_finetuning_without_histories():
    with pytest.raises(ScapError, match="no history"):
        finetuning_figure({})


TABLES = {
    "method": (lambda path: method(path, 2, 2), method_figure),
    "scores": (lambda path: scores(path, QUARTER), lambda path: scores_figure(path, 0.6)),
    "channels": (lambda path: channels(path, VGG), channels_figure),
    "runs": (runs, tradeoff_figure),
    "sensitivity": (sensitivity, sensitivity_figure),
    "history": (lambda path: history(path, 3), lambda path: finetuning_figure({"scap": path})),
}
COLUMNS = {
    "method": "value",
    "scores": "score",
    "channels": "after",
    "runs": "macs_removed",
    "sensitivity": "macs_removed",
    "history": "loss",
}


@pytest.mark.parametrize("name", TABLES)
def test_bad_tables_name_file_and_column(name, tmp_path):
    make, draw = TABLES[name]
    column = COLUMNS[name]
    path = make(tmp_path / f"{name}.csv")
    table = pd.read_csv(path)
    write(path, table.drop(columns=column))
    with pytest.raises(ScapError, match=rf"{name}\.csv: column '{column}' is missing"):
        draw(path)
    write(path, table[:0])
    with pytest.raises(ScapError, match=rf"{name}\.csv: the table has no rows .*{column}"):
        draw(path)
    write(path, table.assign(**{column: ["1"] + ["many"] * (len(table) - 1)}))
    with pytest.raises(ScapError, match=rf"{name}\.csv: column '{column}', row 2 is not a number"):
        draw(path)
    path.write_text("")
    with pytest.raises(ScapError, match=rf"{name}\.csv: the table has no rows .*{column}"):
        draw(path)
    path.unlink()
    with pytest.raises(ScapError, match=rf"{name}\.csv: not readable"):
        draw(path)


def test_method_names_the_absent_panel_and_the_doubled_pixel(tmp_path):
    table = pd.read_csv(method(tmp_path / "method.csv", 2, 2))
    path = write(tmp_path / "method.csv", table[table["panel"] != "output"])
    with pytest.raises(ScapError, match=r"method\.csv: column 'panel' holds no 'output'"):
        method_figure(path)
    path = write(tmp_path / "method.csv", pd.concat([table, table[:1]]))
    with pytest.raises(ScapError, match=r"method\.csv: panel 'input' .*twice"):
        method_figure(path)


def test_import_is_light():
    code = "import sys, scap.figures.channels; sys.exit(bool({'matplotlib', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

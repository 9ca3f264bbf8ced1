"""Figures carry the tables' numbers, their texts keep apart, and they are written reproducibly."""

import subprocess
import sys
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_hex

from scap.errors import ScapError
from scap.figures.channels import channels_figure, scores_figure
from scap.figures.method import method_figure
from scap.figures.runs import finetuning_figure, tradeoff_figure
from scap.figures.sensitivity import sensitivity_figure
from scap.figures.style import save

VGG = {
    f"conv{block}_{i}": min(512, 32 * 2**block)
    for block, convs in enumerate((2, 2, 3, 3, 3), start=1)
    for i in range(1, convs + 1)
}
RESNET = {f"layer{s}.{b}.conv{c}": 8 * 2**s for s, b, c in product((1, 2, 3), (0, 1, 2), (1, 2))}
CRITERIA = [
    "scap",
    "scap-power",
    "scap-log-magnitude",
    "scap-complex",
    "l1",
    "random",
    "rms",
    "novelty",
    "conditional",
    "conditional-taps",
]
SCHEDULES = ["paper", "distilled"]


def write(path, table):
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def scores(path, widths, fidelity=True):
    random = np.random.default_rng(0)
    rows = [(layer, channel, *random.random(3)) for layer, width in widths.items() for channel in range(width)]
    table = pd.DataFrame(rows, columns=["layer", "channel", "fidelity", "l1", "score"])
    return write(path, table if fidelity else table.drop(columns="fidelity"))


def channels(path, widths):
    after = [max(1, width * (i + 1) // 40) for i, width in enumerate(widths.values())]
    return write(path, {"layer": list(widths), "before": list(widths.values()), "after": after})


def runs(path, criteria=("scap",), sizes=("threshold-0.4", "threshold-0.5", "threshold-0.6"), seeds=(0, 1, 2), **axes):
    axes = {"widths": ["own"], "compensation": ["none"], "schedule": ["paper"], "spread": [0.4]} | axes
    rows = [
        {"network": "vgg16", "seed": seed, "criterion": criterion, "widths": widths, "size": size}
        | {"compensation": compensation, "schedule": schedule}
        | {"top1_baseline": 93 + 0.1 * seed, "top1": 94 - 3 * float(size.split("-")[1]) + 0.2 * seed - 0.1 * i}
        | {
            "macs_removed": 0.6 + spread * float(size.split("-")[1]) - 0.01 * seed,
            "params_removed": 0.75 + spread * float(size.split("-")[1]) / 2,
        }
        for (i, criterion), size, seed, widths, compensation, schedule, spread in product(
            enumerate(criteria), sizes, seeds, *axes.values()
        )
    ]
    return write(path, rows)


def history(path, epochs, held_out=True):
    epoch = np.arange(1, epochs + 1)
    train = 95 - 20 / epoch
    holdout = train - 2 if held_out else np.full(epochs, np.nan)
    return write(path, {"epoch": epoch, "loss": 1 / epoch, "train_top1": train, "holdout_top1": holdout})


def method(path, height, width):
    random = np.random.default_rng(0)
    panels = ("input", "output", "spectrum", "reconstruction")
    rows = [(p, r, c, random.normal()) for p, r, c in product(panels, range(height), range(width))]
    return write(path, pd.DataFrame(rows, columns=["panel", "row", "column", "value"]))


def sensitivity(path, criteria=29, seeds=(0, 1, 2), sizes=("threshold-0.6",)):
    """Criteria whose size lies nearer to the published one the later they come; the last ranks nothing."""
    rows = [
        {
            **{"network": "vgg16", "criterion": f"criterion-{index}", "widths": "own", "size": size, "seed": seed},
            **{"distance_to_published": criteria - index},
            **{"macs_removed": 0.5 + 0.01 * index + 0.01 * seed, "params_removed": 0.6 + 0.01 * index},
            **{"rank_correlation_first": 1 - 0.02 * index - 0.01 * seed, "rank_correlation_l1": -0.1 * (index % 3)},
        }
        for index, size, seed in product(range(criteria), sizes, seeds)
    ]
    table = pd.DataFrame(rows)
    table.loc[table["criterion"] == f"criterion-{criteria - 1}", ["rank_correlation_first", "rank_correlation_l1"]] = np.nan
    return write(path, table)


QUARTER = {layer: width // 4 for layer, width in VGG.items()}
MIXED = ["threshold-0.4", "threshold-0.6", "macs-0.5", "params-0.1"]  # sizes of every kind
WIDTHS = ["own", "scap", "uniform-scap"]
WIDE = {layer: 2 * width for layer, width in VGG.items()}
# Each figure over sizes from the smallest to the fullest.
FIGURES = {
    "method": lambda folder: method_figure(method(folder / "m.csv", 16, 16)),
    "method-2x2": lambda folder: method_figure(method(folder / "m.csv", 2, 2)),
    "method-12x20": lambda folder: method_figure(method(folder / "m.csv", 12, 20)),
    "scores": lambda folder: scores_figure(scores(folder / "s.csv", VGG), 0.6, "vgg16, scap"),
    "scores-quarter": lambda folder: scores_figure(scores(folder / "s.csv", QUARTER), 0.6),
    "scores-few": lambda folder: scores_figure(scores(folder / "s.csv", {"first": 4, "second": 7}), 0.6),
    "scores-resnet": lambda folder: scores_figure(scores(folder / "s.csv", RESNET), 0.6, "resnet20"),
    "scores-l1": lambda folder: scores_figure(scores(folder / "s.csv", VGG, False), 0.6),
    "scores-budget": lambda folder: scores_figure(scores(folder / "s.csv", VGG), title="vgg16, scap"),
    "channels": lambda folder: channels_figure(channels(folder / "c.csv", VGG)),
    "channels-wide": lambda folder: channels_figure(channels(folder / "c.csv", WIDE)),
    "channels-resnet": lambda folder: channels_figure(channels(folder / "c.csv", RESNET)),
    "tradeoff": lambda folder: tradeoff_figure(runs(folder / "r.csv")),
    "tradeoff-point": lambda folder: tradeoff_figure(runs(folder / "r.csv", sizes=["threshold-0.6"], spread=[0])),
    "tradeoff-many": lambda folder: tradeoff_figure(runs(folder / "r.csv", criteria=CRITERIA, schedule=SCHEDULES)),
    "tradeoff-axes": lambda folder: tradeoff_figure(
        runs(
            folder / "r.csv",
            criteria=CRITERIA[:2],
            sizes=MIXED,
            widths=WIDTHS,
            compensation=["none", "full"],
            schedule=SCHEDULES,
        )
    ),
    "sensitivity": lambda folder: sensitivity_figure(sensitivity(folder / "s.csv")),
    "sensitivity-two": lambda folder: sensitivity_figure(sensitivity(folder / "s.csv", criteria=2, seeds=[0])),
    "finetuning": lambda folder: finetuning_figure({"scap": history(folder / "h.csv", 20)}),
    "finetuning-epoch": lambda folder: finetuning_figure(
        {"scap": history(folder / "h.csv", 1)}, "vgg16, seed 0, threshold-0.6"
    ),
    "finetuning-many": lambda folder: finetuning_figure({name: history(folder / f"{name}.csv", 20) for name in CRITERIA}),
}


def drawn_texts(figure):
    """Every text that the reader sees: titles, axis and tick labels within the view, notes, legends."""
    axes = [*figure.axes, *(child for parent in figure.axes for child in parent.child_axes)]
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    texts += [legend.get_title() for legend in figure.legends]
    for each in axes:
        texts += [each.title, each.xaxis.label, each.yaxis.label, *each.texts]
        for axis in (each.xaxis, each.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [
                tick.label1 if tick.label1.get_visible() else tick.label2
                for tick in axis.get_major_ticks()
                if low - 1e-9 <= tick.get_loc() <= high + 1e-9
            ]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_legible_keep_apart_and_stay_inside(name, tmp_path):
    figure = FIGURES[name](tmp_path)
    texts = drawn_texts(figure)
    boxes = [text.get_window_extent() for text in texts]
    assert min(text.get_fontsize() for text in texts) >= 7
    touching = [
        (a.get_text(), b.get_text())
        for (a, one), (b, other) in combinations(zip(texts, boxes, strict=True), 2)
        if one.padded(-0.5).overlaps(other.padded(-0.5))
    ]
    assert touching == []
    width, height = figure.get_size_inches() * figure.dpi
    outside = [
        text.get_text()
        for text, box in zip(texts, boxes, strict=True)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    assert outside == []


def saved(figure, folder):
    paths = [folder / "figure.png", folder / "figure.pdf"]
    save(figure, paths)
    return [path.read_bytes() for path in paths]


def test_saved_twice_is_the_same_bytes(tmp_path):
    figure = FIGURES["finetuning-epoch"](tmp_path)
    png, pdf = saved(figure, tmp_path / "first")
    assert png.startswith(b"\x89PNG")
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    assert saved(figure, tmp_path / "second") == [png, pdf]


@pytest.mark.parametrize("name", ["method-2x2", "scores-few", "finetuning-epoch"])
def test_drawn_again_under_other_settings_is_the_same_bytes(name, tmp_path):
    first = saved(FIGURES[name](tmp_path), tmp_path)
    with rc_context({"font.size": 20, "pdf.fonttype": 3, "savefig.bbox": "tight", "lines.linewidth": 5}):
        assert saved(FIGURES[name](tmp_path), tmp_path) == first


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

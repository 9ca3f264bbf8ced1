"""The texts of every figure keep apart, and the files are the same bytes whoever draws them: what takes long to draw."""

from itertools import combinations

import pytest
from drawn import FIGURES
from matplotlib import rc_context

from scap.figures.style import save


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

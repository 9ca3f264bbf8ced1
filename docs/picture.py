"""The picture of the method, docs/method.svg: python docs/picture.py"""

from pathlib import Path

PATH = Path(__file__).parent / "method.svg"
WIDTH, HEIGHT = 900, 372
BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#999999", "#222222"


def text(x: float, y: float, words: str, look: str = f'font-size="13" fill="{INK}" text-anchor="middle"') -> str:
    return f'<text x="{x:g}" y="{y:g}" {look}>{words}</text>'


def box(x: float, y: float, width: float, lines: tuple[str, ...], colour: str) -> str:
    """A box of height 56 with lines of text in its middle."""
    frame = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="56" rx="6" fill="white" stroke="{colour}"/>'
    first = y + 33 - 8.5 * (len(lines) - 1)
    return frame + "".join(text(x + width / 2, first + 17 * i, line) for i, line in enumerate(lines))


def title(y: float, words: str, colour: str) -> str:
    return text(16, y, words, f'font-size="14" fill="{colour}" font-weight="bold"')


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M {x:g} {y:g} L {to_x:g} {to_y:g}" stroke="{INK}" stroke-width="1.4" marker-end="url(#head)"/>'


def row(y: float, boxes: list[tuple[float, tuple[str, ...]]], colour: str, x: float = 16, gap: float = 26) -> str:
    """Boxes from left to right, each with its width, joined by arrows."""
    parts = []
    for index, (width, lines) in enumerate(boxes):
        parts.append(box(x, y, width, lines, colour))
        if index:
            parts.append(arrow(x - gap + 1, y + 28, x - 3, y + 28))
        x += width + gap
    return "\n".join(parts)


def channels(x: float, y: float, kept: list[bool], cut: bool) -> str:
    """The channels of a layer as bars; those that go are hollow, and absent once they are cut."""
    bars = []
    for index, stays in enumerate(kept):
        fill, dash = (BLUE, "") if stays else ("white", ' stroke-dasharray="3 2"')
        if stays or not cut:
            colour = BLUE if stays else GREY
            bars.append(f'<rect x="{x + 13 * index:g}" y="{y:g}" width="9" height="40" fill="{fill}" stroke="{colour}"{dash}/>')
    return "".join(bars)


def picture() -> str:
    """The SVG."""
    kept = [True, False, True, True, False, True, False, True]
    head = f'<path d="M 0 0 L 8 4 L 0 8 z" fill="{INK}"/>'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, Arial, sans-serif">',
        f'<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">{head}</marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        title(26, "Fidelity, as published: how well does one small autoencoder know this channel?", BLUE),
        row(
            38,
            [
                (214, ("all inputs X + i · one output Yₖ", "interaction field")),
                (150, ("Fourier transform", "spectrum Sₖ")),
                (180, ("autoencoder of the layer", "reconstruction Ŝₖ")),
                (170, ("fidelity Fₖ = cos(Sₖ, Ŝₖ)", "high: redundant")),
            ],
            BLUE,
        ),
        title(130, "Conditional fidelity, ours: can the channels that stay replace it?", ORANGE),
        row(
            142,
            [
                (214, ("the channels that stay", "best linear prediction of Yₖ")),
                (150, ("what is left of Yₖ", "cannot be replaced")),
                (180, ("as the next layer reads it", "its relative error")),
                (170, ("remove the least,", "repeat: nested plans")),
            ],
            ORANGE,
        ),
        f'<path d="M 808 66 L 858 66 L 858 250 L 100 250 L 100 262" stroke="{INK}" stroke-width="1.4" fill="none"/>',
        f'<path d="M 808 170 L 858 170" stroke="{INK}" stroke-width="1.4" fill="none"/>',
        arrow(100, 252, 100, 266),
        text(470, 242, "score of every channel: terms such as these, L1 norm, novelty, ..., weighted and fused"),
        channels(48, 276, kept, cut=False),
        text(100, 334, "plan: by threshold, budget"),
        text(100, 352, "or another one's widths"),
        arrow(188, 296, 252, 296),
        text(220, 288, "cut"),
        channels(272, 276, [stays for stays in kept if stays], cut=True),
        text(304, 334, "smaller dense network"),
        arrow(362, 296, 452, 296),
        text(407, 288, "compensate"),
        box(462, 268, 196, ("next layer, told how to", "replace what went"), ORANGE),
        text(560, 342, "least squares, no training"),
        arrow(662, 296, 722, 296),
        text(692, 288, "train"),
        box(732, 268, 152, ("fine-tuned network", "(optional)"), GREY),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PATH.write_text(picture())

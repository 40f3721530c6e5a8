"""
Draws docs/method.svg, the picture of the method: python docs/website/method_picture.py

The picture has a background and colours for dark screens of its own, so that it can be read wherever it is shown.
"""

from pathlib import Path


PICTURE = Path(__file__).parents[1] / "method.svg"
WIDTH, HEIGHT = 960, 640
COLUMNS = (270, 415, 560)  # centres, one for each teacher
TEACHERS = {"CLIP": "one", "ConvNeXt": "two", "EVA-02": "three"}
# Okabe and Ito's colours, which colour-blind readers can distinguish.
STYLE = """
  svg { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 15px }
  text { fill: #1a1a1a; text-anchor: middle; dominant-baseline: central }
  .start { text-anchor: start } .title { font-weight: 600; font-size: 17px } .small { font-size: 13px }
  .page { fill: #ffffff } .kept { fill: #eef3f8; stroke: #7a8fa6 } .training { fill: none; stroke: #8a8a8a }
  .training { stroke-dasharray: 7 5 } .box { fill: #ffffff; stroke: #4a4a4a } .loss { fill: #f1f1f1; stroke: #4a4a4a }
  .line { stroke: #4a4a4a; fill: none; stroke-width: 1.6 } .tip { fill: #4a4a4a }
  .one { fill: #0072b2; stroke: #0072b2 } .two { fill: #c77700; stroke: #c77700 }
  .three { fill: #00805d; stroke: #00805d } .general { fill: #767676; stroke: #767676 }
  text.on { fill: #ffffff; stroke: none }
  path.one, path.two, path.three { fill: none; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ececec } .page { fill: #1e2129 } .kept { fill: #28303c; stroke: #7a8fa6 }
    .box { fill: #343b47; stroke: #b9bec6 } .loss { fill: #343b47; stroke: #b9bec6 } .training { stroke: #9a9a9a }
    .line { stroke: #b9bec6 } .tip { fill: #b9bec6 }
  }
"""


def box(x: int, y: int, width: int, height: int, kind: str, *lines: str, text: str = "") -> list[str]:
    """A box around its centre with lines of text."""
    left, top = x - width // 2, y - height // 2
    parts = [f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{height}" rx="7"/>']
    first = y - 9 * (len(lines) - 1)
    return [*parts, *(label(x, first + 18 * number, line, text) for number, line in enumerate(lines))]


def label(x: int, y: int, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={kind!r}" if kind else ""}>{text}</text>'.replace("'", '"')


def arrow(path: str, kind: str = "line") -> str:
    return f'<path class="{kind}" d="{path}" marker-end="url(#tip)"/>'


def training_part() -> list[str]:
    """The teachers, their projections and the losses of the distillation, above the model."""
    parts = ['<rect class="training" x="14" y="14" width="932" height="274" rx="10"/>']
    parts += [label(30, 38, "Only in training, never saved", "start title")]
    parts += [label(30, 84, "teachers, frozen", "start"), label(30, 160, "projections", "start")]
    parts += [label(30, 226, "fine-grained loss", "start title"), label(30, 248, "tokens weighted", "start small")]
    parts += [label(30, 266, "by their importance", "start small")]
    for x, (name, color) in zip(COLUMNS, TEACHERS.items()):
        parts += box(x, 84, 122, 40, color, name, text="on")
        parts += [arrow(f"M {x} 104 V 140"), *box(x, 160, 122, 38, "box", "two layers")]
        parts += [arrow(f"M {x} 179 V 222"), *box(x, 245, 122, 44, "loss", "each token")]
    for number, (x, color) in enumerate(zip(COLUMNS, TEACHERS.values())):
        end = 790 + 20 * number
        parts += [arrow(f"M {x + 35} 104 C {x + 35} 128, {end - 80} 112, {end} 138", color)]
    parts += box(810, 160, 200, 38, "box", "of all teachers together")
    return [*parts, arrow("M 810 179 V 222"), *box(810, 245, 200, 44, "loss", "coarse-grained loss", text="title")]


def model_part() -> list[str]:
    """The student: encoder, projector and language model, which are published."""
    parts = ['<rect class="kept" x="14" y="336" width="932" height="290" rx="10"/>']
    parts += [label(30, 609, "The model that is published", "start title")]
    parts += [*box(74, 474, 92, 50, "box", "image"), arrow("M 120 474 H 160")]
    parts += ['<rect class="box" x="162" y="374" width="506" height="214" rx="7"/>']
    parts += [label(415, 394, "encoder: in each layer, after the attention", "small")]
    parts += box(415, 430, 300, 36, "loss", "feed-forward layer")
    parts += [
        label(284, 470, "+ one adapter of a teacher", "small"),
        label(546, 470, "+ one general adapter", "small"),
    ]
    for number, color in enumerate(TEACHERS.values()):
        parts += box(218 + 66 * number, 500, 58, 34, color, f"{number + 1}", text="on")
        parts += box(480 + 66 * number, 500, 58, 34, "general", f"{number + 1}", text="on")
    for x in (284, 546):
        parts += [arrow(f"M {x} 545 V 519"), *box(x, 562, 150, 32, "loss", "router")]
    parts += box(415, 562, 104, 28, "training", "balance loss", text="small")
    parts += [arrow("M 668 474 H 696"), *box(746, 474, 96, 50, "box", "projector"), arrow("M 794 474 H 822")]
    parts += [*box(876, 474, 104, 64, "box", "language", "model"), label(876, 404, "question")]
    parts += [arrow("M 876 416 V 440"), arrow("M 876 506 V 530"), label(876, 543, "answer")]
    return [*parts, arrow("M 876 555 V 576"), *box(876, 592, 104, 28, "training", "text loss", text="small")]


def passes() -> list[str]:
    """The passes of the encoder whose features the losses compare."""
    parts = [arrow(f"M {x} 374 V 269", color) for x, color in zip(COLUMNS, TEACHERS.values())]
    parts += [label(30, 304, "one pass for each teacher,", "start small")]
    parts += [label(30, 321, "with its adapter alone", "start small")]
    parts += [arrow("M 640 374 C 640 300, 810 340, 810 269")]
    return [*parts, label(822, 304, "one pass", "start small"), label(822, 321, "with the routers", "start small")]


def draw() -> str:
    """The picture as SVG."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = "<title>HAWAII: teachers and losses, which only training has, above the published model</title>"
    tip = [  # of the arrows
        '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" orient="auto"',
        ' markerUnits="userSpaceOnUse"><path class="tip" d="M 0 0 L 10 5 L 0 10 z"/></marker>',
    ]
    definitions = f"<defs><style>{STYLE}</style>{''.join(tip)}</defs>"
    page = f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="10"/>'
    return "\n".join([head, title, definitions, page, *training_part(), *model_part(), *passes(), "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")

"""Pieces of an HTML page that needs no other file: every text is escaped here."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #5b6773; --rule: #dde2e8;
  --page: #fff; --card: #f6f8fa; --right: #1f7a4d; --wrong: #b4232a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --muted: #9aa7b4;
  --rule: #35404b; --page: #14191f; --card: #1d242c; --right: #5cc493;
  --wrong: #f08a83; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .25rem; padding-top: 1.2rem;
  border-top: 1px solid var(--rule); overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 1.8rem 0 .5rem; }
p { margin: .4rem 0; }
.note, figcaption, small { color: var(--muted); font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .8rem 0; }
a { color: inherit; text-underline-offset: .2em; }
.scroll { overflow: auto; max-height: 44rem; border: 1px solid var(--rule);
  border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .8rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); white-space: nowrap; }
td.wrap { white-space: normal; min-width: 4.2rem; }
th { white-space: normal; vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
th { position: sticky; top: 0; background: var(--card); font-weight: 600; }
.number { text-align: right; }
.none { color: var(--muted); font-style: italic; }
.columns { display: grid; gap: 1rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.columns > * { min-width: 0; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; }
.picture { background: #fff; border: 1px solid var(--rule); border-radius: .5rem;
  overflow: auto; padding: .5rem; }
.picture img { width: 100%; }
.picture.wide img { min-width: 30rem; }
.cards { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.cards figure { background: var(--card); border-radius: .5rem; padding: .5rem;
  min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 3px; }
.pair img { width: 100%; border-radius: 3px; }
figcaption { margin-top: .35rem; line-height: 1.35; overflow-wrap: anywhere; }
.cards b { font-weight: 600; }
.cards small { display: block; font-size: .75rem; }
@media (max-width: 40rem) { th, td { padding: .4rem .5rem; font-size: .82rem; } }
.right b { color: var(--right); } .wrong b { color: var(--wrong); }
"""


def escape(text: object) -> str:
    """Text for a page, also inside an attribute's quotes."""
    return html.escape(str(text))


def page(title: str, body: Iterable[str]) -> str:
    """A whole page of elements that are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[str] = (),
    wrap: Sequence[str] = (),
) -> str:
    """A table in a box that scrolls; None is a cell that was not run.

    Args:
        header: names of the columns.
        rows: their cells.
        numbers: columns to align right.
        wrap: columns of text that may be broken.
    """
    kinds = [
        "number" if name in numbers else "wrap" if name in wrap else ""
        for name in header
    ]

    def cell(tag: str, kind: str, value: object) -> str:
        if value is None:
            kind, value = f"{kind} none".strip(), "not run"
        marked = f' class="{kind}"' if kind else ""
        return f"<{tag}{marked}>{escape(value)}</{tag}>"

    def line(tag: str, cells: Sequence[object]) -> str:
        found = (cell(tag, *pair) for pair in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(found)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead>{line("th", header)}</thead>'
        f"\n<tbody>\n{body}\n</tbody></table></div>"
    )


def drawing(figure: Figure, alt: str, kind: str = "") -> str:
    """A figure as SVG, on white; `kind` "wide" scrolls on a narrow screen."""
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    image = _image("image/svg+xml", data.getvalue(), alt)
    return f'<div class="{f"picture {kind}".strip()}" tabindex="0">{image}</div>'


def photograph(pixels: np.ndarray, alt: str) -> str:
    """An image uint8 [H, W, 1 or 3], as JPEG."""
    found, data = cv2.imencode(
        ".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88]
    )
    assert found
    return _image("image/jpeg", data.tobytes(), alt)


def _image(kind: str, data: bytes, alt: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:{kind};base64,{encoded}" alt="{escape(alt)}">'

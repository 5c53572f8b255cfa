"""Pieces of HTML."""

import numpy as np
from matplotlib.figure import Figure

from vgg_jax.report.page import drawing, escape, page, photograph, table


def test_text_is_escaped_everywhere() -> None:
    evil = "<script>alert('1')</script> & \"x\""
    pixels = np.zeros((8, 8, 3), np.uint8)
    found = page(
        evil,
        [table([evil], [[evil]]), photograph(pixels, evil), drawing(Figure(), evil)],
    )
    assert "<script" not in found and '"x"' not in found
    assert found.count(escape(evil)) == 5


def test_table() -> None:
    found = table(["name", "n"], [["a", 1], ["b", None]], numbers=["n"], wrap=["name"])
    assert '<td class="wrap">a</td><td class="number">1</td>' in found
    assert '<td class="number none">not run</td>' in found
    assert '<th class="number">n</th>' in found

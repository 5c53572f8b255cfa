"""Text tables for a terminal."""

from collections.abc import Sequence


def format_columns(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    total: Sequence[str] | None = None,
) -> str:
    """Lines of aligned columns: the first to the left, the others to the right."""
    lines = [headings, *cells, *([] if total is None else [total])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(texts: Sequence[str]) -> str:
        first, *rest = (
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [line(headings), rule, *map(line, cells)]
    return "\n".join(body if total is None else [*body, rule, line(total)])

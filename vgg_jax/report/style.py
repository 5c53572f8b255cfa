"""The look of all pictures: one palette, quiet axes."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from vgg_jax.files import replacing

INK, MUTED, RULE = "#1f2933", "#64707d", "#dde2e8"
TRAIN, VALIDATION, RATE = "#7b9cc9", "#c2410c", "#475569"
RIGHT, WRONG = "#1f7a4d", "#b4232a"
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#14213d", "#4c3a86", "#c2416b", "#f59e4c", "#fff3c4"]
)
SHARES = LinearSegmentedColormap.from_list(
    "shares", ["#ffffff", "#cddcf0", "#7b9cc9", "#3b5f94", "#14213d"]
)


def quiet(axes: Axes) -> None:
    """Light grid, no frame at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=10)


def save(figure: Figure, output: Path) -> None:
    """The whole PNG or none."""
    with replacing(output) as partial:
        figure.savefig(partial, format="png", facecolor="white")

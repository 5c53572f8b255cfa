"""Measures what padding images to buckets costs in dense evaluation.

  python -m vgg_jax.tools.bucket_cost --scales 256,384

Prints, for a list of image sizes, the programs that dense evaluation compiles and the
multiply-adds that padding adds, and the best buckets for the list. Without --sizes or
--from the list is `ilsvrc_sizes.csv`, an approximation of ImageNet's.
"""

import argparse
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from vgg_jax import cli
from vgg_jax.config import BUCKET_RATIOS, EvaluationConfig
from vgg_jax.config_file import setting_reader
from vgg_jax.console import format_columns, progress_bar
from vgg_jax.data.transforms import rescaled_shape
from vgg_jax.inference.dense import Shape, padded_shapes, smallest_fitting
from vgg_jax.inference.tiling import TILE, spans
from vgg_jax.models import MODELS, ConvNet, create_model
from vgg_jax.models.measure import summary

ILSVRC = Path(__file__).with_name("ilsvrc_sizes.csv")
# Beyond this long over short side an image goes through in tiles: a bucket for so few
# would cost a program each scale.
LONGEST = 4.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one scale costs for a list of image sizes, without mirror images.

    Args:
        scale: the short side Q, in pixels.
        programs: how many are compiled: one for each bucket that an image falls into.
        shapes: how many rescaled sizes occur: the programs without any buckets.
        images: how many images there are.
        tiled: how many of them are longer than every bucket.
        needed: multiply-adds of the images alone.
        computed: multiply-adds of the padded images, and of the tiles of long ones.
    """

    scale: int
    programs: int
    shapes: int
    images: int
    tiled: int
    needed: int
    computed: int

    @property
    def extra(self) -> float:
        """The multiply-adds that padding adds, as a fraction of the needed ones."""
        return self.computed / self.needed - 1


def measure_cost(
    model: ConvNet, sizes: Counter[Shape], ratios: Sequence[float], scale: int
) -> Cost:
    """Counts what buckets of these ratios cost at one scale.

    Args:
        model: the network.
        sizes: how many images there are of each height and width, in pixels.
        ratios: width over height of the buckets.
        scale: the short side Q that images are rescaled to, in pixels.
    """
    buckets = padded_shapes(ratios, scale)
    needed: Counter[Shape] = Counter()
    for size, count in sizes.items():
        needed[rescaled_shape(size, scale)] += count
    cost = {shape: summary(model, shape).multiply_adds for shape in {*needed, *buckets}}
    bucket_of = {shape: smallest_fitting(buckets, *shape) for shape in needed}
    tile_cost = summary(model, TILE).multiply_adds
    tiles = {
        shape: math.prod(len(spans(model.layers, side, TILE)) for side in shape)
        for shape, bucket in bucket_of.items()
        if bucket is None
    }
    computed = sum(
        count * (tiles[shape] * tile_cost if bucket is None else cost[bucket])
        for (shape, count), bucket in zip(
            needed.items(), bucket_of.values(), strict=True
        )
    )
    return Cost(
        scale=scale,
        programs=len({*bucket_of.values()} - {None}),
        shapes=len(needed),
        images=needed.total(),
        tiled=sum(needed[shape] for shape in tiles),
        needed=sum(count * cost[shape] for shape, count in needed.items()),
        computed=computed,
    )


def best_ratios(
    model: ConvNet, sizes: Counter[Shape], count: int, scales: Sequence[int]
) -> tuple[float, ...]:
    """Finds the ratios, at most `count`, that cost least over all scales.

    Exact, by dynamic programming: a bucket is as long as the longest image in it, and
    holds neighbors in the order of ratios. Wide and tall images share no bucket, so
    each way to divide the count between them is tried, with the squares on either side.
    Images longer than `LONGEST` are left to tiles.
    """
    wide: Counter[float] = Counter()
    tall: Counter[float] = Counter()
    square: Counter[float] = Counter()
    for (height, width), image_count in sizes.items():
        if max(height, width) <= LONGEST * min(height, width):
            # Rounded to the longer bucket, for ratios that are short to write.
            thousandths = 1000 * width / height
            if width == height:
                square[1.0] += image_count
            elif width > height:
                wide[math.ceil(thousandths - 1e-6) / 1000] += image_count
            else:
                tall[math.floor(thousandths + 1e-6) / 1000] += image_count

    def divisions(images: Counter[float]) -> list[tuple[float, tuple[float, ...]]]:
        """The least total cost with 0, 1, ... buckets, and their ratios."""
        ratios = sorted(images, key=lambda ratio: max(ratio, 1 / ratio))
        costs = [
            sum(summary(model, padded_shapes([r], q)[0]).multiply_adds for q in scales)
            for r in ratios
        ]
        return [
            (total, tuple(ratios[i] for i in last))
            for total, last in _divide([images[r] for r in ratios], costs, count)
        ]

    _, best = min(
        (tall_cost + wide_cost, (*tall_ratios, *wide_ratios))
        for wider, taller in ((wide + square, tall), (wide, tall + square))
        for i, (tall_cost, tall_ratios) in enumerate(divisions(taller))
        for wide_cost, wide_ratios in divisions(wider)[: count + 1 - i]
    )
    return tuple(sorted(best))


def _divide(
    counts: Sequence[int], costs: Sequence[int], most: int
) -> list[tuple[float, list[int]]]:
    """Divides a row of elements into 0, 1, ... `most` groups of neighbors.

    Every element of a group costs what the group's last one does. Returns, for each
    number of groups, the least total cost and the last element of each group.
    """
    n = len(counts)
    before = np.concatenate([[0], np.cumsum(counts)])
    least = np.full((most + 1, n + 1), np.inf)  # cost of the first j in <= k groups
    least[:, 0] = 0
    begin = np.zeros((most + 1, n + 1), int)  # where the last of those groups begins
    for k in range(1, most + 1):
        for j in range(1, n + 1):
            total = least[k - 1, :j] + (before[j] - before[:j]) * costs[j - 1]
            begin[k, j] = np.argmin(total)
            least[k, j] = total[begin[k, j]]
    divisions = []
    for groups in range(most + 1):
        last: list[int] = []
        k, j = groups, n
        while k and j:
            last.append(j - 1)
            k, j = k - 1, begin[k, j]
        divisions.append((float(least[groups, n]), last))
    return divisions


def format_costs(
    name: str, sizes: Counter[Shape], ratios: Sequence[float], scales: Sequence[int]
) -> str:
    """Returns the command's text: what `ratios` cost a network at each scale."""
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    lines = [
        f"{name}: {sizes.total():,} images of {len(sizes):,} sizes, rescaled to short "
        f"sides {', '.join(map(str, scales))}",
        f"bucket ratios (width / height): {', '.join(f'{r:g}' for r in ratios)}",
        "",
    ]
    costs = [measure_cost(model, sizes, ratios, scale) for scale in scales]
    table = format_columns(
        ["scale", "shapes", "programs", "in tiles", "TMAC needed", "computed", "extra"],
        [
            [
                f"{cost.scale}",
                f"{cost.shapes:,}",
                f"{cost.programs}",
                f"{cost.tiled:,}",
                f"{cost.needed / 1e12:,.1f}",
                f"{cost.computed / 1e12:,.1f}",
                f"{cost.extra:.1%}",
            ]
            for cost in costs
        ],
    )
    tiled = any(cost.tiled for cost in costs)
    programs = sum(cost.programs for cost in costs) + tiled
    extra = sum(c.computed for c in costs) / sum(c.needed for c in costs) - 1
    best = best_ratios(model, sizes, len(ratios), scales)
    best_costs = [measure_cost(model, sizes, best, scale) for scale in scales]
    best_extra = (
        sum(c.computed for c in best_costs) / sum(c.needed for c in best_costs) - 1
    )
    lines += [
        table,
        "",
        f"{programs} programs in all"
        + (", one of them for the tiles of longer images" if tiled else "")
        + f"; one for each shape would be {sum(cost.shapes for cost in costs):,}",
        f"{extra:.1%} more multiply-adds than without padding",
        "",
        f"The best {len(best)} ratios for these sizes cost {best_extra:.1%}:",
        f'--config.evaluation.bucket_ratios="{best}"',
    ]
    return "\n".join(lines)


def read_sizes(path: Path) -> Counter[Shape]:
    """Reads how many images there are of each (height, width), in pixels.

    A line is `width,height` or `width,height,count`; # begins a comment.

    Raises:
        ValueError: a line is another one, and is named with its number; or the file has
            no sizes.
    """
    sizes: Counter[Shape] = Counter()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line or line.startswith(("#", "width")):
            continue
        fields = line.split(",")
        if not 2 <= len(fields) <= 3 or not all(f.strip().isdecimal() for f in fields):
            raise ValueError(
                f"expected width,height or width,height,count in {path}, line "
                f"{number}, found {line!r}"
            )
        width, height, count = (*map(int, fields), 1)[:3]
        if not width or not height:
            raise ValueError(f"expected sides above 0 in {path}, line {number}")
        sizes[height, width] += count
    if not sizes:
        raise ValueError(f"no sizes in {path}")
    return sizes


def folder_sizes(folder: Path) -> Counter[Shape]:
    """Counts the (height, width) of all pictures below a folder, in pixels.

    They are decoded as evaluation decodes them; one that cannot be is left out, with a
    line on stderr.

    Raises:
        ValueError: the folder has no pictures.
    """
    from vgg_jax.data.base import CorruptImage
    from vgg_jax.data.folder import SUFFIXES
    from vgg_jax.data.transforms import decode

    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"no pictures ({', '.join(SUFFIXES)}) below {folder}")
    sizes: Counter[Shape] = Counter()
    with progress_bar("sizes", len(files)) as bar:
        for file in files:
            try:
                height, width, _ = decode(file.read_bytes(), 1, str(file)).shape
                sizes[height, width] += 1
            except CorruptImage as error:
                print(f"{error}; left out", file=sys.stderr)
            bar.update(1)
    return sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.tools.bucket_cost", __doc__)
    parser.add_argument(
        "--network",
        default="vgg16",
        type=cli.one_of(MODELS),
        metavar="NAME",
        help=f"one of {', '.join(MODELS)}; vgg16 by default",
    )
    parser.add_scales("256,384,512 by default")
    parser.add_argument(
        "--ratios",
        type=setting_reader(EvaluationConfig, "bucket_ratios"),
        default=BUCKET_RATIOS,
        metavar="R,R",
        help="width over height of the buckets; by default those of dense evaluation",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--sizes",
        type=Path,
        metavar="FILE",
        help="sizes of images, a line each: width,height or width,height,count",
    )
    source.add_argument(
        "--from",
        type=Path,
        metavar="FOLDER",
        dest="folder",
        help="pictures whose sizes are taken, in this folder and those below",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Prints what the buckets of the command line cost; returns 0."""
    if values.folder:
        sizes = folder_sizes(values.folder)
    else:
        sizes = read_sizes(values.sizes or ILSVRC)
    scales = values.scales or (256, 384, 512)
    print(format_costs(values.network, sizes, values.ratios, scales))
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

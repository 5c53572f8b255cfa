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
from vgg_jax.config import BUCKET_RATIOS
from vgg_jax.console import progress_bar
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
    """What one scale takes for a list of image sizes, without mirror images."""

    scale: int
    programs: int  # one for each bucket that occurs
    shapes: int  # that occur: programs without buckets
    images: int
    tiled: int  # images that are longer than every bucket
    needed: int  # multiply-adds of the images alone
    computed: int  # with their padding, or of their tiles

    @property
    def extra(self) -> float:
        """The part that padding adds."""
        return self.computed / self.needed - 1


def measure(
    model: ConvNet, sizes: Counter[Shape], ratios: Sequence[float], scale: int
) -> Cost:
    """What `ratios` cost for images of these sizes, {(height, width): how many}."""
    buckets = padded_shapes(ratios, scale)
    needed: Counter[Shape] = Counter()
    for size, count in sizes.items():
        needed[rescaled_shape(size, scale)] += count
    cost = {shape: summary(model, shape).multiply_adds for shape in {*needed, *buckets}}
    used = {shape: smallest_fitting(buckets, *shape) for shape in needed}
    tile_cost = summary(model, TILE).multiply_adds
    tiles = {
        shape: math.prod(len(spans(model.layers, side, TILE)) for side in shape)
        for shape, bucket in used.items()
        if bucket is None
    }
    computed = sum(
        count * (tiles[shape] * tile_cost if bucket is None else cost[bucket])
        for (shape, count), bucket in zip(needed.items(), used.values(), strict=True)
    )
    return Cost(
        scale=scale,
        programs=len({*used.values()} - {None}),
        shapes=len(needed),
        images=needed.total(),
        tiled=sum(needed[shape] for shape in tiles),
        needed=sum(count * cost[shape] for shape, count in needed.items()),
        computed=computed,
    )


def best_ratios(
    model: ConvNet, sizes: Counter[Shape], count: int, scales: Sequence[int]
) -> tuple[float, ...]:
    """At most `count` ratios that cost least for these images over all scales.

    Exact, by dynamic programming: a bucket is as long as the longest image in it, and
    holds neighbors in the order of ratios. Wide and tall images share no bucket, so
    each way to divide the count between them is tried, with the squares on either side.
    Images longer than `LONGEST` are left to tiles.
    """
    wide: Counter[float] = Counter()
    tall: Counter[float] = Counter()
    square: Counter[float] = Counter()
    for (height, width), images in sizes.items():
        if max(height, width) <= LONGEST * min(height, width):
            # Rounded to the longer bucket, for ratios that are short to write.
            thousandths = 1000 * width / height
            if width == height:
                square[1.0] += images
            elif width > height:
                wide[math.ceil(thousandths - 1e-6) / 1000] += images
            else:
                tall[math.floor(thousandths + 1e-6) / 1000] += images

    def options(side: Counter[float]) -> list[tuple[float, tuple[float, ...]]]:
        ratios = sorted(side, key=lambda ratio: max(ratio, 1 / ratio))
        cost = [
            sum(summary(model, padded_shapes([r], q)[0]).multiply_adds for q in scales)
            for r in ratios
        ]
        return [
            (total, tuple(ratios[i] for i in last))
            for total, last in _divide([side[r] for r in ratios], cost, count)
        ]

    _, best = min(
        (total + more, (*some, *others))
        for lying, upright in ((wide + square, tall), (wide, tall + square))
        for i, (total, some) in enumerate(options(upright))
        for more, others in options(lying)[: count + 1 - i]
    )
    return tuple(sorted(best))


def _divide(
    counts: Sequence[int], costs: Sequence[int], most: int
) -> list[tuple[float, list[int]]]:
    """Neighbors into 0, 1, ... `most` groups: the least total cost, and the last
    element of each group, whose cost every element of the group has."""
    n = len(counts)
    before = np.concatenate([[0], np.cumsum(counts)])
    least = np.full((most + 1, n + 1), np.inf)  # of the first j in at most k groups
    least[:, 0] = 0
    begin = np.zeros((most + 1, n + 1), int)  # where the last of those groups begins
    for k in range(1, most + 1):
        for j in range(1, n + 1):
            total = least[k - 1, :j] + (before[j] - before[:j]) * costs[j - 1]
            begin[k, j] = np.argmin(total)
            least[k, j] = total[begin[k, j]]
    found = []
    for groups in range(most + 1):
        last: list[int] = []
        k, j = groups, n
        while k and j:
            last.append(j - 1)
            k, j = k - 1, begin[k, j]
        found.append((float(least[groups, n]), last))
    return found


def report(
    name: str, sizes: Counter[Shape], ratios: Sequence[float], scales: Sequence[int]
) -> str:
    """The table of the command: what `ratios` cost a network at each scale."""
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    lines = [
        f"{name}: {sizes.total():,} images of {len(sizes):,} sizes, rescaled to short "
        f"sides {', '.join(map(str, scales))}",
        f"bucket ratios (width / height): {', '.join(f'{r:g}' for r in ratios)}",
        "",
        f"{'scale':>6}{'shapes':>9}{'programs':>10}{'in tiles':>10}"
        f"{'TMAC needed':>14}{'computed':>11}{'extra':>8}",
    ]
    costs = [measure(model, sizes, ratios, scale) for scale in scales]
    for cost in costs:
        lines.append(
            f"{cost.scale:>6}{cost.shapes:>9,}{cost.programs:>10}{cost.tiled:>10,}"
            f"{cost.needed / 1e12:>14,.1f}{cost.computed / 1e12:>11,.1f}"
            f"{cost.extra:>8.1%}"
        )
    tiled = any(cost.tiled for cost in costs)
    programs = sum(cost.programs for cost in costs) + tiled
    extra = sum(c.computed for c in costs) / sum(c.needed for c in costs) - 1
    best = best_ratios(model, sizes, len(ratios), scales)
    least = [measure(model, sizes, best, scale) for scale in scales]
    least_extra = sum(c.computed for c in least) / sum(c.needed for c in least) - 1
    lines += [
        "",
        f"{programs} programs in all"
        + (", one of them for the tiles of longer images" if tiled else "")
        + f"; one for each shape would be {sum(cost.shapes for cost in costs):,}",
        f"{extra:.1%} more multiply-adds than without padding",
        "",
        f"The best {len(best)} ratios for these sizes cost {least_extra:.1%}:",
        f'--config.evaluation.bucket_ratios="{best}"',
    ]
    return "\n".join(lines)


def read_sizes(path: Path) -> Counter[Shape]:
    """Lines `width,height` or `width,height,count`; # begins a comment.

    Raises:
        ValueError: another line, named with its number.
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
    """The sizes of all pictures below a folder, decoded as evaluation decodes them.

    Raises:
        ValueError: there are none.
    """
    from vgg_jax.data.folder import SUFFIXES
    from vgg_jax.data.transforms import CorruptImage, decode

    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"no pictures ({', '.join(SUFFIXES)}) below {folder}")
    sizes: Counter[Shape] = Counter()
    line = progress_bar("sizes", len(files))
    for file in files:
        try:
            height, width, _ = decode(file.read_bytes(), 1, str(file)).shape
            sizes[height, width] += 1
        except CorruptImage as error:
            print(f"{error}; left out", file=sys.stderr)
        line.update(1)
    line.close()
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
        type=cli.comma_separated(float),
        default=BUCKET_RATIOS,
        metavar="R,R",
        help="width over height of the buckets; by default those of dense evaluation",
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--sizes",
        type=Path,
        metavar="FILE",
        help="sizes of images, a line each: width,height or width,height,count",
    )
    data.add_argument(
        "--from",
        type=Path,
        metavar="FOLDER",
        dest="folder",
        help="pictures whose sizes are taken, in this folder and those below",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Prints the costs; returns 0."""
    if values.folder:
        sizes = folder_sizes(values.folder)
    else:
        sizes = read_sizes(values.sizes or ILSVRC)
    scales = values.scales or (256, 384, 512)
    print(report(values.network, sizes, values.ratios, scales))
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

"""This module computes what layers that rest make of each image, once.

Where only the last layers learn, the map before them is the same in every epoch. It is
computed of each image's center crop and, with `data.flip`, of the crop's mirror image,
and the last layers are trained on these maps alone.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vgg_jax.config import Config
from vgg_jax.data import transforms
from vgg_jax.data.base import Source
from vgg_jax.data.collate import uniforms
from vgg_jax.data.pipeline import Batch, train_order
from vgg_jax.distributed import make_mesh
from vgg_jax.inference.forward import Extras, Network, mirror_images
from vgg_jax.inference.passes import View, over_source
from vgg_jax.models import ConvNet
from vgg_jax.training.objectives import ExampleMetrics

MIRROR = 3  # the column of `uniforms` that decides whether a crop is mirrored


@dataclasses.dataclass(frozen=True)
class MapsBefore:
    """The head that gives the map after some rows: [N, views, h, w, C].

    Args:
        rows: the number of rows.
        flip: whether the mirror image's map follows that of the image.
    """

    rows: int
    flip: bool
    extras: tuple[str, ...] = ()

    def __call__(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None, extras: Extras
    ) -> jax.Array:
        """Computes the maps of normalized images, [N, H, W, C]."""
        views = [images, mirror_images(images)] if self.flip else [images]
        rows = model.layers[: self.rows]
        return jnp.stack([model.run(view, rows) for view in views], axis=1)


@dataclasses.dataclass(frozen=True)
class AsTheyAre:
    """The preprocessing of maps, which takes them as they are.

    Args:
        channels: their channels.
    """

    channels: int
    image_size: None = None

    def __call__(self, images: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        """Returns the maps."""
        return images


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptMaps:
    """The maps of all images of a source.

    Args:
        maps: [N, views, h, w, C]; the second view is that of the mirror image.
        labels: int32 [N].
        weights: float32 [N], 0 for an image that could not be decoded.
        rows: the number of the network's rows that made them.
    """

    maps: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    rows: int

    @classmethod
    def of_source(
        cls,
        network: Network,
        source: Source,
        config: Config,
        mesh: Mesh,
        *,
        rows: int,
        flip: bool,
    ) -> "KeptMaps":
        """Runs the first rows of a network over a source.

        Args:
            network: the network.
            source, config, mesh: as `over_source` takes them.
            rows: how many rows of the network.
            flip: whether mirror images have maps too.
        """
        passed = over_source(
            network,
            MapsBefore(rows, flip),
            source,
            config,
            View(config.evaluation.center_scale, transforms.center),
            mesh=mesh,
        )
        return cls(
            maps=passed["output"],
            labels=passed["label"].astype(np.int32),
            weights=passed["weight"],
            rows=rows,
        )

    def train_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Gives endless batches of maps: this process's rows of each.

        The images and which of them are mirrored are those that
        `vgg_jax.data.pipeline.train_batches` gives of the same arguments. A batch has
        the maps in "image", [b, h, w, C].
        """
        order = train_order(len(self.labels), seed, batch_size // process_count)
        number = start_step * process_count + process_index
        while True:
            examples = order[number]
            draws = uniforms(seed, number * len(examples), len(examples))
            view = (draws[:, MIRROR] < 0.5).astype(int) * (self.maps.shape[1] - 1)
            yield {
                "image": self.maps[examples, view],
                "label": self.labels[examples],
                "weight": self.weights[examples],
            }
            number += process_count

    def measure(
        self,
        network: Network,
        head: ExampleMetrics,
        batch_size: int,
        before_batch: Callable[[], object],
    ) -> dict[str, np.ndarray]:
        """Measures each image, without its mirror image, by the rows that follow.

        One device does it.

        Args:
            network: the network that the maps are of.
            head: what is measured.
            batch_size: maps at once.
            before_batch: is called before each batch; what it raises ends the pass.

        Returns:
            The sums of the head, [N] each.
        """
        network = dataclasses.replace(
            network, normalization=AsTheyAre(self.maps.shape[-1])
        ).place(make_mesh(jax.local_devices()[:1]))
        head = dataclasses.replace(head, first_row=self.rows)
        parts = []
        for start in range(0, len(self.labels), batch_size):
            before_batch()
            examples = np.arange(start, start + batch_size)
            is_there = examples < len(self.labels)
            examples = np.minimum(examples, len(self.labels) - 1)
            extras = {"label": self.labels[examples], "weight": self.weights[examples]}
            sums = network.run(head, self.maps[examples, 0], None, extras)
            parts.append({name: np.asarray(v)[is_there] for name, v in sums.items()})
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

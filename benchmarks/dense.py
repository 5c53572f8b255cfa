"""Compares dense evaluation in buckets with one program for each shape.

    python -m benchmarks.dense --photos DIR --data_dir ~/.cache/vgg_jax

Times the protocol "dense" over the Fashion-MNIST test set, whose images have one size,
and over 500 photographs of the sizes in `ilsvrc_sizes.csv`, cut from pictures in DIR
(of scikit-image and scikit-learn, say): a first pass with compilation, and a second one
without. The other evaluator runs the network without masks on batches of one shape, as
many programs as there are shapes. Prints one JSON object a line.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from flax import nnx

from configs import fashion_mnist_vgg
from vgg_jax import ConvNet, create_model
from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig
from vgg_jax.data.base import Example
from vgg_jax.data.sources import Source, open_source
from vgg_jax.data.transforms import decode, rescale
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.evaluation import protocols
from vgg_jax.inference.dense import Shape, images_per_device
from vgg_jax.inference.forward import Network, Posteriors, apply
from vgg_jax.tools.bucket_cost import ILSVRC, read_sizes


class Photographs:
    """JPEGs cut at random from pictures, with the sizes of ImageNet, in memory."""

    class_names = ("photograph", "other")

    def __init__(self, folder: Path, count: int):
        rng = np.random.default_rng(0)
        pictures = []
        for path in sorted(folder.rglob("*")):
            picture = cv2.imread(str(path)) if path.suffix in (".jpg", ".png") else None
            if picture is not None and min(picture.shape[:2]) >= 256:
                pictures.append(picture)
        if not pictures:
            sys.exit(f"no picture of at least 256x256 pixels in {folder}")
        sizes = list(read_sizes(ILSVRC).elements())
        self._files = []
        for _ in range(count):
            height, width = sizes[rng.integers(len(sizes))]
            picture = pictures[rng.integers(len(pictures))]
            zoom = max(height / picture.shape[0], width / picture.shape[1])
            zoom *= rng.uniform(1, 1.5)
            picture = cv2.resize(picture, None, fx=zoom, fy=zoom)
            top = rng.integers(picture.shape[0] - height + 1)
            left = rng.integers(picture.shape[1] - width + 1)
            crop = picture[top : top + height, left : left + width]
            self._files.append(cv2.imencode(".jpg", crop)[1].tobytes())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> Example:
        return {"image": self._files[index], "label": 0, "name": f"photograph {index}"}


def one_program_a_shape(
    model: ConvNet, source: Source, config: Config, scale: int
) -> np.ndarray:
    """Returns posteriors [N, num_classes], from batches of one shape and no padding."""
    network = Network.from_model(model, preprocessing_of(config.data))
    images = [
        rescale(decode(source[i]["image"], model.in_channels, short_side=scale), scale)
        for i in range(len(source))
    ]
    members: dict[Shape, list[int]] = {}
    for i, image in enumerate(images):
        members.setdefault(image.shape[:2], []).append(i)
    posteriors = np.zeros((len(source), len(source.class_names)), np.float32)
    for shape, indices in members.items():
        size = min(images_per_device(config, 1, shape), len(indices))
        for start in range(0, len(indices), size):
            numbers = indices[start : start + size]
            batch = np.zeros((size, *shape, model.in_channels), np.uint8)
            batch[: len(numbers)] = [images[i] for i in numbers]
            outputs = network.run(Posteriors(), batch)
            posteriors[numbers] = np.asarray(outputs)[: len(numbers)]
    return posteriors


def buckets(model: ConvNet, source: Source, config: Config, scale: int) -> np.ndarray:
    """Returns posteriors [N, num_classes], from the library's evaluator."""
    return protocols.evaluate(
        model, source, config, protocol="dense", scales=(scale,)
    ).posteriors


def compare_evaluators(
    name: str, model: ConvNet, source: Source, config: Config, scale: int
) -> None:
    """Runs both evaluators twice; prints seconds, programs, the largest difference."""
    posteriors = {}
    for evaluator in (
        one_program_a_shape,
        buckets,
    ):
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            posteriors[evaluator] = evaluator(model, source, config, scale)
            seconds.append(time.perf_counter() - start)
        result = {
            "images": name,
            "count": len(source),
            "scale": scale,
            "evaluator": evaluator.__name__,
            "programs": apply._cache_size(),  # type: ignore[attr-defined]
            "with_compilation_s": round(seconds[0], 1),
            "steady_s": round(seconds[1], 1),
        }
        print(json.dumps(result), flush=True)
        apply.clear_cache()  # type: ignore[attr-defined]
    difference = np.abs(posteriors[buckets] - posteriors[one_program_a_shape]).max()
    print(json.dumps({"images": name, "largest_difference": float(difference)}))


def main(command_line: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dense",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--photos", type=Path, help="a folder of pictures")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--network", default="vgg16")
    parser.add_argument("--width", type=float, default=1 / 16)
    parser.add_argument("--scale", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8, help="as for eval.py")
    parser.add_argument("--data_dir", help="of Fashion-MNIST")
    options = parser.parse_args(command_line)
    if options.data_dir:
        config = fashion_mnist_vgg.get_config()
        config.data.data_dir = options.data_dir
        model = create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
        source = open_source(config.data, "test")
        compare_evaluators("Fashion-MNIST", model, source, config, config.data.crop)
    if options.photos:
        photographs = Photographs(options.photos, options.count)
        config = Config(
            model=VGGConfig(name=options.network, num_classes=2, width=options.width),
            data=DataConfig(dataset="folder"),
            evaluation=EvaluationConfig(batch_size=options.batch_size),
        )
        model = create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
        compare_evaluators("photographs", model, photographs, config, options.scale)


if __name__ == "__main__":
    main()

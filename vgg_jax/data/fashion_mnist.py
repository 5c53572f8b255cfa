"""Fashion-MNIST (arXiv:1708.07747), prepared without TensorFlow on first use."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import tensorflow_datasets as tfds

from vgg_jax.data.prepare import idx_files
from vgg_jax.data.records import Records
from vgg_jax.files import lock

VERSION = "3.0.1"  # as TFDS numbers these pictures
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def open_fashion_mnist(data_dir: str, split: str) -> Records:
    """The 60,000 "train" or 10,000 "test" pictures, gray 28x28 PNG; kept in memory.

    Raises:
        FileNotFoundError: not prepared yet, and no way to get the files.
    """
    directory = prepare(Path(data_dir).expanduser())
    remedy = "remove it to have it prepared again, or choose another data_dir"
    return Records(directory, split, in_memory=True, remedy=remedy)


def prepare(data_dir: Path, idx_folder: Path | None = None) -> Path:
    """Builds `data_dir/fashion_mnist` unless it is there; returns its version's folder.

    The data set appears under its name in one rename when it is complete. Other
    processes wait for the one that builds it.

    Raises:
        FileNotFoundError: no way to get the four files.
        ValueError: `idx_folder` does not hold them.
    """
    final = data_dir / "fashion_mnist" / VERSION
    if final.is_dir():
        return final
    data_dir.mkdir(parents=True, exist_ok=True)
    with lock(data_dir / "fashion_mnist.lock", idx_files.say):
        if final.is_dir():
            return final
        workdir = data_dir / "fashion_mnist.incomplete"
        shutil.rmtree(workdir, ignore_errors=True)  # of a process that was killed
        workdir.mkdir()
        try:
            if idx_folder is None:
                idx_folder = idx_files.find(workdir)
            else:
                try:
                    idx_files.check(idx_folder)
                except idx_files.Unavailable as error:
                    raise ValueError(str(error)) from error
            built = _build(workdir, idx_folder)
            final.parent.mkdir(exist_ok=True)
            built.rename(final)
        finally:
            shutil.rmtree(workdir, ignore_errors=True)
    idx_files.say(f"ready in {final}")
    return final


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's `fashion_mnist`, given encoded images, which need no TensorFlow."""

    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The four idx files; see idx_files.py."

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = Path(dl_manager.manual_dir)
        return {
            "train": self._generate_examples(folder, "train"),
            "test": self._generate_examples(folder, "t10k"),
        }

    def _generate_examples(self, folder: Path, prefix: str) -> Iterator[Any]:
        images = idx_files.read_idx(folder, f"{prefix}-images-idx3-ubyte")
        labels = idx_files.read_idx(folder, f"{prefix}-labels-idx1-ubyte")
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            if i % 10_000 == 0:
                idx_files.say(f"preparing {prefix}, {i:,} of {len(images):,} images")
            png = cv2.imencode(".png", image)[1].tobytes()
            yield i, {"image": io.BytesIO(png), "label": int(label)}


def _build(workdir: Path, idx_folder: Path) -> Path:
    builder = FashionMnist(data_dir=workdir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=idx_folder, try_download_gcs=False)
    # TFDS would print the temporary folder, unknown sizes and three bars at a time.
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config)
    finally:
        tfds.enable_progress_bar()
    return Path(builder.data_dir)

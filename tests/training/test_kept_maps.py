"""Training on kept maps is training on images whose first layers rest."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tests.shapes import draw_shapes
from vgg_jax.config import Config, validate
from vgg_jax.data.pipeline import train_batches
from vgg_jax.data.sources import open_source
from vgg_jax.data.transforms import decode
from vgg_jax.distributed import make_mesh
from vgg_jax.inference.forward import Network
from vgg_jax.models import create_model
from vgg_jax.training.kept_maps import KeptMaps
from vgg_jax.training.loop import train
from vgg_jax.training.objectives import ExampleMetrics
from vgg_jax.training.optimizer import rows_at_rest
from vgg_jax.training.program import build_program
from vgg_jax.training.workdir.checkpoint import Checkpoints, saved_steps


@pytest.fixture
def config(tiny_config: Any, tmp_path: Path) -> Config:
    """A run of square pictures, whose only crop is the center one."""
    draw_shapes(tmp_path / "shapes", {"train": 10, "test": 2}, width=32)
    config = tiny_config()
    config.data.data_dir = str(tmp_path / "shapes")
    config.optimizer.trained_layers = ("fc7", "fc8")
    config.num_epochs = 1
    return config


def final_state(config: Config, workdir: Path) -> Any:
    program = build_program(config, make_mesh(jax.devices()[:1]))
    with Checkpoints(workdir, "validation_top1_error", read_only=True) as checkpoints:
        state, _ = checkpoints.restore(program.state, max(saved_steps(workdir)))
    return jax.device_get(state)


@pytest.mark.usefixtures("one_device")
def test_a_run_on_kept_maps_is_the_run_on_images(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, tmp_path / "plain")
    config.optimizer.keep_maps = True
    train(dataclasses.replace(config, num_epochs=0.5), tmp_path / "kept")
    assert "of each image and its mirror image" in capsys.readouterr().out
    train(config, tmp_path / "kept")
    plain = final_state(config, tmp_path / "plain")
    kept = final_state(config, tmp_path / "kept")
    assert plain.step == kept.step > 2
    for layer, variables in plain.params.items():
        is_trained = layer in config.optimizer.trained_layers
        for name, array in variables.items():
            np.testing.assert_allclose(
                kept.params[layer][name], array, atol=1e-5 if is_trained else 0
            )
    train(config, tmp_path / "unbroken")
    unbroken = final_state(config, tmp_path / "unbroken")
    jax.tree.map(np.testing.assert_array_equal, kept, unbroken)
    images, maps = (
        json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[-1])
        for run in ("plain", "kept")
    )
    for name in ("validation_loss", "validation_top1_error"):
        assert images[name] == pytest.approx(maps[name], rel=1e-4)


def test_one_device_validates_on_as_many_kept_maps_as_it_is_given_crops(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.optimizer.keep_maps, config.evaluation.batch_size = True, None
    given: list[int] = []
    run = Network.run

    def spy(self: Network, head: Any, images: Any, *rest: Any) -> Any:
        if isinstance(head, ExampleMetrics):
            given.append(len(images))
        return run(self, head, images, *rest)

    monkeypatch.setattr(Network, "run", spy)
    assert len(jax.devices()) == 8
    train(dataclasses.replace(config, num_epochs=0.5), tmp_path)
    assert set(given) == {64}


def test_kept_maps_come_in_the_order_of_the_images(config: Config) -> None:
    source = open_source(config.data, "train")
    pixels = np.stack(
        [decode(source[i]["image"], 1, "", 32) for i in range(len(source))]
    )
    kept = KeptMaps(
        maps=np.stack([pixels, pixels[:, :, ::-1]], axis=1),
        labels=np.arange(len(source), dtype=np.int32),
        weights=np.ones(len(source), np.float32),
        rows=1,
    )
    for process, count in ((0, 1), (0, 2), (1, 2)):
        place: dict[str, Any] = {
            "batch_size": 8,
            "seed": 3,
            "start_step": 2,
            "process_index": process,
            "process_count": count,
        }
        ours = kept.train_batches(**place)
        theirs = train_batches(source, config.data, channels=1, **place)
        for _ in range(4):  # over the end of an epoch
            np.testing.assert_array_equal(next(ours)["image"], next(theirs)["image"])


def test_dropout_before_the_first_layer_that_learns_is_trained_with_it() -> None:
    def last_at_rest(head: str, *trained: str) -> str:
        model = nnx.eval_shape(
            lambda: create_model("vgg16_bn", head=head, rngs=nnx.Rngs(0))
        )
        return model.layers[rows_at_rest(model.layers, trained) - 1].name

    assert last_at_rest("paper", "fc7", "fc8") == "relu6"
    assert last_at_rest("global_pool", "fc8") == "pool5"
    assert last_at_rest("global_pool", "fc8", "bn5_3") == "conv5_3"
    for trained in ((), ("conv1_1", "fc8")):
        with pytest.raises(ValueError, match="for runs whose first layers rest"):
            last_at_rest("paper", *trained)


def test_what_changes_an_image_from_step_to_step_does_not_go_with_kept_maps(
    config: Config,
) -> None:
    config.optimizer.keep_maps = True
    validate(config)
    for name, value in (("scale_max", 40), ("color_shift", 0.1), ("pad", 2)):
        data = dataclasses.replace(config.data, **{name: value})
        with pytest.raises(ValueError, match="keep_maps computes each image once"):
            validate(dataclasses.replace(config, data=data))

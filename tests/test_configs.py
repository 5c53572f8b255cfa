"""Every configuration loads, builds its network and takes its own training crop."""

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.runs import save_run
from vgg_jax import MODELS, create_model
from vgg_jax.config import Config, DataConfig, NiNConfig, VGGConfig
from vgg_jax.models.layers import output_size
from vgg_jax.training.init_from import layers_taken
from vgg_jax.weights import save_pretrained

CONFIGS = Path(__file__).parents[1] / "configs"
CURRICULUM = CONFIGS / "curriculum.py"
BOXES = CONFIGS / "fashion_mnist_boxes.py"
# Batches for a pod, and the configuration that they are many times as large as in.
PODS = {
    CONFIGS / "vgg16_pod.py": CONFIGS / "vgg16_bn.py",
    CONFIGS / "fashion_mnist_pod.py": CONFIGS / "fashion_mnist_vgg.py",
}
RECIPE = CONFIGS / "imagenet.py"  # what others are made of
TRANSFER = CONFIGS / "transfer.py"  # whose network depends on the pictures
SMALL = {"width": 1 / 16, "fc_kernel": 1}
FILES = sorted(set(CONFIGS.glob("*.py")) - {CURRICULUM, BOXES, RECIPE, TRANSFER})


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"python train.py --config configs/{path.name}" in (module.__doc__ or "")
    return module.get_config()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_configuration_fits_itself(path: Path) -> None:
    config = load(path)
    model = nnx.eval_shape(
        lambda: create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
    )
    crop, channels = config.data.crop, config.model.in_channels
    images = jax.ShapeDtypeStruct((2, crop, crop, channels), jnp.float32)
    graphdef, state = nnx.split(model)
    logits = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, images)
    assert logits.shape == (2, config.model.num_classes)
    assert output_size(model.layers, crop) == 1 or isinstance(config.model, NiNConfig)
    assert len(config.data.mean) == len(config.data.std) == channels
    assert crop <= config.data.scale_min <= config.data.scale_max
    assert crop <= config.evaluation.center_scale
    assert min(output_size(model.layers, q) for q in config.evaluation.scales) >= 1
    assert config.optimizer.metric in ("top1_error", "top5_error")


def test_every_network_has_a_configuration() -> None:
    assert {load(path).model.name for path in FILES} == set(MODELS)


def test_imagenet_configurations_follow_the_paper() -> None:
    for path in FILES:
        config = load(path)
        if path in PODS:
            continue
        if config.data.dataset != "imagenet2012" or not path.stem.startswith("vgg"):
            continue
        assert config.batch_size == 256 and config.num_epochs == 74
        fine_tuned = path.stem.endswith(("_384", "_jitter"))
        assert config.optimizer.learning_rate == (1e-3 if fine_tuned else 1e-2)
        assert config.optimizer.momentum == 0.9
        assert config.optimizer.weight_decay == 5e-4
        assert config.model.dropout == 0.5
        scales = {"384": (384, 384), "jitter": (256, 512)}.get(
            path.stem.rpartition("_")[2], (256, 256)
        )
        assert (config.data.scale_min, config.data.scale_max) == scales
        assert config.data.crop == 224


@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_a_pod_trains_as_its_small_batches_do_with_the_rate_scaled(path: Path) -> None:
    pod, small = load(path), load(PODS[path])
    times = pod.batch_size / small.batch_size
    assert pod.batch_size == {"vgg16_pod": 8192}.get(path.stem, 1024)
    assert (pod.model, pod.data, pod.shard_fc) == (
        small.model,
        small.data,
        small.shard_fc,
    )
    optimizer = pod.optimizer
    assert optimizer.name == "lars" and optimizer.schedule == "polynomial"
    assert optimizer.learning_rate == times * small.optimizer.learning_rate
    assert optimizer.metric == small.optimizer.metric
    assert 0 < optimizer.warmup_epochs < pod.num_epochs / 4
    kernel_step = optimizer.learning_rate * optimizer.trust_coefficient
    expected = 0.01 if path.stem == "vgg16_pod" else 0.02
    assert kernel_step == pytest.approx(expected)


def test_imagenet_on_tpu_is_in_bfloat16_and_shares_its_widest_layers_out() -> None:
    for path in FILES:
        config = load(path)
        if config.data.dataset == "imagenet2012":
            assert config.model.dtype is None
            assert config.shard_fc is (None if path.stem.startswith("vgg") else False)


def test_boxes_start_from_their_classifier() -> None:
    runs = load(BOXES).runs
    assert list(runs) == ["classes", "boxes"]
    classes, boxes = runs.values()
    assert boxes.init_from == "classes" and classes.localization is None
    taken = layers_taken(boxes, classes)
    assert "fc7" in taken and "bn1_1" in taken and "fc8" not in taken
    as_many = dataclasses.replace(boxes.model, num_classes=10)
    assert "fc8" not in layers_taken(dataclasses.replace(boxes, model=as_many), classes)


def test_the_curriculum_is_that_of_section_3_1() -> None:
    runs = load(CURRICULUM).runs
    deeper = ("vgg13", "vgg16_c", "vgg16", "vgg19")
    expected = {"vgg11": None} | dict.fromkeys(deeper, "vgg11")
    for name in deeper[1:]:
        expected |= {f"{name}_384": name, f"{name}_jitter": f"{name}_384"}
    assert {name: run.init_from for name, run in runs.items()} == expected
    for i, run in enumerate(runs.values()):
        assert run.init_from in [None, *list(runs)[:i]]
    for name, run in runs.items():
        alone = load(CONFIGS / f"{name}.py")
        assert dataclasses.replace(run, init_from=alone.init_from) == alone
        # "No smaller rate for pre-initialized layers": one rate for all of them.
        assert run.optimizer.learning_rate == (
            1e-2 if run.init_from in (None, "vgg11") else 1e-3
        )


@pytest.mark.parametrize(
    "path", [*FILES, CURRICULUM, BOXES, TRANSFER], ids=lambda path: path.stem
)
def test_a_docstring_says_what_came_of_a_run(path: Path) -> None:
    note = ast.get_docstring(ast.parse(path.read_text())) or ""
    result = re.search(r"error\b.*\d\.\d+ ± \d\.\d+%", note, re.DOTALL)
    assert result or "not run" in note.lower()


def test_each_file_of_the_paper_names_its_own_network_and_start() -> None:
    for path in FILES:
        if path.stem.startswith("vgg") and path not in PODS:
            config = load(path)
            name = re.sub("_(384|jitter)$", "", path.stem)
            starts = {"384": name, "jitter": f"{name}_384"}
            assert config.model.name == name
            assert config.init_from == starts.get(path.stem.rpartition("_")[2])


def test_a_second_run_on_ones_own_pictures_has_the_first_ones_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("transfer", TRANSFER)
    assert spec is not None and spec.loader is not None
    transfer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(transfer)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "head"
    network = VGGConfig(name="vgg11", num_classes=9, width=1 / 16, fc_kernel=1)
    save_run(run, Config(model=network, data=DataConfig(dataset="folder")))
    monkeypatch.setenv("HOME", str(tmp_path))
    for init_from in ("head", "runs/head", str(run), "~/runs/head"):
        model = transfer.get_config(init_from=init_from).model
        assert (model.name, model.width) == ("vgg11", 1 / 16)
    folder = tmp_path / "pretrained"
    save_pretrained(
        create_model("vgg11", rngs=nnx.Rngs(0), **SMALL), folder, "vgg11", SMALL
    )
    for init_from, name in (
        ("vgg19-dcbb9e9d.pth", "vgg19"),
        ("mine.pth", "vgg16"),
        (str(folder), "vgg16"),
    ):
        model = transfer.get_config(init_from=init_from).model
        assert (model.name, model.width) == (name, 1)

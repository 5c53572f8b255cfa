"""What `import vgg_jax` costs and promises."""

import json
import subprocess
import sys

import vgg_jax

HEAVY = [
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "orbax",
    "matplotlib",
    "cv2",
    "torch",
    "PIL",
    "array_record",
    "ml_collections",
    "absl.flags",
    "tensorboardX",
]


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, json, flax.nnx, optax; before = set(sys.modules); import vgg_jax; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = json.loads(out.stdout.splitlines()[-1])
    assert "vgg_jax.models" in loaded
    assert [m for m in loaded if m.split(".")[0] in HEAVY or m in HEAVY] == []


def test_the_promised_names_are_there() -> None:
    assert set(vgg_jax.__all__) >= {"MODELS", "VGG", "ConvNet", "NiN", "create_model"}
    for name in vgg_jax.__all__:
        assert getattr(vgg_jax, name) is not None


def test_the_models_are_those_of_the_papers() -> None:
    assert list(vgg_jax.MODELS) == [
        "vgg11",
        "vgg11_lrn",
        "vgg13",
        "vgg16_c",
        "vgg16",
        "vgg19",
        "vgg11_bn",
        "vgg13_bn",
        "vgg16_bn",
        "vgg19_bn",
        "nin_imagenet",
        "nin_cifar",
        "nin_tutorial",
    ]

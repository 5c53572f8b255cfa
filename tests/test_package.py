"""What `import vgg_jax` costs and promises."""

import json
import subprocess
import sys

import vgg_jax

HEAVY = {
    "PIL",
    "array_record",
    "cv2",
    "grain",
    "h5py",
    "huggingface_hub",
    "matplotlib",
    "ml_collections",
    "orbax",
    "pooch",
    "safetensors",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
}


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, json, vgg_jax, vgg_jax.losses; "
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(out.stdout.splitlines()[-1]))
    assert {"vgg_jax", "flax"} <= loaded
    assert loaded & HEAVY == set()


def test_the_promised_names_are_there() -> None:
    assert set(vgg_jax.__all__) >= {
        "MODELS",
        "VGG",
        "ConvNet",
        "Loaded",
        "NiN",
        "create_model",
        "load_weights",
        "nin",
        "vgg",
    }
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

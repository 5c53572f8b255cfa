"""Several processes evaluate together: each reads its share, all have the result."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
import cv2
import jax
import numpy as np
from flax import nnx

index, count, port, output = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
if int(count) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))

from vgg_jax import create_model
from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig
from vgg_jax.evaluation.protocols import evaluate

SHAPES = [(40, 56), (56, 40), (48, 48), (40, 56), (32, 300), (33, 99), (64, 64)]


class Pictures:
    class_names = ("a", "b", "c")
    read = []

    def __len__(self):
        return len(SHAPES)

    def __getitem__(self, i):
        self.read.append(i)
        h, w = SHAPES[i]
        image = np.random.default_rng(i).integers(0, 256, (h, w, 3), np.uint8)
        data = cv2.imencode(".png", image)[1].tobytes()
        return {"image": data, "label": i % 3, "name": str(i)}


model = create_model(
    "vgg11", num_classes=3, width=1 / 16, head="global_pool", init="he",
    rngs=nnx.Rngs(0),
)
config = Config(
    model=VGGConfig(name="vgg11", num_classes=3),
    data=DataConfig(
        dataset="folder", crop=32, std=(1000.0, 1000.0, 1000.0), num_threads=1
    ),
    evaluation=EvaluationConfig(batch_size=4),
)
found = {}
for protocol in ("dense", "center"):
    source = Pictures()
    source.read = []
    got = evaluate(model, source, config, protocol=protocol, scales=(40,))
    found |= {f"{protocol} {k}": v for k, v in vars(got).items()}
    found[f"{protocol} read"] = np.sort(source.read)
np.savez(output, **found)
"""


def evaluate(processes: int, folder: Path) -> list[dict[str, np.ndarray]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [folder / f"{i}_of_{processes}.npz" for i in range(processes)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(i), str(processes), str(port), str(o)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, o in enumerate(outputs)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [dict(np.load(output)) for output in outputs]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    (alone,) = evaluate(1, tmp_path)
    both = evaluate(2, tmp_path)
    for i, found in enumerate(both):
        for name, values in alone.items():
            if name == "dense read":
                np.testing.assert_array_equal(found[name], range(i, 7, 2))
            elif not name.endswith("read"):
                np.testing.assert_allclose(found[name], values, atol=1e-5)
    read = np.concatenate([found["center read"] for found in both])
    np.testing.assert_array_equal(np.sort(read), range(7))
    assert np.ptp(alone["dense posteriors"], axis=0).min() > 1e-3

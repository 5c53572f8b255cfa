"""The diagnosis: layers before training, and a loss that stays where it was."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax import create_model
from vgg_jax.config import NiNConfig
from vgg_jax.preprocessing import Normalization
from vgg_jax.tools.init_check import compare_inits, random_batch
from vgg_jax.training import diagnosis
from vgg_jax.training.diagnosis import StallDetector, finding, measure_signals
from vgg_jax.training.loop import train
from vgg_jax.training.schedule import Timetable
from vgg_jax.training.steps import split


def detector(config: Any, examples: int) -> StallDetector:
    timetable = Timetable.for_config(config, examples)
    return StallDetector(config, timetable.steps_per_epoch)


def test_signals_are_those_of_a_gradient_taken_by_hand(
    tiny_config: Any, small_vgg: str
) -> None:
    config = tiny_config(small_vgg)
    config.model.batch_norm, config.model.dropout = True, 0.0
    model = create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
    graphdef, params, stats = split(model)
    batch = random_batch(config)
    kernel = params["fc8"]["kernel"]

    def by_hand(kernel: jax.Array) -> jax.Array:
        layer = params["fc8"] | {"kernel": kernel}
        net = nnx.merge(graphdef, params | {"fc8": layer}, stats)
        images = Normalization(config.data.mean, config.data.std)(batch["image"])
        log_p = jax.nn.log_softmax(net(images, train=True, rngs=nnx.Rngs(0)))
        return -log_p[jnp.arange(8), batch["label"]].mean()

    value, gradient = jax.jit(jax.value_and_grad(by_hand))(kernel)
    loss, signals = measure_signals(config, params, stats, batch, rate=0.01)
    first, second, *_, last = signals
    assert (first.layer, second.layer, last.layer) == ("conv1_1", "conv2_1", "fc8")
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(last.gradient, gradient.std(), rtol=1e-4)
    expected = 0.01 * jnp.linalg.norm(gradient) / jnp.linalg.norm(kernel)
    np.testing.assert_allclose(last.step, expected, rtol=1e-4)
    assert finding(signals) is None

    params["bn4_1"]["bias"] -= 1e6
    _, signals = measure_signals(config, params, stats, batch, rate=0.01)
    assert next(s.layer for s in signals if s.dead == 1.0) == "conv4_1"
    assert signals[0].dead < 1.0 and signals[0].step == 0.0
    assert "the ReLU after conv4_1" in str(finding(signals))


@pytest.mark.slow
def test_the_report_says_which_schemes_start(tiny_config: Any) -> None:
    config = tiny_config("vgg16", init="glorot")
    config.model.width, config.data.std = 0.125, (1.0,)  # pixels 0-255, rate 0.01
    lines = compare_inits(config).splitlines()
    verdicts = dict(line.split(maxsplit=1) for line in lines[1:5])
    assert "the signal grows" in verdicts["paper"]
    assert "the signal fades" in verdicts["caffe_001"]
    assert verdicts["glorot"].endswith("starts")
    assert "will not start: the signal grows" in verdicts["he"]
    assert lines[-16].startswith("conv1_1") and lines[-1].startswith("fc8")


def test_a_loss_is_stuck_after_an_epoch_near_chance(tiny_config: Any) -> None:
    config = tiny_config()
    chance = math.log(3)
    patient = detector(config, examples=8 * 2000)
    assert not any(patient.update(100, chance * 1.005) for _ in range(19))
    assert patient.update(100, chance * 0.995)
    assert not patient.update(100, chance)  # said once, then again after as long
    assert any(patient.update(100, chance) for _ in range(19))
    short = detector(config, examples=80)  # epochs of ten steps
    assert [short.update(100, chance) for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize("loss", [0.98, 1.02, 0.0])
def test_a_loss_that_moves_is_not_stuck(loss: float, tiny_config: Any) -> None:
    moving = detector(tiny_config(), examples=80)
    chance = math.log(3)
    for _ in range(10):
        assert not moving.update(400, chance)
        assert not moving.update(400, chance * loss)


@pytest.mark.usefixtures("one_device")
def test_a_run_that_does_not_start_says_what_to_change(
    tiny_config: Any,
    small_vgg: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(diagnosis, "LONG_ENOUGH", 20)
    config = tiny_config(small_vgg, init="caffe_001", rate=1e-3)
    config.batch_size, config.num_epochs = 24, 9  # of about 3 steps each
    train(config, tmp_path)
    said = capsys.readouterr().err
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    [step] = [row["step"] for row in rows if "stuck" in row]
    assert step >= 20
    assert said.startswith("warning: the loss has stayed at ln(3) = 1.099")
    assert "the signal fades" in said and "model.init=glorot or he" in said
    assert said.count("\n") == 1


def test_remedies_are_those_of_the_configuration(tiny_config: Any) -> None:
    def said(config: Any) -> str:
        return "; ".join(t for applies, t in diagnosis.REMEDIES if applies(config))

    assert "caffe_001" in said(tiny_config(init="paper"))
    assert said(tiny_config(init="glorot")) == "a tenth of optimizer.learning_rate"
    nin = dataclasses.replace(tiny_config(), model=NiNConfig(name="nin_tutorial"))
    assert "ReLU on the scores" in said(nin) and "0.1" in said(nin)

"""A run whose convolutions oneDNN computes, where jaxlib has it."""

from pathlib import Path
from typing import Any

import chex
import jax
import pytest

from vgg_jax.compilation import onednn_options
from vgg_jax.distributed import make_mesh
from vgg_jax.models.measure import summary
from vgg_jax.training.loop import train
from vgg_jax.training.program import abstract_model, build_program
from vgg_jax.training.workdir.checkpoint import Checkpoints


@pytest.mark.usefixtures("one_device")
def test_it_goes_on_to_the_same_bits(
    tiny_config: Any,
    small_vgg: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(small_vgg)
    config.onednn = True
    # Its program takes over at step 8, which is in the first start of the run in parts.
    image = summary(abstract_model(config), config.data.crop)
    work = 8 * image.multiply_adds * config.batch_size
    monkeypatch.setattr("vgg_jax.training.loop.FIRST_WORK", work)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(config, whole) is None
    printed = capsys.readouterr()
    has_onednn = bool(onednn_options())
    assert ("convolutions by oneDNN" in printed.out) == has_onednn
    assert ("warning: onednn=True: this jaxlib has none" in printed.err) != has_onednn
    config.num_epochs = 1
    assert train(config, parts) is None
    assert "this run has" not in capsys.readouterr().err
    config.num_epochs = 2
    assert train(config, parts) is None
    state = build_program(config, make_mesh(jax.devices()[:1])).state
    ends = []
    for workdir in (whole, parts):
        metric = "validation_top1_error"
        with Checkpoints(workdir, metric, read_only=True) as checkpoints:
            latest = checkpoints.latest_step
            assert latest is not None and latest > 10
            ends.append(jax.device_get(checkpoints.restore(state, latest)[0]))
    chex.assert_trees_all_equal(*ends)


@pytest.mark.usefixtures("one_device")
def test_a_run_keeps_what_its_first_start_chose(
    tiny_config: Any,
    small_vgg: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(small_vgg)
    config.num_epochs = 1
    assert train(config, tmp_path) is None
    monkeypatch.setattr("vgg_jax.training.loop.LONG_RUN", 1)
    config.num_epochs = 2
    assert train(config, tmp_path) is None
    assert "convolutions by oneDNN" not in capsys.readouterr().out


@pytest.mark.usefixtures("one_device")
def test_a_run_that_is_over_before_says_so(
    tiny_config: Any,
    small_vgg: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(small_vgg)
    config.num_epochs = 1
    config.onednn = True
    assert train(config, tmp_path / "asked") is None
    message = "steps of a run are without it, while it compiles, and this run has "
    assert (message in capsys.readouterr().err) == bool(onednn_options())
    # One for which that was chosen by its length does not.
    monkeypatch.setattr("vgg_jax.training.loop.LONG_RUN", 1)
    config.onednn = None
    assert train(config, tmp_path / "chosen") is None
    assert message not in capsys.readouterr().err

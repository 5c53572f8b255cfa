"""This module makes the program to be exported of a run or of weights of others."""

from typing import Any

from etils.epath import Path

from vgg_jax.config import Config
from vgg_jax.export.program import Program
from vgg_jax.files import parse_path
from vgg_jax.preprocessing import Normalization
from vgg_jax.training.workdir.checkpoint import check_classifies, restore_model
from vgg_jax.training.workdir.facts import read_class_names
from vgg_jax.training.workdir.weights_folder import read_facts
from vgg_jax.weights.published import PUBLISHED, identify


def load_program(workdir: Path, *, output: str, input: str) -> Program:
    """Loads the best checkpoint of a run, or the weights of a folder of such.

    Args:
        workdir: the run's folder, or one that `make_weights_folder` made.
        output, input: the arguments of `Program`.

    Raises:
        FileNotFoundError: the folder has no run or no checkpoint.
        ValueError: it cannot be read; the output needs layers that have no weights, or
            boxes; or whitening would have to be inside.
    """
    model, config, step = restore_model(workdir)
    facts = read_facts(workdir) or {}
    program = Program(
        model=model,
        output=output,
        input=input,
        normalization=_normalization(config, input),
        # A network of boxes has four outputs a class.
        class_names=None if config.localization else read_class_names(workdir),
        facts=_facts(config, step, facts),
    )
    needs_head = program.rows == model.layers
    if needs_head:
        check_classifies(config, workdir)
    return program


def _normalization(config: Config, input: str) -> Normalization | None:
    """Returns what a run does to pixels; None where that is more than normalization."""
    if not config.data.whiten:
        return Normalization(config.data.mean, config.data.std)
    if input != "normalized":
        raise ValueError(
            f"expected --input normalized for a network that was trained on whitened "
            f"images, got {input}: whitening is not exported"
        )
    return None


def _facts(config: Config, step: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Returns what metadata say of a run, or of foreign weights."""
    network = {"network": config.model.name, "crop": config.data.crop}
    if not facts:
        return {
            **network,
            "lineage": "vgg_jax",
            "step": step,
            "init_from": config.init_from,
        }
    file = parse_path(facts["file"])
    published = PUBLISHED.get(facts["weights"]) or identify(file)
    return {
        **network,
        "weights": file.name if published is None else published.name,
        "source_sha256": facts["sha256"],
        "lineage": facts["lineage"],
        "license": published and published.license,
    }

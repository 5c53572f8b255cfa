"""This module tells folders apart in which weights lie, where a file is asked for."""

from etils.epath import Path

# The files of a folder of `save_pretrained`, as the Hugging Face hub has them.
PRETRAINED_CONFIG, PRETRAINED_WEIGHTS = "config.json", "model.safetensors"


def is_pretrained(folder: Path) -> bool:
    """Returns whether a folder is one of `save_pretrained`, or of timm on the hub."""
    names = (PRETRAINED_CONFIG, PRETRAINED_WEIGHTS)
    return all((folder / name).is_file() for name in names)


def is_run(folder: Path) -> bool:
    """Returns whether a folder is that of a run, or of weights in place of one."""
    marks = ((folder / "checkpoints").is_dir(), (folder / "weights.json").is_file())
    return (folder / "config.json").is_file() and any(marks)


def refuse_folder(folder: Path) -> None:
    """Raises an error that says what takes a folder, where a file is expected.

    Raises:
        ValueError: always.
    """
    if is_pretrained(folder):
        advice = (
            f"a folder of save_pretrained; from_pretrained({str(folder)!r}) makes its "
            f"network, and {folder / PRETRAINED_WEIGHTS} is a file of its weights"
        )
    elif is_run(folder):
        advice = (
            "the folder of a run; commands take it as --workdir, "
            f"vgg_jax.training.workdir.checkpoint.restore_model({str(folder)!r}) makes "
            f"its network, and `python -m vgg_jax.weights convert {folder} "
            "OUT.safetensors` writes a file of its weights"
        )
    elif any(
        (folder / name).exists() for name in ("_CHECKPOINT_METADATA", "_METADATA")
    ):
        advice = (
            "a checkpoint of Orbax; that of a run is read by the run's own folder, "
            f"{folder.parent.parent}, and another one's arrays are taken as a mapping"
        )
    else:
        advice = "a folder of something else"
    raise ValueError(f"{folder}: expected a file of weights, got {advice}")

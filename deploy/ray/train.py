"""Trains on a Ray cluster, and goes on after the loss of a worker.

  python deploy/ray/train.py --num_workers 2 --gpus 8 --config configs/vgg16.py \
      --workdir /shared/runs/vgg16 --config.data.data_dir=/shared/imagenet

A worker is a process with the given resources; one a machine is right. Their machines
have the packages of requirements-ray.txt, and for GPUs those of requirements-cuda.txt.
They get this project's folder from Ray. The flags of train.py are those of this script.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxConfig, JaxTrainer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from vgg_jax import cli  # noqa: E402 it lies in ROOT
from vgg_jax.config import Config, from_dict, to_dict  # noqa: E402
from vgg_jax.files import resolve  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python deploy/ray/train.py", __doc__, config=(Config,))
    parser.add_workdir("folder of the run, which all machines see")
    parser.add_argument(
        "--num_workers", type=cli.positive, default=1, help="number of workers"
    )
    parser.add_argument(
        "--gpus", type=cli.positive, help="GPUs of a worker; without, it has a CPU"
    )
    parser.add_argument(
        "--max_failures",
        type=cli.positive,
        default=50,
        help="how often the training starts anew when a worker is lost",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Trains on the cluster; returns 0."""
    workdir = resolve(values.workdir)
    # Without a cluster in reach, Ray starts one on this machine. What .gitignore names,
    # it does not send.
    ray.init(runtime_env={"working_dir": str(ROOT)}, include_dashboard=False)
    environment = {} if values.gpus else {"JAX_PLATFORMS": "cpu"}
    trainer = JaxTrainer(
        work,
        train_loop_config={
            "config": to_dict(values.config),
            "workdir": str(workdir),
        },
        # With neither, Ray would start workers that do not know of one another. On CPU
        # JAX_PLATFORMS decides, whichever is chosen.
        jax_config=JaxConfig(use_gpu=bool(values.gpus), use_tpu=not values.gpus),
        scaling_config=ScalingConfig(
            num_workers=values.num_workers,
            use_gpu=bool(values.gpus),
            resources_per_worker={"GPU": values.gpus} if values.gpus else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=workdir.name,
            storage_path=str(workdir / "ray"),
            failure_config=FailureConfig(max_failures=values.max_failures),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    trainer.fit()
    return cli.DONE


def work(settings: dict[str, Any]) -> None:
    """Trains, in each worker.

    Raises:
        RuntimeError: the workers have not met, or the run was stopped; Ray then starts
            all of them anew.
    """
    from vgg_jax.compilation import prepare_jax
    from vgg_jax.training import train

    prepare_jax()
    count = ray.train.get_context().get_world_size()
    if jax.process_count() != count:
        raise RuntimeError(
            f"expected {count} workers that have met, got {jax.process_count()}: each "
            "would train alone"
        )
    stopped = train(from_dict(settings["config"]), settings["workdir"])
    if stopped is not None:
        raise RuntimeError(f"stopped by {stopped.name}")


if __name__ == "__main__":
    sys.exit(main())

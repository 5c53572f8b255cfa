"""A training in a few lines, to try the attacks' own judgment on within seconds.

It counts: the weights are the sum of the steps so far. `--fault` breaks one promise
that a real training gives.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

STEPS, SAVE_EVERY, VALIDATE_EVERY = 24, 4, 6
PAUSE_STEP = 6  # of a first start with a fault


def main() -> int:
    """Trains, or evaluates; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("script", choices=("train.py", "eval.py"))
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--fault", default="")
    values, _ = parser.parse_known_args()
    stops: list[int] = []
    if values.fault != "deaf":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda which, _: stops.append(which))
    try:
        if values.script == "eval.py":
            return evaluate(values.workdir)
        return train(values.workdir, values.fault, stops)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", flush=True)
        return 1


def evaluate(workdir: Path) -> int:
    """Writes the weights as a result."""
    weights = json.loads((workdir / "checkpoints" / str(STEPS) / "state").read_text())
    replace(workdir / "eval.json", json.dumps({"results": [weights]}))
    return 0


def train(workdir: Path, fault: str, stops: list[int]) -> int:
    """Counts to the last step, from the newest checkpoint on."""
    folder = workdir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    saved = max(
        (int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0
    )
    weights = 0
    if saved:
        weights = json.loads((folder / str(saved) / "state").read_text())
    if fault == "forgets" and saved:
        weights -= saved
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= saved]
    replace(metrics, "".join(f"{line}\n" for line in kept))
    for step in range(saved + 1, STEPS + 1):
        time.sleep(0.02)
        weights += step
        with metrics.open("a") as file:
            validation = {} if step % VALIDATE_EVERY else {"validation_loss": weights}
            file.write(json.dumps({"step": step, **validation}) + "\n")
        print(f"step {step}/{STEPS}", flush=True)
        if fault and not saved and step == PAUSE_STEP:
            time.sleep(1)  # the blow falls in this time, however slow the machine is
        if step % SAVE_EVERY == 0 or (stops and fault != "drops"):
            save(folder, step, weights)
        if stops:
            return 0 if fault == "wrong code" else 128 + stops[0]
    print(f"finished at step {STEPS}", flush=True)
    return 0


def save(folder: Path, step: int, weights: int) -> None:
    """Writes a checkpoint, whole or not at all, and removes the one before it."""
    partial = folder / f"{step}.tmp"
    partial.mkdir(exist_ok=True)
    (partial / "state").write_text(json.dumps(weights))
    time.sleep(0.005)
    os.rename(partial, folder / str(step))
    for other in folder.iterdir():
        if other.name != str(step):
            shutil.rmtree(other)


def replace(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    path.with_suffix(".partial").write_text(text)
    os.replace(path.with_suffix(".partial"), path)


if __name__ == "__main__":
    sys.exit(main())

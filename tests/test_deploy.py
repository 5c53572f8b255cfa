"""The files of deploy/, as far as one machine can try them.

What Slurm and Ray make of theirs is tried by `make test-slurm` and `make test-ray`.
"""

import ast
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vgg_jax import cli
from vgg_jax.config import Config, Curriculum, validate
from vgg_jax.hosts.launcher import Place, find_place

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SBATCH = DEPLOY / "slurm" / "train.sbatch"
RAY = DEPLOY / "ray" / "train.py"
STOPPED, LOST_HOST = cli.STOPPED + signal.SIGTERM, cli.RETRY
MEND_FIRST = (cli.FAILED, cli.USAGE)


def read_flags(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration that train.py makes of its flags."""
    monkeypatch.chdir(ROOT)
    parser = cli.Parser("python train.py", None, config=(Config, Curriculum))
    parser.add_workdir("folder of the run")
    config = parser.read(words).config
    validate(config)
    assert isinstance(config, Config)
    return config


def load(path: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def jobs() -> dict[str, tuple[dict[str, Any], str]]:
    """The job of each file of Kubernetes, and where its pod 0 listens."""
    [jobset] = load("kubernetes/jobset.yaml")
    [replicated] = jobset["spec"]["replicatedJobs"]
    assert jobset["spec"]["network"]["enableDNSHostnames"]
    assert replicated["replicas"] == 1
    name = jobset["metadata"]["name"]
    service, job = load("kubernetes/job.yaml")
    subdomain = job["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["clusterIP"] == "None"  # not null: it is headless
    assert service["metadata"]["name"] == subdomain
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    return {
        "jobset": (
            replicated["template"]["spec"],
            f"{name}-{replicated['name']}-0-0.{name}",
        ),
        "job": (job["spec"], f"{job['metadata']['name']}-0.{subdomain}"),
    }


@pytest.mark.parametrize("file", ["jobset", "job"])
def test_pods_of_kubernetes_join(file: str) -> None:
    job, host = jobs()[file]
    [container] = job["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    count = job["completions"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == count
    for index in range(count):
        of_pod = environment | {"JOB_COMPLETION_INDEX": str(index)}
        assert find_place(of_pod) == Place(f"{host}:8476", count, index, False)


@pytest.mark.parametrize("file", ["jobset", "job"])
def test_pods_of_kubernetes_start_again_by_their_exit_code(file: str) -> None:
    job, _ = jobs()[file]
    pod = job["template"]["spec"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["operator"] == "NotIn"
    again = set(rule["onExitCodes"]["values"])
    assert {STOPPED, LOST_HOST} <= again and again.isdisjoint((0, *MEND_FIRST))
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never"  # a failure policy demands it


def test_a_jobset_does_not_start_again_what_has_to_be_mended() -> None:
    [jobset] = load("kubernetes/jobset.yaml")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    [rule] = policy["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


@pytest.mark.parametrize("file", ["jobset", "job"])
def test_pods_of_kubernetes_have_what_their_command_names(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = jobs()[file][0]["template"]["spec"]
    [container] = pod["containers"]
    assert container["command"][:2] == ["python", "train.py"]
    config = read_flags(container["command"][2:], monkeypatch)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {"/runs", config.data.data_dir} <= mounts.keys()
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}


def test_machines_of_skypilot_join(monkeypatch: pytest.MonkeyPatch) -> None:
    [task] = load("skypilot/train.yaml")
    again = set(task["resources"]["job_recovery"]["recover_on_exit_codes"])
    assert {STOPPED, LOST_HOST} <= again and again.isdisjoint((0, *MEND_FIRST))
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] == 0
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    command = shlex.split(task["run"].replace("\\\n", ""))
    assert command[:3] == ["exec", ".venv/bin/python", "train.py"]
    config = read_flags(command[3:], monkeypatch)
    assert config.data.data_dir in task["file_mounts"]
    requirements = re.findall(r"-r (\S+)", task["setup"])
    assert requirements and all((ROOT / name).is_file() for name in requirements)


def slurm(
    folder: Path, code: int, restarts: int | None = None
) -> tuple[int, list[str]]:
    """What the script of Slurm exits with and which programs it calls, made here."""
    for name in ("srun", "scontrol", "sleep"):
        program = folder / name
        text = f'#!/bin/sh\necho {name} "$@" >>{folder}/calls\n'
        program.write_text(text + (f"exit {code}\n" if name == "srun" else ""))
        program.chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    if restarts is not None:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run(
        ["bash", str(SBATCH), "--workdir", "two words"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("code", [LOST_HOST, 137, STOPPED])
def test_a_job_of_slurm_that_was_stopped_is_put_back(code: int, tmp_path: Path) -> None:
    returned, (srun, *others) = slurm(tmp_path, code, restarts=3)
    assert returned == code
    assert srun.endswith(".venv/bin/python train.py --workdir two words")
    assert others == ["scontrol requeue 7", "sleep 60"]


@pytest.mark.parametrize(
    ("code", "restarts"), [(0, None), (1, 0), (2, None), (STOPPED, 50)]
)
def test_a_job_of_slurm_that_has_ended_is_not_put_back(
    code: int, restarts: int | None, tmp_path: Path
) -> None:
    returned, calls = slurm(tmp_path, code, restarts)
    assert returned == code and len(calls) == 1


def test_slurm_sends_the_tasks_a_signal_before_the_time_is_over() -> None:
    options = " ".join(re.findall(r"^#SBATCH (.*)", SBATCH.read_text(), re.MULTILINE))
    assert "--signal=TERM@" in options  # with B: the script alone would get it
    assert "--requeue" in options and "--open-mode=append" in options


def commands_in(text: str, script: str) -> list[list[str]]:
    """The flags of each command in a text that runs a script."""
    whole = re.sub(r"\\\n#?\s*", " ", text)
    flags = r"([^\n|&>'`]*--config[^\n|&>'`]*)"
    return [shlex.split(line) for line in re.findall(f"{script} {flags}", whole)]


@pytest.mark.parametrize(
    ("file", "script"),
    [
        (SBATCH, "deploy/slurm/train.sbatch"),
        (ROOT / "docs" / "clusters.md", "deploy/slurm/train.sbatch"),
        (ROOT / "docs" / "clusters.md", "python train.py"),
        (ROOT / "docs" / "cloud_tpu.md", "python train.py"),
    ],
)
def test_commands_that_are_shown_are_right(
    file: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = commands_in(file.read_text(), script)
    assert commands
    for words in commands:
        read_flags(words, monkeypatch)


def test_the_script_of_ray_takes_the_flags_that_it_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = ast.parse(RAY.read_text())
    added = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "add_argument"
        and isinstance(call.args[0], ast.Constant)
    }
    [words] = commands_in(ast.get_docstring(tree) or "", "python deploy/ray/train.py")
    own = [word for word in words if word in added]
    assert own == ["--num_workers", "--gpus"]
    for word in own:
        position = words.index(word)
        assert words[position + 1].isdecimal()
        del words[position : position + 2]
    read_flags(words, monkeypatch)

"""The benchmark of GPUs runs on CPU at toy sizes, and tells of all that goes wrong."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import pytest

from benchmarks import cases, gpu, in_jax, loop_in_jax, sides, worker
from benchmarks.cards import find_card
from benchmarks.cases import make_case
from benchmarks.gpu import Group, Row
from vgg_jax.config import NiNConfig, VGGConfig
from vgg_jax.kernels import platforms
from vgg_jax.models import MODELS, ConvNet, nin
from vgg_jax.models.layers import MaxPool
from vgg_jax.models.measure import summary
from vgg_jax.models.nin import Block
from vgg_jax.training import loop
from vgg_jax.training.program import Program

Printed = pytest.CaptureFixture[str]
QUICK = ["--toy", "--turns=2", "--seconds=0.001"]


class InThisProcess:
    """A side that answers here, as a test says or else as the benchmark's own does."""

    ours: Mapping[str, Any] | None = None
    theirs: Mapping[str, Any] | None = None

    def __init__(
        self,
        python: str,
        module: str,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
    ):
        assert json.loads(json.dumps(arguments)) == arguments
        self._values = self.theirs if module.endswith("torch") else self.ours
        open_parts = import_module(module).open_parts if self._values is None else None
        self._answer = worker.Answers(lambda: open_parts(**arguments))

    def ask(self, request: str, seconds: float) -> Any:
        assert seconds > 0
        if self._values is None:
            return self._answer(request)
        value = self._values[request]
        if isinstance(value, Exception):
            raise value
        return value

    def errors(self) -> str:
        return "the end of stderr"

    def start_if_ended(self) -> None:
        """Does nothing: there is no process."""

    kill = close = start_if_ended


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> type[InThisProcess]:
    class Side(InThisProcess):
        pass

    monkeypatch.setattr(gpu, "Side", Side)
    return Side


def plan(monkeypatch: pytest.MonkeyPatch, *groups: Group) -> None:
    monkeypatch.setattr(gpu, "make_plan", lambda networks, scales: list(groups))


FACTS = {"platform": "gpu", "card": "NVIDIA A100-SXM4-80GB", "jax": "1.2.3"}
OURS = {"facts": FACTS, "parameters": 7, "train": 0.25, "forward": 0.125, "logits": 4.0}
THEIRS = {
    "facts": {"torch": "2.3.4", "cuda": "13.0", "cudnn": "9"},
    "parameters": 7,
    "train": 0.5,
    "train, eager": 1.0,
    "forward": 0.125,
    "logits": 1e-5,
}
VGG16 = Group("vgg16", "bfloat16", 256, ("train", "forward"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows_of(printed: str) -> list[list[str]]:
    return [cells(line) for line in printed.splitlines() if line[:1] == "|"][2:]


def test_grain_is_needed_by_the_loop_alone() -> None:
    """A machine with a card and without a network may have JAX and no more."""
    missing = ("grain", "array_record", "tensorboardX", "tensorflow_datasets")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    code += "import benchmarks.gpu, benchmarks.in_jax, benchmarks.loop_in_jax"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=sides.ROOT)


def test_every_part_runs_at_toy_sizes(
    side: type[InThisProcess],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Printed,
) -> None:
    blocks = (
        Block(3, 2, 1, (256, 256, 256), MaxPool("pool1", 3, 2, ceil_mode=True)),
        Block(3, 1, 1, (256, 256, None)),
    )
    monkeypatch.setitem(MODELS, "small", functools.partial(nin, blocks))
    monkeypatch.setitem(gpu.NETWORKS, "small", NiNConfig(name="small"))
    monkeypatch.setattr(cases, "PHOTOGRAPHS", cases.PHOTOGRAPHS[:1])
    one = loop.make_mesh(jax.devices()[:1])
    for module in (in_jax, loop):
        monkeypatch.setattr(module, "make_mesh", lambda: one)
    for module in (in_jax, loop_in_jax):
        monkeypatch.setattr(module, "prepare_jax", lambda: None)
    side.theirs = THEIRS
    parts = ("train", "forward", gpu.PLAIN, f"dense, Q={gpu.TOY_SCALES[0]}", "logits")
    groups = [Group("small", "float32", 64, parts)]
    groups.append(Group("small", "bfloat16", 64, ("loop",)))
    plan(monkeypatch, *groups)
    # The parameters of the two sides differ, for PyTorch's are made up.
    parameters = THEIRS["parameters"]
    file = tmp_path / "gpu.json"
    code = gpu.main([*QUICK, "--torch=python", "--loop_steps=8", f"--write={file}"])
    printed = capsys.readouterr()
    rows = rows_of(printed.out)
    assert [row[1] for row in rows] == [*parts, "loop"]
    for row in rows:
        assert row[1] == "logits" or float(row[4].split(" ")[0].replace(",", "")) >= 0
    assert "logits differ by at most 1.0e-05" in rows[4][-1]
    assert "train.py's loop on JPEGs, waited" in rows[5][-1]
    assert platforms.GPUS == ("cuda", "rocm")
    written = json.loads(file.read_text())["rows"]
    assert all(row["images_per_second"]["JAX"] > 0 for row in written if row["images"])
    assert code == 1 and f"{parameters} in PyTorch" in rows[0][-1]


def test_a_row_has_medians_ratio_and_the_share_of_the_peak(
    side: type[InThisProcess],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Printed,
) -> None:
    side.ours, side.theirs = OURS, THEIRS
    plan(monkeypatch, VGG16, Group("vgg16", "float32", 256, ("logits",)))
    file = tmp_path / "gpu.json"
    assert gpu.main(["--turns=2", "--torch=python", f"--write={file}"]) == 0
    out = capsys.readouterr().out
    title = out.splitlines()[0]
    assert "NVIDIA A100-SXM4-80GB" in title and "PyTorch 2.3.4 (torch.compile" in title
    assert "float32 with TF32 on both sides" in title
    train, forward, _ = rows_of(out)
    # 15.5 G multiply-adds, forward and twice that backward, in 0.25 s of 312 TFLOP/s.
    assert train == [
        *("vgg16", "train", "bfloat16", "256"),
        *("1,024 (1,024 to 1,024)", "512 (512 to 512)", "2.00", "30.5%", "15.2%", ""),
    ]
    assert forward[6:9] == ["1.00", "20.3%", "20.3%"]
    written = json.loads(file.read_text())
    assert written["rows"][0]["seconds"] == {"JAX": [0.25] * 2, "PyTorch": [0.5] * 2}
    assert written["rows"][2]["numbers"]["largest_difference"] == 1e-5
    assert {"command", "settings", "peaks"} <= written.keys()
    assert {"driver", "date", "JAX", "PyTorch"} <= written["facts"].keys()


def test_errors_of_one_side_are_told_and_the_rest_goes_on(
    side: type[InThisProcess], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    full = sides.Unanswered("OutOfMemory: set batch_size to 1")
    side.ours = OURS | {"train": full}
    side.theirs = THEIRS | {"forward": full, "logits": 1.0}
    plan(monkeypatch, VGG16, Group("vgg16", "float32", 256, ("logits",)))
    assert gpu.main(["--turns=2", "--torch=python"]) == 1
    printed = capsys.readouterr()
    train, forward, logits = rows_of(printed.out)
    assert train[4:7] == ["-", "512 (512 to 512)", "-"]
    assert train[-1] == "JAX: OutOfMemory: set batch_size to 1"
    assert forward[4:6] == ["2,048 (2,048 to 2,048)", "-"]
    assert "above 0.0001" in logits[-1]
    assert "With errors: vgg16 train, bfloat16, batch 256 (JAX)" in printed.out
    assert "the end of stderr" in printed.err


def test_pytorch_goes_on_without_a_compiler_that_fails(
    side: type[InThisProcess], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    side.ours = OURS
    side.theirs = THEIRS | {"train": sides.Unanswered("no C compiler")}
    one = Group("vgg16", "bfloat16", 256, ("train",))
    plan(monkeypatch, one, dataclasses.replace(one, network="vgg19"))
    assert gpu.main(["--turns=3", "--torch=python"]) == 1
    first, second = rows_of(capsys.readouterr().out)
    assert first[5] == second[5] == "256 (256 to 256)"
    assert first[-1] == "PyTorch without torch.compile; PyTorch: no C compiler"
    assert second[-1] == "PyTorch without torch.compile"  # which is not tried again


def test_an_error_of_the_benchmark_itself_is_a_row_of_its_own(
    side: type[InThisProcess], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    side.ours = {name: OURS[name] for name in ("facts", "parameters", "forward")}
    plan(monkeypatch, VGG16)
    assert gpu.main(["--turns=2", "--alone"]) == 1
    train, forward = rows_of(capsys.readouterr().out)
    assert train[-1] == "benchmark: KeyError: 'train'" and forward[-1] == ""


def test_what_there_is_no_time_for_is_named_and_measured_by_the_next_call(
    side: type[InThisProcess],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Printed,
) -> None:
    late = sides.OutOfTime("its time was up")
    side.ours = OURS | {"forward": late}
    plan(monkeypatch, VGG16)
    file = tmp_path / "gpu.json"
    command = ["--turns=2", "--alone", f"--write={file}"]
    assert gpu.main([*command, "--minutes=2"]) == 0
    assert "Left out, for the time was up: vgg16 forward" in capsys.readouterr().out
    side.ours = {name: OURS[name] for name in ("facts", "parameters", "forward")}
    assert gpu.main([*command, "--go_on"]) == 0
    train, forward = rows_of(capsys.readouterr().out)
    assert train[4] == "1,024 (1,024 to 1,024)" and forward[4][:5] == "2,048"
    side.ours = {}
    new = f"--write={tmp_path}/new.json"
    assert gpu.main(["--alone", new, "--minutes=0.3"]) == 0  # less than a part may take
    assert "time was up: vgg16 train, bfloat16" in capsys.readouterr().out
    assert not (tmp_path / "new.json").exists()


def test_a_call_that_finds_nothing_left_prints_the_table_and_changes_nothing(
    side: type[InThisProcess],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Printed,
) -> None:
    side.ours = OURS
    plan(monkeypatch, VGG16)
    file = tmp_path / "new" / "gpu.json"
    command = ["--turns=2", "--alone", f"--write={file}"]
    assert gpu.main(command) == 0
    first, written = capsys.readouterr().out, file.read_text()
    side.ours = {}
    assert gpu.main([*command, "--go_on"]) == 0
    assert capsys.readouterr().out.strip() == first.strip()
    assert gpu.main([*command, "--go_on", "--minutes=0.3"]) == 0
    assert file.read_text() == written
    assert json.loads(written)["facts"]["card"] == FACTS["card"]


def test_a_row_stays_until_it_is_measured_anew(
    side: type[InThisProcess],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Printed,
) -> None:
    plan(monkeypatch, VGG16)
    file = tmp_path / "gpu.json"
    command = ["--turns=2", f"--write={file}", "--alone", "--go_on"]

    def rows() -> dict[str, dict[str, Any]]:
        return {row["part"]: row for row in json.loads(file.read_text())["rows"]}

    late, broken = sides.OutOfTime("its time was up"), sides.Unanswered("broken")
    side.ours = OURS | {"train": late, "forward": broken}
    assert gpu.main([*command, "--minutes=2"]) == 1
    assert rows()["forward"]["problems"] == {"JAX": "broken"}
    assert gpu.main([*command, "--minutes=2", "--part=forward"]) == 1
    assert rows()["train"]["is_cut_short"]
    assert "Left out, for the time was up: vgg16 train" in capsys.readouterr().out
    side.ours = OURS
    assert gpu.main([*command, "--part=forward"]) == 0
    assert rows()["forward"]["seconds"] == {"JAX": [0.125] * 2}
    assert rows()["train"]["is_cut_short"]
    assert gpu.main(command) == 0
    assert not rows()["train"]["is_cut_short"]
    assert json.loads(file.read_text())["left_out"] == []
    # With PyTorch there, what was measured without it is measured again.
    side.theirs = THEIRS
    command.remove("--alone")
    assert gpu.main([*command, "--torch=python"]) == 0
    assert [row["ratio"] for row in rows().values()] == [2.0, 1.0]
    side.ours = side.theirs = {}
    assert gpu.main([*command, "--torch=python"]) == 0


@pytest.mark.parametrize(
    ("facts", "more", "match"),
    [
        ({}, ["--no-tf32"], "has rows with tf32 True, and tf32 is False now"),
        ({}, ["--toy"], "has rows with toy False, and toy is True now"),
        ({"card": "NVIDIA H200"}, [], "another card: .* is .*NVIDIA H200"),
        ({"jax": "1.2.4"}, [], "other versions"),
    ],
)
def test_rows_of_other_cards_versions_or_settings_are_not_mixed(
    facts: dict[str, str],
    more: list[str],
    match: str,
    side: type[InThisProcess],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Printed,
) -> None:
    side.ours = OURS | {"forward": sides.OutOfTime("its time was up")}
    plan(monkeypatch, VGG16)
    file = tmp_path / "gpu.json"
    command = ["--turns=2", "--alone", f"--write={file}"]
    assert gpu.main([*command, "--minutes=2"]) == 0
    written = file.read_text()
    side.ours = OURS | {"facts": FACTS | facts}
    with pytest.raises(SystemExit) as stopped:
        gpu.main([*command, "--go_on", *more])
    assert re.search(match, f"{stopped.value} {capsys.readouterr().err}")
    assert file.read_text() == written


PARTS_OF_FILE = {
    "facts": {"JAX": {"jax": "1"}, "card": "", "driver": "", "python": ""},
    "settings": {"tf32": True, "eager": False, "toy": False},
    "rows": [],
    "left_out": [],
}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"rows": []}',
        *(
            json.dumps(PARTS_OF_FILE | {name: value})
            for name in PARTS_OF_FILE
            for value in (None, {"a": 1}, [1])
            if name != "left_out" or value is None
        ),
    ],
)
def test_a_damaged_file_is_refused_in_a_line(
    text: str, tmp_path: Path, capsys: Printed
) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        gpu.main([f"--write={file}", "--go_on", "--alone"])
    assert f"error: {file}" in capsys.readouterr().err
    assert file.read_text() == text


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: Printed
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        gpu.main([f"--write={tmp_path}/file/gpu.json", "--alone"])
    assert "Not a directory" in capsys.readouterr().err
    for folder in (tmp_path, ""):
        with pytest.raises(SystemExit, match="2"):
            gpu.main([f"--write={folder}", "--alone"])
        assert "name a file, got the folder" in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_refused(
    side: type[InThisProcess], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    side.ours = {"facts": FACTS | {"platform": "cpu", "card": "cpu"}}
    plan(monkeypatch, VGG16)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(SystemExit, match="JAX finds no GPU here, only cpu: install"):
        gpu.main(["--alone"])
    assert "the end of stderr" in capsys.readouterr().err  # where JAX says why
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(SystemExit, match="unset JAX_PLATFORMS, which is 'cpu'"):
        gpu.main(["--alone"])


def test_both_sides_see_one_card(
    side: type[InThisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Seeing(side):  # type: ignore[valid-type, misc]
        ours = OURS

        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            seen.append(arguments[3]["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(gpu, "Side", Seeing)
    plan(monkeypatch, VGG16)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert gpu.main(["--alone", "--turns=2"]) == 0
    assert seen == ["3"]


def test_the_plan_has_all_networks_batches_and_types_and_begins_with_training() -> None:
    groups = gpu.make_plan(gpu.NETWORKS, gpu.SCALES)
    rows = [
        (group.network, part, group.dtype, group.batch_size)
        for group in groups
        for part in group.parts
    ]
    assert len({*rows}) == len(rows)
    assert rows[0] == ("vgg16", "train", "bfloat16", 256)
    assert {
        (network, part, dtype, batch_size)
        for network in gpu.NETWORKS
        for part in gpu.TIMED
        for dtype in gpu.DTYPES
        for batch_size in (64, 256)
    } <= {*rows}
    first = [row[:2] for row in rows[:10]]
    assert {("vgg16", "logits"), ("vgg16", "loop"), ("vgg19", "train")} <= {*first}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> in_jax._Run:
    one = loop.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(in_jax, "make_mesh", lambda: one)
    model = VGGConfig(name="vgg11", width=1 / 64, num_classes=8, fc_kernel=1)
    return in_jax._Run(make_case(model, 32, 2), is_waited_for=False)


def test_plain_forms_are_compiled_without_those_of_gpus(
    run: in_jax._Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scatters = []

    def count(program: Program) -> worker.Steps:
        def take(count: int) -> None:
            traced = program.train_step.trace(*program.arguments)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
            scatters.append(text.count("select_and_scatter"))

        return take

    monkeypatch.setattr(run, "_train", count)
    run.train_with_plain_forms()
    run.train()(1)
    assert scatters == [5, 0]  # a max pool's gradient each
    assert platforms.GPUS == ("cuda", "rocm")


def test_the_last_of_the_timed_steps_is_waited_for(
    run: in_jax._Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []

    def step(state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        events.append("step")
        return "state", "sums"

    take = run._train(dataclasses.replace(run._program, train_step=step))
    monkeypatch.setattr(jax, "block_until_ready", events.append)
    take(3)
    assert events == ["step"] * 3 + [("state", "sums")]


def test_logits_are_compared_at_the_highest_precision(
    run: in_jax._Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    call = ConvNet.__call__

    def record(*arguments: Any, **options: Any) -> Any:
        seen.append(jax.config.jax_default_matmul_precision)
        return call(*arguments, **options)

    monkeypatch.setattr(ConvNet, "__call__", record)
    file = tmp_path / "logits.npz"
    assert in_jax.save_logits(run._config, str(file)) > 0
    assert seen == ["highest"]


def test_steps_of_dense_evaluation_count_the_images_without_their_padding() -> None:
    config = make_case(VGGConfig(name="vgg16"), 224, 256)
    images, flops = gpu.step_of("dense, Q=384", config)
    assert images == 16 + 14 + 14  # of 64 crops' pixels a batch
    wide, narrow = (
        summary("vgg16", size).multiply_adds for size in ((384, 512), (384, 577))
    )  # and 512x384 costs as much as 384x512
    assert flops == 2 * 2 * (30 * wide + 14 * narrow)


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12, 494.5e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("Tesla T4", None, 8.1e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
    ],
)
def test_peaks_of_cards(name: str, bfloat16: float | None, float32: float) -> None:
    card = find_card(name)
    assert card is not None
    assert card.peak("bfloat16", tf32=True) == bfloat16
    assert card.peak("float32", tf32=True) == float32
    assert card.peak("float32", tf32=False) == card.float32


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H200 MIG 1g.18gb",
        "NVIDIA RTX A1000",
        "cpu",
    ],
)
def test_an_unknown_card_has_no_peak(name: str) -> None:
    assert find_card(name) is None
    assert Row("vgg16", "train", "bfloat16", 4).share("JAX", None) is None

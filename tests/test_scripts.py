"""The shell scripts: what `make lint` looks at, and that a shell can read them."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shell_scripts() -> list[str]:
    """Names what begins with a shell's name, as `scripts/check` finds it."""
    line = next(
        line
        for line in (ROOT / "scripts" / "check").read_text().splitlines()
        if line.strip().startswith("mapfile -t shell")
    )
    print_them = f"{line}\nprintf '%s\\n' \"${{shell[@]}}\""
    done = subprocess.run(
        ["bash", "-c", print_them], cwd=ROOT, capture_output=True, text=True
    )
    return sorted(done.stdout.split())


SCRIPTS = shell_scripts()


def test_lint_finds_every_script() -> None:
    expected = {
        "scripts/check",
        "scripts/environment",
        "scripts/find_python",
        ".ci/run",
    }
    assert expected <= set(SCRIPTS)
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/*")} <= {
        *SCRIPTS
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_of_valid_syntax(script: str) -> None:
    done = subprocess.run(
        ["bash", "-n", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

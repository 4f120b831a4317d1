"""The promises the repository makes about itself: commands, layers, pins, docstrings, no traces of a machine."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
MODULES = sorted((ROOT / "orchestrator").rglob("*.py"))
TREE = (
    "orchestrator",
    "tests",
    "benchmarks",
    "docs",
    "examples",
    "search_spaces",
    "results/reference",
    "deploy",
    ".ci",
)
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(home/\w|root/|work/|Users/\w|tmp/venv)")


def shipped_files() -> list[Path]:
    """Every text file of the tree: what sits at the top, and what is in its folders."""
    inside = chain.from_iterable((ROOT / folder).rglob("*") for folder in TREE)
    found = [path for path in chain(ROOT.glob("*"), inside) if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in found if path.suffix not in {".png", ".parquet", ".whl"} and ".coverage" not in path.name]


def recipe(target: str) -> list[str]:
    """The commands of a Makefile target."""
    match = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert match, f"no target {target}"
    return [line.strip().removeprefix("@") for line in match[1].splitlines()]


def contract_named(name: str) -> dict[str, Any]:
    """An import-linter contract."""
    (found,) = [contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"] if contract["name"] == name]
    return found


def pinned() -> dict[str, str]:
    """Package -> version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    entries = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in entries}


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_commands_of_the_readme_are_targets(command: str) -> None:
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert any(re.search(rf"^\$? ?{command}\b", block, re.MULTILINE) for block in blocks)
    assert recipe(command.split()[1])


def test_the_demo_searches_a_space_that_ships() -> None:
    (space,) = re.findall(r"search (\S+\.toml)", " ".join(recipe("demo")))
    assert (ROOT / space).is_file()


@pytest.mark.parametrize("script", re.findall(r"^BENCHMARKS := (.*)$", MAKEFILE, re.MULTILINE)[0].split())
def test_every_listed_benchmark_exists_and_is_described(script: str) -> None:
    assert (ROOT / "benchmarks" / f"{script}.py").is_file()
    assert f"`make bench-{script}`" in (ROOT / "benchmarks" / "README.md").read_text()


def test_continuous_integration_runs_the_commands_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert re.search(r"^make test", script.read_text(), re.MULTILINE)
    assert re.search(r"^make demo", script.read_text(), re.MULTILINE)


def test_pre_commit_runs_what_make_check_runs() -> None:
    hooks = re.findall(r"entry: \.venv/bin/(.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert [f"$(BIN)/{hook}" for hook in hooks] == recipe("check")


def test_the_version_is_readable() -> None:
    assert metadata.version("pruning-orchestrator") == PYPROJECT["project"]["version"]


def test_the_layers_are_those_of_the_design() -> None:
    layers = contract_named("Imports flow down only")
    assert layers["exhaustive"] is True
    assert layers["containers"] == ["orchestrator"]
    upper = "__main__ > cli > commands > tables > search | takeout > trial | collector > methods | training"
    lower = "network > store > stage_files > retention > claim > files > record"
    assert " > ".join(layers["layers"]) == f"{upper} > {lower}"


def test_every_module_outside_search_is_kept_from_ray() -> None:
    contract = contract_named("Ray and Optuna only in search")
    children = {
        f"orchestrator.{path.relative_to(ROOT / 'orchestrator').parts[0].removesuffix('.py')}" for path in MODULES
    }
    assert set(contract["source_modules"]) == children - {"orchestrator.__init__", "orchestrator.search"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_holds_a_machine_path(path: Path) -> None:
    assert not MACHINE_PATH.search(path.read_text(encoding="utf-8"))


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    project = PYPROJECT["project"]
    wanted = [Requirement(text) for text in chain(project["dependencies"], *project["optional-dependencies"].values())]
    pins = pinned()
    assert [r.name for r in wanted if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))] == []


def test_constraints_are_plain_pins() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == [line for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)]


def test_the_network_package_exports_the_public_names() -> None:
    names = {"couple", "measure", "CostTable", "Plan", "greedy", "cut", "masked", "verify", "random_plan"}
    network = import_module("orchestrator.network")
    assert names <= set(network.__all__)
    assert all(hasattr(network, name) for name in network.__all__)


def test_a_trial_starts_without_what_few_trials_need() -> None:
    """Each takes a good part of a second and more; some networks and data sets need them, and import them."""
    code = (
        "import sys, orchestrator.trial\n"
        "from orchestrator.network.architectures import build\n"
        "build('cifarnet', classes=10, input_shape=(1, 28, 28), seed=0)\n"
        "heavy = {'torchvision', 'sklearn', 'pandas', 'ray', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

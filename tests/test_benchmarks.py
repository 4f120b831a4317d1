"""Every benchmark runs, here on the smallest setting that prints a table."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.search import SearchSpace

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

Run = Callable[..., list[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script's main with a command line; the rows of its tables, or its complaint."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()

    def main(name: str, *arguments: str, code: int = 0) -> list[str]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        module = importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, name, module)  # found by pickle for now, gone after the test
        try:
            assert module.main() == code
        finally:
            torch.set_num_threads(threads)
        printed = capsys.readouterr()
        return printed.err.splitlines() if code else [row for row in printed.out.splitlines() if row.startswith("|")]

    return main


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_networks_are_coupled_and_cut(run: Run) -> None:
    header, _, row = run("networks", "cifarnet")
    found = dict(zip(map(str.lower, cells(header)), cells(row), strict=True))
    assert found["network"] == "cifarnet"
    assert found["exact"] == "yes"


def test_architectures_have_a_row_each(run: Run, tmp_path: Path) -> None:
    results = tmp_path / "rows.jsonl"
    names = ("torchvision:squeezenet1_1", "torchvision:resnet18")
    header, _, first, second = run("architectures", *names, "--results", str(results), "--processes", "1")
    assert cells(header)[:3] == ["network", "kind", "side"]
    assert [cells(row)[0] for row in (first, second)] == ["torchvision:resnet18", "torchvision:squeezenet1_1"]
    assert [cells(row)[8] for row in (first, second)] == ["yes", "yes"]
    lines = results.read_text().splitlines()
    run("architectures", *names, "--results", str(results))
    assert results.read_text().splitlines() == lines  # what is there is not computed again
    assert run("architectures", "resnet18", code=2) == ["error: resnet18 is not in architectures.csv"]


@pytest.mark.filterwarnings("ignore")  # Torch-Pruning's own
def test_torch_pruning_is_judged_by_the_same_law(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning (extra bench) is not installed")
    header, _, row = run("beside_torch_pruning", "squeezenet1_1", "--results", str(tmp_path / "rows.jsonl"))
    found = dict(zip(cells(header), cells(row), strict=True))
    assert (found["ours"], found["theirs"]) == ("right", "right")
    assert found["params left, ours"] == found["params left, theirs"]
    assert run("beside_torch_pruning", "resnet17", code=2)[0].startswith("error: resnet17 is none of densenet121")


@pytest.mark.filterwarnings("ignore")  # Torch-Pruning's own
def test_penalty_compares_three_kinds_of_steps(run: Run) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning (extra bench) is not installed")
    header, _, *rows = run("penalty", "--rounds", "1", "--steps", "1", "--threads", "1", "--models", "squeezenet1_1")
    assert cells(header)[2:5] == ["plain step, ms", "with OICSR, ms", "with Torch-Pruning, ms"]
    assert [cells(row)[:2] for row in rows] == [["squeezenet1_1", "default"], ["squeezenet1_1", "all"]]
    assert min(float(cell) for row in rows for cell in cells(row)[2:5]) > 0


def test_penalty_says_what_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run("penalty", code=2) == ["error: this compares with Torch-Pruning: pip install -e '.[bench]'"]


def test_methods_are_compared_at_the_same_flops(run: Run, tmp_path: Path) -> None:
    setting = "--dataset digits --epochs 1 1 1 --seeds 1 --grid 0.01 --kept 0.5 --processes 1"
    rows = run("methods", *setting.split(), "--work", str(tmp_path / "work"))
    searched, compared = rows[2:4], rows[6:]
    assert [cells(row)[:3] for row in searched] == [
        [name, "0.5", "0.01"] for name in ("oicsr", "separated_group_lasso")
    ]
    assert [cells(row)[0] for row in compared] == ["oicsr", "separated_group_lasso", "filter_norm"]
    for row in compared:
        _, kept, _, without, recovered, train_flops = cells(row)
        assert 0.45 < float(kept) <= 0.5
        assert re.fullmatch(r"\d+\.\d\d %", without)
        assert re.fullmatch(r"\d+\.\d\d %", recovered)
        assert float(train_flops) > 1e9


def test_methods_name_the_data_that_is_missing(run: Run, tmp_path: Path) -> None:
    (complaint,) = run("methods", "--data-root", str(tmp_path), code=2)
    assert complaint.startswith(f"error: data set fashion_mnist: {tmp_path}/FashionMNIST/raw/")


def test_pruned_networks_leave_unharmed(run: Run) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra export) is not installed")
    header, _, *rows = run("export", "cifarnet", "--side", "16", "--threads", "1", "--batches", "1", "2")
    found = [dict(zip(cells(header), cells(row), strict=True)) for row in rows]
    assert [row["widths"] for row in found] == ["dense", "free", "round_to=8"]
    assert all(float(row["flops_kept"]) <= 0.5 for row in found[1:])
    assert all(float(row[f"{form}: difference"]) <= 1e-5 for row in found[1:] for form in ("loaded again", "ONNX"))
    assert float(found[1]["folder, MB"]) < 4.1 * float(found[0]["M params"])


def test_export_names_the_network_that_is_unknown(run: Run) -> None:
    (complaint,) = run("export", "cifarnot", code=2)
    assert complaint.startswith("error: unknown model 'cifarnot'; did you mean cifarnet")


def test_many_trials_are_simulated(run: Run) -> None:
    rows = run("many_trials", "--trials", "12", "--slots", "4", "--points", "300")
    header, _, *quarters = rows[:6]
    assert cells(header)[0] == "trials"
    assert [cells(row)[0] for row in quarters] == ["3", "6", "9", "12"]
    for row in quarters:
        busy, waiting, idle = (float(cell.rstrip("%")) for cell in cells(row)[-3:])
        assert busy > 0
        assert 99 <= busy + waiting + idle <= 101
    questions = {tuple(cells(row)[:2]) for row in rows[8:]}
    assert ("front", "300") in questions
    assert "the search opened again" in {name for name, _ in questions}


def test_many_points_are_asked_beside_pandas(run: Run, tmp_path: Path) -> None:
    asked = ("--points", "60", "--times", "1", "--cold-times", "1", "--work", str(tmp_path))
    header, _, *rows = run("many_points", *asked)
    assert cells(header)[0] == "question"  # and the exit code says that front and pandas found the same points
    found = {row[0]: row[1:] for row in map(cells, rows)}
    assert {"front", "status", "report", "ls", "gc --dry-run", "pandas on the index"} == found.keys()
    assert all(float(seconds) >= 0 for seconds in found["front"])
    assert found["pandas on the index"][0] == "-"


@pytest.fixture
def search_cost(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    environment = dict(os.environ)
    yield importlib.import_module("search_cost")
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("space", ["digits", "fashion"])
def test_search_cost_changes_nothing_else_of_a_space(search_cost: Any, space: str, tmp_path: Path) -> None:
    file = BENCHMARKS / "spaces" / f"search_cost_{space}.toml"
    whole = SearchSpace.read(file).model_dump()
    for changes in search_cost.VARIANTS.values():
        changed = tmp_path / file.name
        changed.write_text(search_cost._changed(file, changes, 7))
        expected = {name: dict(values) if isinstance(values, dict) else values for name, values in whole.items()}
        expected["proposals"] |= {"seed": 7}
        for section, values in changes.items():
            if isinstance(values, dict):
                expected[section] |= values
        assert SearchSpace.read(changed).model_dump() == expected


def test_search_cost_compares_what_was_spent(search_cost: Any) -> None:
    def run(name: str, seed: int, *curve: tuple[int, float]) -> Any:
        return search_cost.Run(name=name, seed=seed, curve=curve, trials=len(curve))

    runs = [run("script", seed, (10**9, 0.5), (8 * 10**9, 0.96 + seed / 100)) for seed in range(3)]
    for name in (*search_cost.VARIANTS, "reuse off"):
        runs += [run(name, seed, (2 * 10**9, 0.96), (3 * 10**9, 1.0)) for seed in range(3)]
    lines = list(search_cost.table(runs))
    assert cells(lines[2]) == ["script", *["8 (8 to 8)"] * 2, "never (never to never)", "3, 3, 0 of 3", "2", "0.9700"]
    assert cells(lines[3])[:4] == ["this search", "2 (2 to 2)", "2 (2 to 2)", "3 (3 to 3)"]
    assert "To 95%, the script's median over this search's: 4.0." in lines


@pytest.fixture
def rerun_cost(search_cost: Any) -> Any:
    return importlib.import_module("rerun_cost")


def test_rerun_cost_searches_with_the_same_space_on_both_sides(rerun_cost: Any) -> None:
    for name in ("usual", "wide"):
        old, new = (rerun_cost.space_of(name, model, 3, 7) for model in (rerun_cost.OLD, rerun_cost.NEW))
        definitions = [space.definition() for space in (old, new)]
        assert [one["trial"].pop("model") for one in definitions] == ["cifarnet", "small_networks:small_resnet"]
        assert definitions[0] == definitions[1]
        assert (new.proposals.seed, new.budget.trials) == (3, 7)


def test_rerun_cost_compares_both_ways(rerun_cost: Any) -> None:
    def run(name: str, seed: int, *curve: tuple[int, int, float]) -> Any:
        return rerun_cost.Run(name=name, seed=seed, curve=curve)

    slow, quick, *others = rerun_cost.WAYS
    runs = [run(slow, seed, (1, 10**9, 0.5), (4, 8 * 10**9, 0.96)) for seed in range(3)]
    for name in (quick, *others):
        runs += [run(name, seed, (1, (2 + seed) * 10**9, 0.96), (2, 5 * 10**9, 1.0)) for seed in range(3)]
    lines = list(rerun_cost.table(runs))
    never = "never (never to never)"
    costs, trials = ["8 (8 to 8)"] * 2, ["4 (4 to 4)"] * 2
    assert cells(lines[2]) == [slow, *costs, never, *trials, never, "3, 3, 0 of 3", "0.9600"]
    assert cells(lines[3])[1:5] == ["3 (2 to 4)", "3 (2 to 4)", "5 (5 to 5)", "1 (1 to 1)"]
    assert "To 95%, from nothing over rerun, medians of train_flops: 2.67." in lines


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_overhead_finds_the_same_stages_both_ways(run: Run) -> None:
    header, _, row = run("overhead", *["--trials", "2", "--seconds", "0.1", "--workers", "1", "--empty", "2"])
    found = dict(zip(cells(header), cells(row), strict=True))
    assert (found["workers"], found["trials"], found["same stages"]) == ("1", "2", "yes")
    assert 0 <= float(found["outside stages, launch"].rstrip("%")) <= 100
    (complaint,) = run("overhead", "--workers", "1000", code=2)
    assert complaint.startswith("error: 1000 workers; this machine has ")


def test_the_gpu_check_runs_without_a_gpu(run: Run) -> None:
    rows = run("gpu", "--device", "cpu", "--tiny")
    kinds = [cells(row)[2] for row in rows if row.startswith("| cifarnet | 16 |")]
    assert kinds[0] == "bfloat16, channels_last"
    assert len(kinds) == 5 + 1  # and the row of the penalty's step
    assert any(row.startswith("| deployed, float32 | 8 |") for row in rows)
    assert cells(rows[-1])[:2] == ["2", "4 of 4"]


def test_the_gpu_check_goes_on_after_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("gpu", "--device", "cpu", "--tiny", "--parts", "pruned", "precision", code=1) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (complaint,) = run("gpu", "--device", "cuda", code=2)
    assert complaint == "error: PyTorch finds no CUDA GPU here; --device cpu --tiny runs a small version"


def test_two_processes_are_timed_beside_one(run: Run) -> None:
    header, _, row = run("parallel_training", "--rounds", "1", "--steps", "1", "--models", "cifarnet")
    found = dict(zip(cells(header), cells(row), strict=True))
    assert (found["network"], found["processes"]) == ("cifarnet", "2")
    assert float(found["error of all"]) < 2e-4
    assert run("parallel_training", "--devices", "cpu", code=2)[0].startswith("error: --devices needs two or more")
    assert run("parallel_training", "--models", "cifarnot", code=2)[0].startswith("error: unknown model 'cifarnot'")


@pytest.mark.parametrize("name", ["search_cost", "rerun_cost"])
def test_what_make_bench_types_is_understood(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without names all are meant: argparse compares a list that is a default with each choice."""
    module, asked = request.getfixturevalue(name), []

    def stop(asked_for: str, *given: Any) -> list[Any]:
        asked.append(asked_for)
        raise StopIteration

    monkeypatch.setattr(module, "runs_of", stop)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(StopIteration):
        module.main()
    assert len(asked) == 1


def test_a_taught_agent_is_asked_for_every_rate(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 (extra agent) is not installed")
    setting = "--dataset digits --episodes 1 --seeds 1 --epochs 1 0 --rates 0.5"
    header, _, *rows = run("agent", *setting.split(), "--work", str(tmp_path / "work"))
    assert cells(header)[:3] == ["asked", "widths by", "flops_kept"]
    assert [cells(row)[1] for row in rows] == ["agent", "uniform", "greedy", "greedy, no fit"]
    for row in rows:
        rate, way, kept, reward, before, after = cells(row)
        assert float(kept) <= float(rate)
        assert re.fullmatch(r"\d+\.\d\d %", before)
        assert before == after  # nothing was trained
        assert (reward == "-") is way.startswith("greedy")


def test_the_agent_names_the_data_that_is_missing(run: Run, tmp_path: Path) -> None:
    (complaint,) = run("agent", "--data-root", str(tmp_path), "--work", str(tmp_path / "work"), code=2)
    assert complaint.startswith(f"error: data set fashion_mnist: {tmp_path}/FashionMNIST/raw/")

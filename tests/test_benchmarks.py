"""Every benchmark runs, here on the smallest setting that prints a table."""

import argparse
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.methods import METHODS
from orchestrator.record import Stage
from orchestrator.search import SearchSpace
from orchestrator.store import StageStore

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


# -- side_by_side -----------------------------------------------------------------------------------------------------

TINY = "--quick --networks cifarnet --kept 0.5 --seeds 2 --grid 0.003 0.01 --processes 1"
THREE = ("oicsr", "separated_group_lasso", "filter_norm")


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("side_by_side")


def test_side_by_side_goes_on_where_it_was_killed(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*TINY.split(), "--only", *THREE, "--work", str(tmp_path)]
    command = [sys.executable, str(BENCHMARKS / "side_by_side.py"), *asked]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if line.startswith("["))
        process.kill()
    assert re.fullmatch(r"\[1\] cifarnet: dense, seed 0: \d+ s; about .* left\n", told)
    store = StageStore(tmp_path / "quick" / "cifarnet" / "trials")
    before = {stage.key: stage.created for stage in store.stages()}
    assert before
    rows = run("side_by_side", *asked)
    assert {key: store.stage(key).created for key in before} == before
    header, _, dense, *found = rows[:7]
    names = [*THREE, "scratch, widths of oicsr"]
    assert [cells(row)[0] for row in found] == names
    for row in map(cells, found):
        cell = dict(zip(cells(header), row, strict=True))
        assert cell["flops_kept"] == "0.5"
        assert 0.45 < float(cell["reached"]) <= 0.5
        assert re.fullmatch(r"\d+\.\d\d \+- \d+\.\d\d %", cell["test, after recovery"])
        assert re.fullmatch(r"\d+\.\d\d \+- \d+\.\d\d %|-", cell["test, before recovery"])
    spent = [float(cells(row)[6]) for row in found]
    assert max(spent[:3]) / min(spent[:3]) < 1.02
    assert max(spent) / min(spent) < 1.1  # scratch controls train for whole epochs
    assert cells(dense)[:4] == ["dense", "-", "1.000", "-"]
    assert len(rows) == 7 + 2 + 4  # the grid: two weights of two methods
    assert run("side_by_side", *asked) == rows
    assert "left" not in capsys.readouterr().err  # all was looked up


def test_side_by_side_shows_what_failed_and_what_a_preparation_cost(
    run: Run, side_by_side: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(setup: Any, folder: Path) -> Any:
        raise ValueError("nobody taught\nme")

    def made(setup: Any, folder: Path) -> Any:
        return side_by_side.Prepared(options={"scale": "group_mean"}, train_flops=1234)

    asked = (*TINY.split(), "--only", "filter_norm", "--seeds", "1", "--scratch", "--work", str(tmp_path))
    monkeypatch.setitem(side_by_side.PREPARATIONS, "filter_norm", refused)
    *_, row = run("side_by_side", *asked)
    assert cells(row) == ["filter_norm", "0.5", "-", "-", "-", "- (1 failed)", "-", "-"]
    monkeypatch.setitem(side_by_side.PREPARATIONS, "filter_norm", made)
    *_, row = run("side_by_side", *asked)
    assert cells(row)[-1] == "1.23e+03"
    (spec,) = {stage.parameters["method"]["options"]["scale"] for stage in stages_of_cuts(tmp_path)}
    assert spec == "group_mean"


def stages_of_cuts(work: Path) -> list[Stage]:
    return [stage for stage in StageStore(work / "quick" / "cifarnet" / "trials").stages() if stage.kind == "cut"]


def course_of(side_by_side: Any, **given: Any) -> Any:
    options = {"methods": THREE, "scratch": ["oicsr"], "kept": [0.5], "seeds": 3, "grid": [0.1, 0.2], "iterations": 1}
    return side_by_side.Course(arena=side_by_side.SIZES["quick"][0], given=argparse.Namespace(**options, **given))


def test_side_by_side_says_mean_deviation_and_reasons(side_by_side: Any) -> None:
    course = course_of(side_by_side)
    make_job, tested = side_by_side.Job, side_by_side.Tested
    for weight, after, failure in ((0.1, 0.7, None), (0.2, 0.6, None)):
        job = make_job(method="oicsr", weight=weight, kept=0.5, seed=0)
        course.walked[job] = side_by_side.Walked(before=0.5, after=after, failure=failure)
    for seed, after in enumerate((0.8, 0.9, 1.0)):
        job = make_job(method="oicsr", weight=0.1, kept=0.5, seed=seed)
        course.tested[job] = tested(before=0.6, after=after, flops_kept=0.49, train_flops=100 + seed)
    failed = make_job(method="filter_norm", weight=0.0, kept=0.5, seed=2)
    course.walked[failed] = side_by_side.Walked(failure="diverged: the loss\nis | nan")
    course.controls[course.job("oicsr", 0.5, 1)] = "out_of_memory: no"
    lines = list(side_by_side.table(course))
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert rows[3] == ["oicsr", "0.5", "0.490", "0.1", "60.00 +- 0.00 %", "90.00 +- 10.00 %", "101", "-"]
    assert rows[4][3:6] == ["0.1", "-", "- (3 not run)"]
    assert rows[5][5] == "- (1 failed, 2 not run)"
    assert rows[6][0] == "scratch, widths of oicsr"
    assert rows[6][5] == "- (1 failed, 2 not run)"
    assert "At flops_kept 0.5 the methods' train_flops differ by 2.0% at most." in lines
    assert "- filter_norm at 0.5, seed 2: diverged: the loss is | nan" in lines
    assert "- scratch, oicsr at 0.5, seed 1: out_of_memory: no" in lines
    grid = [cells(line) for line in side_by_side.weights_table(course) if line.startswith("|")][2:]
    assert grid[0] == ["oicsr", "0.5", "0.1", "50.00 %", "70.00 %", "yes"]
    assert grid[1] == ["oicsr", "0.5", "0.2", "50.00 %", "60.00 %", ""]
    assert grid[2][3:] == ["not run", "not run", ""]


def test_side_by_side_stops_when_its_budget_is_spent(run: Run, tmp_path: Path) -> None:
    asked = (*TINY.split(), "--only", "filter_norm", "--work", str(tmp_path), "--budget-hours", "0")
    *_, complaint = run("side_by_side", *asked, code=1)
    assert complaint == "The budget was spent before the end; the same command goes on from here."
    assert not list(StageStore(tmp_path / "quick" / "cifarnet" / "trials").stages())


def test_side_by_side_estimates_and_trains_nothing(run: Run, tmp_path: Path) -> None:
    header, _, row = run("side_by_side", *TINY.split(), "--work", str(tmp_path), "--estimate")
    hours = dict(zip(cells(header), cells(row), strict=True))
    assert hours["network"] == "cifarnet"
    parts = [float(hour) for name, hour in hours.items() if name.endswith(", h")]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.05)
    assert list(tmp_path.iterdir()) == []


def test_side_by_side_covers_every_method_that_there_is(side_by_side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["side_by_side.py"])
    given = side_by_side.parsed()
    assert given.methods == list(METHODS)
    assert (given.size, given.seeds, given.device, given.scratch) == ("cores", 3, "cpu", ["oicsr"])
    assert given.kept == [0.7, 0.5, 0.3]


def test_side_by_side_names_the_data_that_is_missing(run: Run, tmp_path: Path) -> None:
    (complaint,) = run("side_by_side", "--data-root", str(tmp_path), code=2)
    assert complaint.startswith(f"error: data set fashion_mnist: {tmp_path}/FashionMNIST/raw/")


def test_attention_is_compared_under_pruning(run: Run, tmp_path: Path) -> None:
    networks, work = ("resnet20", "eca_resnet20"), str(tmp_path / "work")
    few = ("--seeds", "1", "--grid", "0.01", "--epochs", "1", "1", "1", "--processes", "1")
    command = ("attention", "--quick", "--networks", *networks, *few, "--work", work, "--kept")
    header, _, *rows = run(*command, "0.5")
    found = [dict(zip(cells(header), cells(row), strict=True)) for row in rows[:-4]]
    tried, _, *grid = map(cells, rows[-4:])
    assert [dict(zip(tried, row, strict=True))["regularization_weight"] for row in grid] == ["0.01", "0.01"]
    assert [row[-1] for row in grid] == ["yes", "yes"]
    pruned = [row for name in networks for row in (name, f"{name}, from scratch")]
    assert [row["network"] for row in found] == [*(f"{name}, dense" for name in networks), *pruned]
    assert [row["test, before recovery"] for row in found if row["network"].endswith("scratch")] == ["-", "-"]
    for row in found[2::2]:
        assert 0.45 < float(row["reached"]) <= 0.5
        assert row["regularization_weight"] == "0.01"
        assert re.fullmatch(r"\d+\.\d\d %", row["test, before recovery"])
        assert re.fullmatch(r"\d+\.\d\d %", row["test, after recovery"])
    budgets = [float(row["train_flops"]) for row in found]
    assert budgets[:2] == pytest.approx(budgets[:1] * 2, rel=1e-3)
    assert budgets[2::2] == pytest.approx(budgets[2:3] * 2, rel=1e-2)
    assert budgets[3::2] == pytest.approx(budgets[2::2], rel=0.2)  # in whole epochs, of which there are few here
    complaints = run(*command, "0.001", code=1)
    assert complaints[-1].startswith("error: resnet20, Job(method='oicsr', weight=0.01, kept=0.001, seed=0): budget: ")
    assert not any(line.startswith("dense") for line in complaints)  # what is there is not computed again


def test_attention_says_what_it_takes_and_what_is_missing(run: Run, tmp_path: Path) -> None:
    assert run("attention", "--quick", "--networks", "eca_resnet20", "--estimate") == []
    (complaint,) = run("attention", "--data-root", str(tmp_path), code=2)
    assert complaint.startswith(f"error: data set cifar10_jpeg: {tmp_path}/cifar10-jpeg/")


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


def test_compensation_stands_beside_fine_tuning(run: Run) -> None:
    setting = "--dataset digits --train 512 --epochs 2 --seeds 2 --kept 0.5 --batches 1 --shares 0.1 1 --tuning 1 2"
    header, _, *rows = run("compensation", *setting.split())
    found = [dict(zip(cells(header), cells(row), strict=True)) for row in rows]
    assert [row["recovery"] for row in found[:3]] == [
        "norm statistics alone",
        "compensation, 128 pictures",
        "the same, ranking of the channels counted",
    ]
    assert found[1]["pictures (share of train)"] == "128 (25.0%)"
    tuned, rate = found[3]["recovery"].rsplit(" ", 1)
    assert tuned == "fine-tuning, 10% of the pictures, epochs 1, rate"
    assert float(rate) in importlib.import_module("compensation").RATES
    assert all(re.fullmatch(r"\d+\.\d\d \+- \d+\.\d\d %", row["test"]) for row in found[:-1])
    assert found[-1]["recovery"] in {"compensation saves", "no fine-tuning was as good"}
    assert (found[1]["as good as compensation"], found[1]["seconds / compensation's"]) == ("yes", "1.00")


def test_compensation_names_the_data_that_is_missing(run: Run, tmp_path: Path) -> None:
    (complaint,) = run("compensation", "--data-root", str(tmp_path), code=2)
    assert complaint.startswith(f"error: data set fashion_mnist: {tmp_path}/FashionMNIST/raw/")


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

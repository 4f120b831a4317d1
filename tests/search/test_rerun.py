"""A study for another network: through Ray with trials that take no time; its space file; what is refused."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_trial
import pytest
from rich.console import Console

from orchestrator.collector import Study
from orchestrator.files import Place
from orchestrator.record import InvalidInput, TrialRecord, now
from orchestrator.search import SearchSpace, Summary, launch, runner
from orchestrator.search.binding import bind
from orchestrator.search.prior import prior_of, read_prior
from orchestrator.search.rerun import default_name, rerun, space_after
from orchestrator.search.space import Limits, Resources
from orchestrator.search.space_file import as_toml, read_back
from orchestrator.store import StageStore

ROOT = Path(__file__).resolve().parents[2]
SPACES = sorted([*(ROOT / "search_spaces").glob("*.toml"), *(ROOT / "benchmarks" / "spaces").glob("*.toml")])
FAKE: dict[str, Any] = {"run_trial": fake_trial.run, "check_trial": fake_trial.check}

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def ray_on_loopback() -> Iterator[None]:
    runner._set_environment(None)
    from orchestrator.search import session

    with session.connected(None, Resources()):
        yield


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def old(space_file: Write, results: Path) -> StageStore:
    """The study `small` of three trials, as a launch would leave it."""
    return made(SearchSpace.read(space_file()), results)


def made(space: SearchSpace, results: Path) -> StageStore:
    store = StageStore(results / space.name)
    store.prepare()
    bind(store, space, None)
    for index, (weight, ratio) in enumerate([(0.1, 0.2), (0.01, 0.5), (0.01, 0.2)]):
        spec = space.spec({"regularization_weight": weight, "pruning_ratio": ratio, "iterations": 4})
        outcome = fake_trial.run(spec, store)
        store.record_trial(TrialRecord(index=index, spec=spec, stages=outcome.stages, created=now()))
    return store


def again(study: str | Path, results: Path, **options: Any) -> tuple[Summary, list[str]]:
    """A rerun with fake trials, and what was printed."""
    console = Console(file=io.StringIO(), width=140)
    summary = rerun(study, storage=results, console=console, **FAKE, **options)
    assert isinstance(console.file, io.StringIO)
    return summary, console.file.getvalue().splitlines()


def settings(store: StageStore) -> list[tuple[str, float, float, int]]:
    specs = [trial.spec for trial in store.trials()]
    return [(spec.model, spec.regularization_weight, spec.pruning_ratio, spec.iterations) for spec in specs]


@pytest.mark.usefixtures("ray_on_loopback")
def test_a_study_that_keeps_no_settings_says_what_is_taken_instead(
    old: StageStore, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old.root / "settings.json").unlink()
    monkeypatch.setattr("orchestrator.search.rerun.launch", lambda space, **options: space)
    console = Console(file=io.StringIO(), width=500)
    rerun("small", model="other", storage=results, console=console)
    said = console.file.getvalue()
    assert said.endswith("small has no settings.json: budget, stopping and resources are the defaults\n")


def test_a_rerun_begins_with_the_old_frontier_and_goes_on_without_the_old_study(old: StageStore, results: Path) -> None:
    summary, printed = again("small", results, model="other", trials=3)
    store = StageStore(summary.study)
    taken = "from small (fake on digits): 2 settings first, 3 observations"
    assert summary.study == results / "small_other"
    assert settings(store)[:2] == [("other", 0.01, 0.5, 4), ("other", 0.01, 0.2, 4)]
    assert printed.count(taken) == 2  # as it begins and as it ends
    assert any(
        line.startswith("95% of its hypervolume this study had with trial 1 of 3, small with") for line in printed
    )
    before = read_prior(store)

    shutil.rmtree(str(old.root))
    summary, printed = again("small", results, model="other", trials=5)
    assert (summary.trials, settings(store)[:3]) == (5, settings(store)[:3])
    assert taken in printed
    assert read_prior(store) == before
    file = results / "small_other" / "small_other.toml"
    found = launch(file, trials=6, storage=results, console=Console(quiet=True), **FAKE)
    assert (found.study, found.trials) == (results / "small_other", 6)

    whole, _ = again("small_other", results, model="third", trials=2)  # of a rerun another one
    assert whole.study == results / "small_other_third"


def test_prior_and_space_file_lie_with_the_study_wherever_that_is(
    space: SearchSpace, old: StageStore, place: Place
) -> None:
    prior = prior_of(Study(old.root), space)
    store = StageStore(place / space.name)
    assert bind(store, space, prior) == prior
    assert bind(store, space, None) == read_prior(store) == prior
    assert read_back(store) == space


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_space_file_written_back_is_the_same_space(path: Path, tmp_path: Path) -> None:
    space = SearchSpace.read(path)
    file = tmp_path / path.name
    file.write_text(as_toml(space, "What it is.\nTwo lines."))
    assert SearchSpace.read(file) == space


def test_names_and_text_of_any_kind_come_back_from_a_space_file(space: SearchSpace, tmp_path: Path) -> None:
    options = {"a name": 'say "so"\\\n\x7f ü', "flag": True, "share": 1e-7, "count": 3}
    odd = space.model_copy(update={"trial": {**space.trial, "method_options": options, "round_to": 8}})
    file = tmp_path / f"{space.name}.toml"
    file.write_text(as_toml(odd, "odd"))
    assert SearchSpace.read(file) == odd


def test_a_grid_that_no_file_describes_is_refused(space: SearchSpace) -> None:
    from orchestrator.search.dimensions import Grid

    odd = space.model_copy(update={"dimensions": {"pruning_ratio": Grid(values=(0.2, 0.3, 0.5))}})
    with pytest.raises(InvalidInput, match=r"^search\.pruning_ratio is a grid of \[0\.2, 0\.3, 0\.5\]; no entry of a"):
        as_toml(odd, "odd")


def test_the_new_space_is_the_old_one_but_for_the_model(space: SearchSpace, results: Path) -> None:
    limited = space.model_copy(update={"limits": Limits(min_accuracy=0.5)})
    old = Study(made(limited, results).root)
    new = space_after(old, "next", model="other", dataset=None)
    assert new.model_copy(update={"name": space.name, "trial": {}}) == limited.model_copy(update={"trial": {}})
    definitions = [one.definition() for one in (new, space)]
    assert [one["trial"].pop("model") for one in definitions] == ["other", "fake"]
    assert definitions[0] == definitions[1]


def test_weights_of_the_old_network_are_left_behind_and_that_is_said(
    space: SearchSpace, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(space.model_copy(update={"trial": {**space.trial, "weights": "mine.pt"}}), results)
    monkeypatch.setattr("orchestrator.search.rerun.launch", lambda space, **_: space)
    new, printed = again("small", results, model="other")
    assert "weights" not in new.trial  # type: ignore[attr-defined]
    assert printed == ["note: mine.pt are not taken over: the new network is trained as [trial.dense] says"]


@pytest.mark.parametrize(
    ("model", "dataset", "name"),
    [
        ("resnet20", None, "old_resnet20"),
        ("torchvision:resnet18", None, "old_torchvision_resnet18"),
        ("my.nets:wide_one", "fashion_mnist", "old_wide_one_fashion_mnist"),
        (None, "imagefolder:flowers", "old_imagefolder_flowers"),
    ],
)
def test_a_rerun_is_named_after_what_is_new(model: str | None, dataset: str | None, name: str) -> None:
    assert default_name("old", model, dataset) == name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "^give --model, --dataset or both: what is to be new$"),
        ({"model": "fake"}, "small: is a study of fake on digits already; `orchestrator search` extends it$"),
        ({"model": "x", "name": "a/b"}, "^--name is 'a/b'; it must be letters, digits and any of _ - . "),
        ({"model": "x", "name": "small"}, "small: is a study that rerun has not made; give another --name$"),
        ({"model": "unknown"}, "^unknown is no model"),
    ],
)
def test_a_rerun_without_sense_is_refused(old: StageStore, results: Path, given: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        again("small", results, **given)
    assert [path.name for path in results.iterdir()] == ["small"]  # nothing was begun


def test_a_study_that_varies_the_model_is_refused(space_file: Write, results: Path) -> None:
    text = {'model = "fake"': "", "[search]": '[search]\nmodel = { choices = ["a", "b"] }'}
    store = StageStore(results / "small")
    bind(store, SearchSpace.read(space_file(**text)), None)
    with pytest.raises(InvalidInput, match=r"small: the study varies model; rerun needs one with a single model$"):
        again("small", results, model="other")


def test_a_study_without_a_definition_is_refused(study: StageStore) -> None:
    with pytest.raises(InvalidInput, match=r"study\.json: there is no definition; rerun needs a study that search has"):
        again("small", Path(str(study.root)).parent, model="other")


@pytest.fixture
def begun(old: StageStore, results: Path, monkeypatch: pytest.MonkeyPatch) -> StageStore:
    """A rerun named `next` that was killed before its first trial."""
    monkeypatch.setattr(runner, "_attempt", lambda this, *_: this)
    again("small", results, model="other", name="next")
    return StageStore(results / "next")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "third"}, "next: is a study of model other, not third; give another --name$"),
        ({"dataset": "fashion"}, "next: is a study of dataset digits, not fashion; give another --name$"),
        ({"study": "elsewhere", "model": "other"}, "next: began with small, not with elsewhere; give another --name$"),
    ],
)
def test_another_rerun_does_not_go_on_with_it(begun: StageStore, results: Path, given: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        again(**{"study": "small", "results": results, "name": "next", **given})


def test_a_rerun_goes_on_with_its_own_prior_and_the_file_as_it_is_now(begun: StageStore, results: Path) -> None:
    file = results / "next" / "next.toml"
    file.write_text(file.read_text().replace("trials = 12", "trials = 7"))
    this, _ = again("small", results, model="other", name="next")
    assert this.space.budget.trials == 7  # type: ignore[attr-defined]
    assert this.prior == read_prior(begun)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("prior.json", None, r"next: is a study that rerun has not made"),
        ("prior.json", "{}", r"prior\.json: damaged \(study"),
        ("next.toml", None, r"next\.toml: there is no such file; put it back, or give another --name$"),
        ("next.toml", "=", r"next\.toml: is not valid TOML: "),
        ("next.toml", "[trial]\nmodle = 1", r"^next\.toml: trial\.modle is unknown; did you mean"),
    ],
)
def test_files_of_a_rerun_that_were_lost_or_damaged_are_named(
    begun: StageStore, results: Path, file: str, content: str | None, said: str
) -> None:
    path = results / "next" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match=said):
        again("small", results, model="other", name="next")


def test_a_search_does_not_go_on_without_the_prior_or_with_another(begun: StageStore, results: Path) -> None:
    file, kept = results / "next" / "next.toml", results / "next" / "prior.json"
    text = kept.read_text()
    kept.unlink()
    with pytest.raises(InvalidInput, match=r"prior\.json: is missing; its proposals would be others than until now"):
        launch(file, storage=results, console=Console(quiet=True), **FAKE)
    kept.write_text(text.replace('"trials": 3', '"trials": 4'))
    with pytest.raises(InvalidInput, match=r"prior\.json: is not what the study began with; its proposals would be"):
        launch(file, storage=results, console=Console(quiet=True), **FAKE)

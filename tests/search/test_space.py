"""Search-space files: what a good one means, and the one line that a bad one gets."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.record import InvalidInput
from orchestrator.search.dimensions import Choice, Grid, Range
from orchestrator.search.space import Budget, SearchSpace, check_section

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.toml"))
WEIGHT = "{ low = 1e-3, high = 1e-1, log = true, grid = 5 }"
RATIO = "{ low = 0.2, high = 0.5, step = 0.05 }"
ITERATIONS = "{ low = 2, high = 4 }"

Write = Callable[..., Path]


def read(space_file: Write, **replaced: str) -> SearchSpace:
    return SearchSpace.read(space_file("small", **replaced))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_the_spaces_that_ship_are_valid(path: Path) -> None:
    space = SearchSpace.read(path)
    assert space.name == path.stem
    assert {"regularization_weight", "pruning_ratio", "iterations"} <= space.dimensions.keys()
    assert all(spec.group_cap == 0.5 for spec in space.corners())


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_field_of_a_space_that_ships_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    fields = [number for number, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    assert [lines[n] for n in fields if "#" not in lines[n] and not lines[n - 1].startswith("#")] == []


def test_the_ten_spaces_ship() -> None:
    assert [path.stem for path in SPACES] == [
        "cifar100_vgg16",
        "cifar10_densenet40",
        "cifar10_resnet56",
        "digits_cifarnet",
        "fashion_mnist_cifarnet",
        "imagenet_resnet50",
        "methods_cifarnet",
        "parity",
        "tutorial",
        "unusual",
    ]


def test_a_log_grid_is_evenly_spaced_and_rounded(space: SearchSpace) -> None:
    assert space.dimensions["regularization_weight"] == Grid(values=(0.001, 0.00316228, 0.01, 0.0316228, 0.1))


def test_a_step_reaches_both_ends_without_rounding_errors(space: SearchSpace) -> None:
    assert space.dimensions["pruning_ratio"] == Grid(values=(0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5))


def test_an_integer_field_makes_an_integer_range(space: SearchSpace) -> None:
    assert space.dimensions["iterations"] == Range(low=2, high=4, log=False, whole=True)
    assert space.size == 5 * 7 * 3


def test_linear_grids_and_whole_steps(space_file: Write) -> None:
    space = read(
        space_file, **{RATIO: "{ low = 0.2, high = 0.5, grid = 4 }", ITERATIONS: "{ low = 1, high = 5, step = 2 }"}
    )
    assert space.dimensions["pruning_ratio"] == Grid(values=(0.2, 0.3, 0.4, 0.5))
    assert space.dimensions["iterations"] == Grid(values=(1, 3, 5))


def test_a_plain_range_has_no_size(space_file: Write) -> None:
    space = read(space_file, **{WEIGHT: "{ low = 0.001, high = 0.1, log = true }"})
    assert space.dimensions["regularization_weight"] == Range(low=0.001, high=0.1, log=True, whole=False)
    assert space.size is None


def test_nested_fields_and_options_can_vary(space_file: Write) -> None:
    text = ITERATIONS + "\n[search.recovery]\nlearning_rate = { choices = [0.01, 0.05] }\n[search.method_options]\n"
    options = "normalise = { choices = [true, false] }\npower = { low = 1, high = 2 }\nshare = { low = 0, high = 0.5 }"
    space = read(space_file, **{ITERATIONS: text + options, "learning_rate = 0.1\n[search]": "[search]"})
    assert space.dimensions["recovery.learning_rate"] == Choice(choices=(0.01, 0.05))
    assert space.dimensions["method_options.power"] == Range(low=1, high=2, log=False, whole=True)
    assert space.dimensions["method_options.share"] == Range(low=0, high=0.5, log=False, whole=False)
    values = {name: dimension.ends()[-1] for name, dimension in space.dimensions.items()}
    spec = space.spec(values)
    assert spec.recovery.learning_rate == 0.05
    assert spec.method_options == {"normalise": False, "power": 2, "share": 0.5}


def test_a_space_round_trips_through_json(space: SearchSpace) -> None:
    assert SearchSpace.model_validate_json(space.model_dump_json()) == space


def test_the_definition_has_defaults_filled_in(space_file: Write) -> None:
    plain = read(space_file).definition()
    assert (
        read(space_file, **{'model = "fake"': 'model = "fake"\nseed = 0\ndata_root = "elsewhere"'}).definition()
        == plain
    )
    assert read(space_file, **{"trials = 12": "trials = 99"}).definition() == plain
    assert read(space_file, **{'model = "fake"': 'model = "other"'}).definition() != plain
    assert read(space_file, **{"parallel = 3": "parallel = 2"}).definition() != plain


def test_rounding_is_one_field_more(space_file: Write) -> None:
    plain = read(space_file)
    assert all(spec.round_to == 1 for spec in plain.corners())
    fixed = read(space_file, **{"model =": "round_to = 8\nmodel ="})
    assert all(spec.round_to == 8 for spec in fixed.corners())
    varied = read(space_file, **{RATIO: RATIO + "\nround_to = { choices = [1, 8, 16] }"})
    assert {spec.round_to for spec in varied.corners()} == {1, 8, 16}


def test_a_definition_without_rounding_is_that_of_studies_made_before(space_file: Write) -> None:
    plain = read(space_file).definition()
    assert "round_to" not in plain["trial"]
    assert read(space_file, **{"model =": "round_to = 1\nmodel ="}).definition() == plain
    rounded = read(space_file, **{"model =": "round_to = 8\nmodel ="}).definition()
    assert rounded["trial"] == plain["trial"] | {"round_to": 8}
    varied = read(space_file, **{RATIO: RATIO + "\nround_to = { choices = [1, 8] }"}).definition()
    assert varied["trial"] == plain["trial"]
    assert "round_to" in varied["search"]


BAD = {
    "pruning_ratio.high is 1.5; it must be below 1": {RATIO: "{ low = 0.2, high = 1.5 }"},
    "pruning_ratio.low is 0; it must be above 0": {RATIO: "{ low = 0, high = 0.5 }"},
    "pruning_ratio.low is 0.5; it must be below high, 0.2": {RATIO: "{ low = 0.5, high = 0.2 }"},
    'pruning_ratio.low is "a"; it must be a number': {RATIO: '{ low = "a", high = 0.2 }'},
    "pruning_ratio.high is missing; a range must have low and high": {RATIO: "{ low = 0.2 }"},
    'pruning_ratio.hihg is unknown; did you mean "high"?': {RATIO: "{ low = 0.2, hihg = 0.5 }"},
    "pruning_ratio is 0.3; it must be a range or choices": {RATIO: "0.3"},
    "pruning_ratio.step is 0.07; high - low, 0.3, must be a multiple": {
        RATIO: "{ low = 0.2, high = 0.5, step = 0.07 }"
    },
    "pruning_ratio.step is 0; it must be a number above 0": {RATIO: "{ low = 0.2, high = 0.5, step = 0 }"},
    "pruning_ratio has step and grid; it must have one": {RATIO: "{ low = 0.2, high = 0.5, step = 0.1, grid = 4 }"},
    "pruning_ratio has step and log = true": {RATIO: "{ low = 0.2, high = 0.5, step = 0.1, log = true }"},
    "pruning_ratio.log is 1; it must be true or false": {RATIO: "{ low = 0.2, high = 0.5, log = 1 }"},
    "pruning_ratio.grid is 1; it must be a whole number, at least 2": {RATIO: "{ low = 0.2, high = 0.5, grid = 1 }"},
    "pruning_ratio.choices[1] is 2; it must be below 1": {RATIO: "{ choices = [0.5, 2] }"},
    "pruning_ratio.choices has 0.5 twice": {RATIO: "{ choices = [0.5, 0.5] }"},
    "pruning_ratio.choices is [0.5]; it must be a list of two values or more": {RATIO: "{ choices = [0.5] }"},
    "pruning_ratio has choices and low; it must have either": {RATIO: "{ choices = [0.5, 0.6], low = 0.1 }"},
    "regularization_weight.low is 0; it must be above 0 where log": {WEIGHT: "{ low = 0, high = 0.1, log = true }"},
    "iterations.low is 2.5; it must be a whole number": {ITERATIONS: "{ low = 2.5, high = 4 }"},
    "round_to.choices[0] is 0; it must be at least 1": {RATIO: RATIO + "\nround_to = { choices = [0, 8] }"},
    "iterations.low is 0; it must be at least 1": {ITERATIONS: "{ low = 0, high = 4 }"},
    "iterations.step is 0.5; it must be a whole number above 0": {ITERATIONS: "{ low = 1, high = 4, step = 0.5 }"},
    "iterations.grid is 9; there are fewer different values from 2 to 4": {
        ITERATIONS: "{ low = 2, high = 4, grid = 9 }"
    },
    "method is a range, but the field is not a number": {RATIO: RATIO + "\nmethod = { low = 1, high = 2 }"},
    'pruning_ration is unknown; did you mean "pruning_ratio"?': {"pruning_ratio =": "pruning_ration ="},
    "dense is 3; it must be a table: [search.dense]": {RATIO: RATIO + "\ndense = 3"},
    'dense.epoch is unknown; did you mean "epochs"?': {RATIO: RATIO + "\ndense.epoch = { low = 1, high = 2 }"},
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_range_gets_one_line_with_file_and_field(space_file: Write, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(space_file, **BAD[message])
    assert str(caught.value).startswith(f"small.toml: search.{message}")
    assert "\n" not in str(caught.value)


BAD_FIXED = {
    'trial.modle is unknown; did you mean "model"?': {"model =": "modle ="},
    "trial.zzz is unknown; allowed: model, dataset, method,": {"model =": "zzz = 1\nmodel ="},
    "trial.model is missing; give it a value in [trial] or a range in [search]": {'model = "fake"': ""},
    "trial.dense.epochs is missing; give it a value": {"[trial.dense]\nepochs = 1": "[trial.dense]"},
    'trial.dense.epochs is "1"; it must be a whole number': {
        "[trial.dense]\nepochs = 1": '[trial.dense]\nepochs = "1"'
    },
    "trial.model is 3; it must be text in quotes": {'"fake"': "3"},
    "trial.group_cap is 1.5; it must be below 1": {"model =": "group_cap = 1.5\nmodel ="},
    "trial.round_to is 0; it must be at least 1": {"model =": "round_to = 0\nmodel ="},
    "trial.round_to is 8.0; it must be a whole number": {"model =": "round_to = 8.0\nmodel ="},
    'trial.round_to is "8"; it must be a whole number': {"model =": 'round_to = "8"\nmodel ='},
    'trial.roundto is unknown; did you mean "round_to"?': {"model =": "roundto = 8\nmodel ="},
    "trial.seed is -1; it must be at least 0": {"model =": "seed = -1\nmodel ="},
    "trial.method_options.a is [1]; it must be true, false, a number or text": {
        "model =": "method_options.a = [1]\nmodel ="
    },
    "trial.method_options is 3; it must be a table": {"model =": "method_options = 3\nmodel ="},
    'trial.sparse.decay is "cos"; it must be "one_cycle" or "cosine"': {
        "[trial.sparse]": '[trial.sparse]\ndecay = "cos"'
    },
    "iterations is in both [trial] and [search]; keep one of them": {"model =": "iterations = 3\nmodel ="},
    "dense.epochs is in both [trial] and [search]": {RATIO: RATIO + "\ndense.epochs = { low = 1, high = 2 }"},
    'budgets is unknown; did you mean "budget"?': {"[budget]": "[budgets]"},
    "budget.trials is 0; it must be at least 1": {"trials = 12": "trials = 0"},
    'budget.trials is "many"; it must be a whole number': {"trials = 12": 'trials = "many"'},
    'budget.trails is unknown; did you mean "trials"?': {"trials = 12": "trails = 12"},
    "budget is 3; it must be a table: [budget]": {"[budget]\ntrials = 12": "", "[trial]": "budget = 3\n[trial]"},
    "proposals.parallel is 0; it must be at least 1": {"parallel = 3": "parallel = 0"},
    "resources.cpus_per_trial is -1; it must be above 0": {"[budget]": "[resources]\ncpus_per_trial = -1\n[budget]"},
    "resources.stage_minutes is 0; it must be above 0": {"[budget]": "[resources]\nstage_minutes = 0\n[budget]"},
    "resources.gpus_per_trial is 1.5; above 1 it must be a whole number": {
        "[budget]": "[resources]\ngpus_per_trial = 1.5\n[budget]"
    },
    "is not valid TOML: ": {"[budget]": "[budget"},
}


@pytest.mark.parametrize("message", BAD_FIXED)
def test_a_bad_field_gets_one_line_with_file_and_field(space_file: Write, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(space_file, **BAD_FIXED[message])
    assert str(caught.value).startswith(f"small.toml: {message}")
    assert "\n" not in str(caught.value)


def test_something_must_vary(tmp_path: Path) -> None:
    (tmp_path / "still.toml").write_text('[trial]\nmodel = "a"\n')
    with pytest.raises(InvalidInput, match=r"still\.toml: \[search\] is empty; at least one field must vary"):
        SearchSpace.read(tmp_path / "still.toml")


def test_a_missing_file_is_named_with_the_one_that_was_meant(space_file: Write, tmp_path: Path) -> None:
    space_file("digits_cifarnet")
    with pytest.raises(
        InvalidInput, match=r"digit_cifarnet\.toml: there is no such file; did you mean .*digits_cifarnet"
    ):
        SearchSpace.read(tmp_path / "digit_cifarnet.toml")
    with pytest.raises(InvalidInput, match=r"other/x: there is no such file; a search space is a TOML file"):
        SearchSpace.read(tmp_path / "other" / "x")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r": cannot be read: "):
        SearchSpace.read(tmp_path)


def test_values_from_the_command_line_are_checked_alike() -> None:
    assert check_section(Budget, {"trials": 3}, "budget") == Budget(trials=3)
    with pytest.raises(InvalidInput, match=r"^budget\.trials is -3; it must be at least 1$"):
        check_section(Budget, {"trials": -3}, "budget")


@given(st.floats(1e-3, 0.1))
def test_numbers_of_a_range_have_six_digits_and_stay_inside(number: float) -> None:
    value = Range(low=1e-3, high=0.1, log=True, whole=False).value(number)
    assert isinstance(value, float)
    assert 1e-3 <= value <= 0.1
    assert abs(value - number) <= 5e-6 * number


@pytest.mark.parametrize(
    "dimension",
    [
        Grid(values=(1, 2, 5)),
        Range(low=3, high=6, log=False, whole=True),
        Choice(choices=("a", "b")),
    ],
)
def test_positions_and_values_belong_together(dimension: Grid | Range | Choice) -> None:
    assert dimension.size is not None
    values = [dimension.value(dimension.nth(rank)) for rank in range(dimension.size)]
    assert len(set(values)) == dimension.size
    assert [dimension.position(value) for value in values] == [dimension.nth(rank) for rank in range(dimension.size)]
    assert dimension.position(99) is None

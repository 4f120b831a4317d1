"""Records check themselves and pass through JSON unchanged; keys never drift."""

import json
import math

import pytest
from pydantic import ValidationError

from orchestrator.record import (
    Cost,
    Failure,
    Outcome,
    Point,
    Record,
    Schedule,
    Stage,
    TrialSpec,
    canonical_json,
    now,
    seed_of,
    stage_key,
    whereabouts,
)

SCHEDULE = Schedule(epochs=3, learning_rate=0.1)
SPEC = TrialSpec(
    model="cifarnet",
    dataset="digits",
    method_options={"size_normalization": True, "scale": "none", "count": 3, "share": 0.25},
    regularization_weight=1e-3,
    pruning_ratio=0.3,
    iterations=2,
    dense=SCHEDULE,
    sparse=SCHEDULE,
    recovery=SCHEDULE,
)
PARAMETERS = {"version": 1, "model": "cifarnet", "seed": 0, "schedule": SCHEDULE.model_dump()}
KEY = stage_key(None, "dense", PARAMETERS)
STAGE = Stage(key=KEY, parent=None, kind="dense", parameters=PARAMETERS, cost=Cost(train_flops=7), **whereabouts())
POINT = Point(
    key=KEY,
    parent=None,
    kind="dense",
    iteration=0,
    model="cifarnet",
    dataset="digits",
    seed=0,
    flops=1000,
    params=10,
    flops_kept=1.0,
    accuracy=0.9,
    cost=Cost(train_flops=7, seconds=1.5),
    path_cost=Cost(train_flops=7, seconds=1.5),
    created=now(),
)
FAILURE = Failure(key=KEY, spec=SPEC, reason="diverged", message="NaN", traceback="one\ntwo", **whereabouts())
OUTCOME = Outcome(points=(POINT,), failure=FAILURE, computed=(KEY,), reused=())


def test_keys_are_the_same_for_ever() -> None:
    """A change here makes every study on every disk worthless; it takes a reason."""
    assert KEY == "ddec3782286e4ec3ade1e6f855fa5b85e3d8a52e63956198d4324418fa11e1fe"
    assert stage_key(KEY, "sparse", {"λ": 1e-3}) == "3ef03d7dbe104f01f17c2fb95a75fd590febd0b5b516d842a290c85a940225e3"


def test_a_key_depends_on_all_it_is_made_from() -> None:
    keys = {
        KEY,
        stage_key(KEY, "dense", PARAMETERS),
        stage_key(None, "sparse", PARAMETERS),
        stage_key(None, "dense", PARAMETERS | {"seed": 1}),
    }
    assert len(keys) == 4


def test_a_key_does_not_depend_on_the_order_or_the_writing_of_numbers() -> None:
    backwards = dict(reversed(PARAMETERS.items())) | {"version": 1.0, "seed": 0.0}
    assert stage_key(None, "dense", backwards) == KEY


def test_seeds_are_63_bits_of_the_key() -> None:
    assert seed_of("f" * 64) == 2**63 - 1
    assert seed_of("0" * 64) == 0
    assert seed_of(KEY) == int(KEY[:16], 16) // 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.0, "1"),
        (-0.0, "0"),
        (1e300, str(int(1e300))),
        (0.1, "0.1"),
        (1e-3, "0.001"),
        (1e-7, "1e-07"),
        (True, "true"),
        (None, "null"),
        ("é", '"é"'),
        ({"b": 1, "a": [1.0, (2, 0.5)]}, '{"a":[1,[2,0.5]],"b":1}'),
        ({1: "x"}, '{"1":"x"}'),
        (Cost(train_flops=3, seconds=2.0), '{"seconds":2,"train_flops":3}'),
    ],
)
def test_canonical_json_of_a_value(value: object, text: str) -> None:
    assert canonical_json(value) == text


def test_truth_and_one_are_told_apart() -> None:
    assert canonical_json({"x": True}) != canonical_json({"x": 1})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_canonical_json_has_no_nan(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": [value]})


@pytest.mark.parametrize("record", [SCHEDULE, SPEC, STAGE, POINT, FAILURE, OUTCOME], ids=lambda r: type(r).__name__)
def test_records_pass_through_json(record: Record) -> None:
    kind = type(record)
    assert kind.model_validate_json(record.model_dump_json()) == record
    assert kind.model_validate(json.loads(json.dumps(record.model_dump(mode="json")))) == record
    assert canonical_json(kind.model_validate_json(record.model_dump_json())) == canonical_json(record)


def test_options_keep_their_types() -> None:
    options = TrialSpec.model_validate_json(SPEC.model_dump_json()).method_options
    assert options == {"size_normalization": True, "scale": "none", "count": 3, "share": 0.25}
    assert [type(value) for value in options.values()] == [bool, str, int, float]


@pytest.mark.parametrize("record", [SCHEDULE, SPEC, STAGE, POINT, FAILURE, OUTCOME], ids=lambda r: type(r).__name__)
def test_records_do_not_change(record: Record) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, next(iter(type(record).model_fields)), None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pruning_ratio", 1.0, "less than 1"),
        ("pruning_ratio", 0.0, "greater than 0"),
        ("pruning_ratio", math.nan, "finite number"),
        ("regularization_weight", -1e-9, "greater than or equal to 0"),
        ("regularization_weight", math.inf, "finite number"),
        ("iterations", 0, "greater than or equal to 1"),
        ("iterations", 1.5, "integer"),
        ("group_cap", 1.0, "less than 1"),
        ("seed", -1, "greater than or equal to 0"),
        ("ratio", 0.5, "Extra inputs are not permitted"),
    ],
)
def test_a_spec_out_of_range_is_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrialSpec.model_validate(SPEC.model_dump() | {field: value})


@pytest.mark.parametrize("field", ["accuracy", "test_accuracy", "flops_kept"])
@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1])
def test_a_point_without_a_sensible_figure_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        Point.model_validate(POINT.model_dump() | {field: value})


def test_a_stage_under_another_key_is_refused() -> None:
    changed = STAGE.model_dump() | {"parameters": PARAMETERS | {"seed": 1}}
    with pytest.raises(ValidationError, match=f"key is {KEY}; its parent, kind and parameters give "):
        Stage.model_validate(changed)


def test_a_stage_is_the_same_whoever_wrote_its_numbers() -> None:
    text = STAGE.model_dump_json().replace('"learning_rate":0.1', '"learning_rate":1e-1')
    assert Stage.model_validate_json(text) == STAGE


def test_costs_add_up() -> None:
    assert Cost(train_flops=3, seconds=0.5) + Cost(train_flops=4, seconds=1.0) == Cost(train_flops=7, seconds=1.5)


def test_records_say_where_and_when() -> None:
    found = whereabouts()
    assert found.keys() == {"created", "host", "pid"}
    assert found["created"].endswith("+00:00")

"""`orchestrator methods`: every method, and every option of one with what it means."""

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.methods import METHODS


def printed(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["methods", *words])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def test_every_method_is_listed_with_its_source() -> None:
    rows = {line.split()[0]: line for line in printed().splitlines()}
    assert rows["method"].split() == ["method", "penalty", "repairs", "source"]
    for name, method in METHODS.items():
        assert method.source in rows[name]
    assert rows["lasso"].split()[1:3] == ["no", "yes"]
    assert rows["oicsr"].split()[1:3] == ["yes", "no"]


@pytest.mark.parametrize("name", METHODS)
def test_every_option_says_what_it_takes_and_means(name: str) -> None:
    text = printed(name)
    assert text.startswith(f"{name}: {METHODS[name].source}\n")
    for option, field in METHODS[name].options.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        shown = f'"{default}"' if isinstance(default, str) and not isinstance(field.default, bool) else default
        assert f"\n{option} = {shown}  (" in text
    assert "residual_streams = false  (true or false)\n  whether channels of a residual stream may be" in text


def test_values_that_may_be_given_are_all_named() -> None:
    assert 'shrinkage = "cross_validated"  ("cross_validated" or "none")\n' in printed("lasso")
    assert "places = 10  (whole number, at least 1)\n" in printed("lasso")


def test_a_method_that_there_is_not() -> None:
    assert printed("oicrs", code=2).startswith("error: method is 'oicrs' (did you mean 'oicsr'?); it must be one of ")

"""Methods by name, and their switches: what is wrong is named, with what is allowed."""

import pytest

from orchestrator.methods import METHODS, UnknownMethod, method_named, options_of
from orchestrator.record import InvalidInput


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_by_its_own_name(name: str) -> None:
    method = method_named(name)
    assert method.name == name
    assert method.source
    assert method.version >= 1


def test_an_unknown_method_is_met_with_the_nearest() -> None:
    with pytest.raises(UnknownMethod, match=r"method is 'oiscr' \(did you mean 'oicsr'\?\); it must be one of oicsr, "):
        method_named("oiscr")


def test_an_unknown_method_far_from_all_is_met_with_all() -> None:
    with pytest.raises(UnknownMethod, match=r"method is 'xyz'; it must be one of oicsr, separated_group_lasso, fil"):
        method_named("xyz")


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_a_default(name: str) -> None:
    options = options_of(METHODS[name], {})
    assert options.residual_streams is False
    assert options_of(METHODS[name], options.model_dump()) == options


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("oicsr", {"size": True}, r"method_options\.size: oicsr has no such option; it has residual_streams, size_nor"),
        (
            "oicsr",
            {"norm_parameters": "yes"},
            r"method_options\.norm_parameters of oicsr is 'yes'; input should be a",
        ),
        (
            "oicsr",
            {"norm_parameters": 1},
            r"method_options\.norm_parameters of oicsr is 1; input should be a val",
        ),
        (
            "filter_norm",
            {"scale": "max"},
            r"options\.scale of filter_norm is 'max'; input should be 'none' or",
        ),
        ("filter_norm", {"size_normalization": True}, r"size_normalization: filter_norm has no such option"),
        ("separated_group_lasso", {"norm_parameters": True}, r"separated_group_lasso has no such option; it has"),
    ],
)
def test_a_wrong_option_is_named(method: str, given: dict[str, bool | int | str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        options_of(METHODS[method], given)

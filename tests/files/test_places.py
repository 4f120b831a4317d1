"""Where a study may lie, and what is said of places that are none."""

import os
import sys
from pathlib import Path

import pytest

from orchestrator.files import LocalFiles, Uri, located, open_files
from orchestrator.record import InvalidInput


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("results", Path("results")),
        ("/scratch/results", Path("/scratch/results")),
        ("odd:name/results", Path("odd:name/results")),
        ("C:/results", Path("C:/results")),
        ("s3://bucket", Uri("s3", "bucket")),
        ("s3://bucket//studies/", Uri("s3", "bucket/studies")),
    ],
)
def test_a_text_means_a_folder_or_a_uri(text: str, place: Path | Uri) -> None:
    assert located(text) == place
    assert located(located(text)) == place


def test_a_uri_is_put_together_and_taken_apart_like_a_path() -> None:
    place = located("s3://bucket/studies") / "small"
    assert str(place / "stages") == "s3://bucket/studies/small/stages"
    assert isinstance(place, Uri)
    assert (place.name, place.bucket, place.key) == ("small", "bucket", "studies/small")
    assert place.parent == Uri("s3", "bucket/studies")
    assert place.parent.parent.parent == Uri("s3", "bucket")
    assert place.absolute() == place.resolve() == place
    assert Uri("s3", "bucket").key == ""
    with pytest.raises(TypeError):
        os.fspath(place)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gopher://hole/x", r"gopher://hole/x: gopher:// is no storage that is known; give a folder or s3://bucket/"),
        ("s3://", r"s3://: names no bucket; give a folder or s3://bucket/prefix, as text"),
        (Path("s3://bucket/x"), r"s3:/bucket/x: names no bucket"),
    ],
)
def test_a_uri_that_is_none_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        located(text)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    message = (
        r"""^s3://bucket/x: s3:// needs the extra "s3": pip install 'pruning-orchestrator\[s3\]' \(import of s3fs"""
    )
    with pytest.raises(InvalidInput, match=message):
        open_files(Uri("s3", "bucket/x"))


def test_a_folder_needs_no_extra(tmp_path: Path) -> None:
    assert isinstance(open_files(tmp_path), LocalFiles)

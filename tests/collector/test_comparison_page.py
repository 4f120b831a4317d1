"""The page of a comparison: nothing from outside, no way out for a hostile name; and in a browser, if there is one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Study
from orchestrator.collector.comparison import compare
from orchestrator.collector.comparison_page import comparison_data, write_comparison
from orchestrator.collector.page import comparison_html
from orchestrator.record import InvalidInput
from orchestrator.store import StageStore

HOSTILE = "</script><img src=x onerror=alert(1)>$name"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 1}


@pytest.fixture
def studies(full_study: Study, add_trial: Callable[..., None], tmp_path: Path) -> list[Study]:
    """The made-up study, and one beside it that was searched for less long."""
    store = StageStore(tmp_path / "other")
    store.write_json("study.json", {"name": "other"})
    add_trial(store, 1e-4, 0.25)
    return [full_study, Study(store.root)]


@pytest.fixture
def data(studies: list[Study]) -> dict[str, Any]:
    return comparison_data(compare(studies, at="0.5,0.2"), studies)


def test_the_page_asks_nobody_for_anything(data: dict[str, Any]) -> None:
    text = comparison_html(data)
    found = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", text)
    assert [url for url in found if not url.startswith(("#", "data:"))] == []
    assert re.findall(r"@import|url\(", text) == []
    assert "connect-src &#x27;none&#x27;" in text
    assert "unsafe" not in text


def test_a_hostile_name_stays_a_text(data: dict[str, Any]) -> None:
    data["lines"][0]["name"] = HOSTILE
    text = comparison_html(data)
    assert "<img" not in text
    assert text.count("</script>") == 2
    inside = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[0]
    assert json.loads(inside)["lines"][0]["name"] == HOSTILE


def test_a_page_ends_as_pages_do(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"page\.pdf: ends in '\.pdf'; a page ends in \.html or \.htm"):
        write_comparison(data, tmp_path / "page.pdf")
    assert write_comparison(data, tmp_path / "page.html") == (tmp_path / "page.html").stat().st_size


def test_the_page_in_a_browser(
    studies: list[Study], measure: Callable[..., str], open_page: Callable[..., Any], tmp_path: Path
) -> None:
    key = str(studies[0].front()["key"].iloc[0])
    for arm, accuracy in (("pruned", 0.91), ("dense", 0.95), ("scratch", 0.89)):
        measure(key, arm, 1001, accuracy)
    found = comparison_data(compare(studies, at="0.5,0.2"), studies)
    found["lines"][1]["name"] = HOSTILE
    write_comparison(found, tmp_path / "page.html")
    opened = open_page((tmp_path / "page.html").as_uri())
    page = opened.page
    assert "Not the same" in opened.text("#unequal")
    assert "train_flops" in opened.text("#unequal")
    marks = sum(len(line["marks"]["key"]) for line in found["lines"])
    assert page.locator("#overlay-chart .spot").count() == marks
    assert page.locator("#overlay-chart .course-line").count() == 2
    assert [row.split("\t")[0].strip() for row in opened.text("#figures tbody").splitlines()] == ["small", HOSTILE]
    assert [page.locator(f'#tested [data-arm="{arm}"]').count() for arm in ("pruned", "dense", "scratch")] == [1, 1, 1]
    assert "0.8900" in opened.text("#tested table")
    page.locator("#overlay-chart .spot").first.hover()
    assert "oicsr" in opened.text("#overlay-chart .tip")
    page.keyboard.press("Tab")
    page.locator("#overlay-chart svg").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator("#overlay-chart svg").get_attribute("aria-valuetext").startswith("small: accuracy 0.")
    page.locator("#legend input").first.uncheck()
    assert page.locator("#overlay-chart .course-line").count() == 1
    page.emulate_media(media="print")
    assert not page.locator("#switches").is_visible()


def test_the_page_on_a_phone(data: dict[str, Any], open_page: Callable[..., Any], tmp_path: Path) -> None:
    write_comparison(data, tmp_path / "page.html")
    opened = open_page((tmp_path / "page.html").as_uri(), **PHONE)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    assert opened.page.locator("#overlay-chart .spot").count() > 0
    assert "Nothing was confirmed" in opened.text("#tested")

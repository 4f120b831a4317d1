"""The page as text: nothing from outside, no way out for a hostile name, and all of it packaged. Needs no browser."""

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from orchestrator import Study
from orchestrator.collector import page
from orchestrator.collector.page import COMPARISON_SCRIPTS, SCRIPTS, html_of, json_for_html, policy
from orchestrator.collector.report import page_data

HOSTILE = "</script><img src=x onerror=alert(1)><!--\u2028$name"
ROOT = Path(page.__file__).parents[3]


def test_the_page_asks_nobody_for_anything(full_study: Study) -> None:
    text = html_of(page_data(full_study))
    found = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", text)
    assert [url for url in found if not url.startswith(("#", "data:"))] == []
    assert re.findall(r"@import|url\(", text) == []
    assert "connect-src &#x27;none&#x27;" in text
    assert "unsafe" not in text


def test_only_this_script_and_this_style_may_run(full_study: Study) -> None:
    text = html_of(page_data(full_study))
    rules = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0])
    for inner in (r"<style>(.*?)</style>", r'<script type="module">(.*?)</script>'):
        content = re.findall(inner, text, re.DOTALL)[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules
    assert rules.startswith("default-src 'none'; ")
    assert "connect-src 'self'" in policy(live=True)


def test_a_hostile_name_stays_a_text(full_study: Study) -> None:
    data = page_data(full_study)
    data["study"]["name"] = HOSTILE
    data["failures"][0]["message"] = HOSTILE
    text = html_of(data)
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert text.count("<!--") == 0
    assert f"<title>{html.escape(HOSTILE)} · frontier</title>" in text
    inside = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[0]
    assert json.loads(inside)["study"]["name"] == HOSTILE


@pytest.mark.parametrize("sign", ["<", ">", "&", "\u2028", "\u2029"])
def test_signs_that_mean_something_to_a_browser_are_escaped(sign: str) -> None:
    text = json_for_html({"name": sign})
    assert sign not in text
    assert json.loads(text) == {"name": sign}


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_for_html(float("nan"))


def test_every_script_is_put_into_the_page() -> None:
    folder = files(page.__name__).joinpath("script")
    assert sorted({*SCRIPTS, *COMPARISON_SCRIPTS}) == sorted(
        one.name for one in folder.iterdir() if one.name.endswith(".js")
    )


@pytest.mark.parametrize("name", sorted({*SCRIPTS, *COMPARISON_SCRIPTS}))
def test_scripts_make_elements_never_html(name: str) -> None:
    text = files(page.__name__).joinpath("script", name).read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\bvar ", text)
    assert [line for line in text.splitlines() if len(line) > 120] == []

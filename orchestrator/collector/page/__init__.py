"""The page as one HTML text: template, style, script and data put together so that nothing is fetched from anywhere.

A policy in the page lets the browser run this script and use this style alone, by their digests, and forbids every
request; the page of `orchestrator watch` may ask its own server for /data.json. Names and messages come from models,
studies and exceptions of others: in the data every "<", ">" and "&" is written as an escape of JSON, so that nothing in
it can end the script element, and the script makes elements and texts, never HTML.
"""

import base64
import hashlib
import html
import json
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

SCRIPTS = (  # one after the other they are one module: strict, and nothing of it is seen outside
    "elements.js",
    "figures.js",
    "axes.js",
    "study.js",
    "frontier.js",
    "walking.js",
    "point.js",
    "table.js",
    "findings.js",
    "live.js",
    "main.js",
)
COMPARISON_SCRIPTS = ("elements.js", "figures.js", "axes.js", "overlay.js", "comparison.js")
ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def html_of(data: dict[str, Any], *, live: bool = False) -> str:
    """The page of report.page_data(); a live one asks for data.json beside it, again and again."""
    template, style, script = _parts()
    return Template(template).substitute(
        name=html.escape(str(data["study"]["name"])),
        policy=html.escape(policy(live=live)),
        live="live" if live else "still",
        style=style,
        script=script,
        data=json_for_html(data),
    )


def comparison_html(data: dict[str, Any]) -> str:
    """The page of comparison_page.comparison_data()."""
    template, style, script = _parts("comparison.html", ("page.css", "comparison.css"), COMPARISON_SCRIPTS)
    return Template(template).substitute(
        name=html.escape(", ".join(str(line["name"]) for line in data["lines"])),
        policy=html.escape(_policy(style, script, live=False)),
        style=style,
        script=script,
        data=json_for_html(data),
    )


def policy(*, live: bool) -> str:
    """The content security policy of the page."""
    _, style, script = _parts()
    return _policy(style, script, live=live)


def _policy(style: str, script: str, *, live: bool) -> str:
    rules = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        "img-src": "data:",  # the icon
        "connect-src": "'self'" if live else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def json_for_html(data: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.translate(ESCAPES)


@cache
def _parts(
    template: str = "page.html", styles: tuple[str, ...] = ("page.css",), scripts: tuple[str, ...] = SCRIPTS
) -> tuple[str, str, str]:
    """Template, style and script, as they are packaged."""
    here = files(__name__)
    style = "".join(here.joinpath(name).read_text("utf-8") for name in styles)
    script = "\n".join(here.joinpath("script", name).read_text("utf-8") for name in scripts)
    return here.joinpath(template).read_text("utf-8"), style, script


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

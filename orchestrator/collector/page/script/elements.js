// Elements of the page. Text is set as text and never parsed, whatever it holds.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with attributes, listeners (onclick: ...) and children; null children are left out. */
function element(tag, attributes = {}, ...children) {
    return filled(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
function drawn(tag, attributes = {}, ...children) {
    return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(made, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
        else if (value === true) made.setAttribute(name, "");
        else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
    }
    made.append(...present(children));
    return made;
}

/** Children without those that are missing, lists of them laid out. */
function present(children) {
    return children.flat(Infinity).filter((child) => child !== null && child !== undefined);
}

function byId(id) {
    return document.getElementById(id);
}

/** Puts children in the place of what an element holds. */
function fill(id, ...children) {
    byId(id).replaceChildren(...present(children));
}

/** A list of terms and what they are, without those that are null. */
function pairs(name, entries) {
    const known = entries.filter(([, value]) => value !== null && value !== undefined);
    return element(
        "dl",
        { class: name },
        known.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]),
    );
}

/** Radio buttons that look like one switch; options are [value, label, possible]. */
function choice(name, legend, options, chosen, changed) {
    const buttons = options.map(([value, label, possible = true]) =>
        element(
            "label",
            {},
            element("input", {
                type: "radio",
                name,
                value,
                checked: value === chosen,
                disabled: !possible,
                onchange: () => changed(value),
            }),
            element("span", {}, label),
        ),
    );
    return element("fieldset", { role: "radiogroup", "aria-label": legend }, buttons);
}

/** A text for a terminal, with a button that copies it. */
function command(text) {
    const button = element("button", { type: "button", onclick: () => copy(text, button) }, "Copy");
    return element("div", { class: "command" }, element("pre", { tabindex: "0" }, text), button);
}

/** A table without anything to press. Columns of figures stand right. */
function plainTable(head, rows, texts = []) {
    const align = (nth) => (nth === 0 ? null : texts.includes(nth) ? "text" : "number");
    return element(
        "table",
        {},
        element(
            "thead",
            {},
            element(
                "tr",
                {},
                head.map((name, nth) => element("th", { scope: "col", class: align(nth) }, name)),
            ),
        ),
        element(
            "tbody",
            {},
            rows.map((row) =>
                element(
                    "tr",
                    {},
                    row.map((cell, nth) => element("td", { class: align(nth) }, cell)),
                ),
            ),
        ),
    );
}

async function copy(text, button) {
    try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
    } catch {
        // a page from a file may not be allowed to
        getSelection().selectAllChildren(button.previousElementSibling);
        button.textContent = "Selected";
    }
    setTimeout(() => {
        button.textContent = "Copy";
    }, 1600);
}

/** Says something to those who cannot see that the page has changed. */
function announce(text) {
    byId("announcements").textContent = text;
}

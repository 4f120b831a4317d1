// The table of points, and the filter that narrows it and the chart.

const PAGE = 50; // rows that are added at a time
const MANY = 40; // different values of a setting that can still be chosen from

/** Columns of the table: name, heading, text of a cell, whether the first press sorts descending. */
function tableColumns({ columns, data }) {
    const known = (name) => columns[name].some((value) => value !== null);
    const own = [
        { name: "flops", text: countText },
        { name: "flops_kept", text: percentText },
        { name: "accuracy", text: shareText, down: true },
        known("latency_ms")
            ? { name: "latency_ms", text: (value) => (value === null ? NONE : value.toPrecision(4)) }
            : null,
        { name: "params", text: countText },
        data.study.methods.length > 1 ? { name: "method", text: numberText } : null,
        ...SETTINGS.map((name) => ({ name, text: numberText })),
        ...Object.keys(data.points.others).map((name) => ({
            name,
            text: numberText,
            values: data.points.others[name],
        })),
    ];
    return own.filter((one) => one !== null).map((one) => ({ values: columns[one.name], ...one }));
}

function showFilter(app) {
    const { study, view } = app;
    const changed = () => {
        view.rows = PAGE;
        showTable(app);
        showFrontier(app);
    };
    fill(
        "filter",
        choice(
            "which",
            "Which points",
            [
                ["front", "frontier"],
                ["all", "all points"],
            ],
            view.which,
            (value) => {
                view.which = value;
                changed();
            },
        ),
        typed("flops ≤", "at most so many flops", "60M", view.filter, "maxFlops", parseCount, changed),
        typed("accuracy ≥", "at least this accuracy", "0.9", view.filter, "minAccuracy", parseShare, changed),
        choosable(study).map(([name, values]) => picked(name, values, view.filter.settings, changed)),
    );
}

/** Settings that vary, with their values in order. */
function choosable({ columns, data }) {
    const all = [...SETTINGS, "method"].map((name) => [name, columns[name]]).concat(Object.entries(data.points.others));
    return all
        .map(([name, values]) => [name, [...new Set(values)].filter((value) => value !== null)])
        .filter(([, values]) => values.length > 1 && values.length <= MANY)
        .map(([name, values]) => [name, values.sort((one, other) => (one > other ? 1 : -1))]);
}

function typed(label, meaning, example, filter, name, parse, changed) {
    const input = element("input", {
        type: "text",
        name,
        inputmode: "decimal",
        autocomplete: "off",
        placeholder: example,
        "aria-label": meaning,
        oninput: () => {
            const value = parse(input.value);
            input.setAttribute("aria-invalid", String(value === null));
            filter[name] = value === null ? undefined : value;
            changed();
        },
    });
    input.value = filter[`${name}Text`] ?? "";
    return element("label", { class: "field" }, element("span", {}, label), input);
}

function picked(name, values, settings, changed) {
    const select = element(
        "select",
        {
            name,
            "aria-label": name,
            onchange: () => {
                if (select.value === "") delete settings[name];
                else settings[name] = values[Number(select.value)];
                changed();
            },
        },
        element("option", { value: "" }, "any"),
        values.map((value, nth) =>
            element("option", { value: nth, selected: settings[name] === value }, numberText(value)),
        ),
    );
    return element("label", { class: "field" }, element("span", {}, name), select);
}

/** Whether a point is within the filter; the switch between frontier and all points is the table's alone. */
function passes({ columns, data }, { maxFlops, minAccuracy, settings }, at) {
    if (maxFlops !== undefined && columns.flops[at] > maxFlops) return false;
    if (minAccuracy !== undefined && columns.accuracy[at] < minAccuracy) return false;
    return Object.entries(settings).every(([name, value]) => (columns[name] ?? data.points.others[name])[at] === value);
}

function showTable(app) {
    const { study, view } = app;
    const shown = tableColumns(study);
    const candidates = view.which === "front" ? study.data.fronts.flops : study.columns.key.map((_, at) => at);
    const found = candidates.filter((at) => app.matches(at));
    const rows = sorted(found, shown, view.sort);
    const scroller = byId("points-scroller");
    const focus = scroller.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
    fill(
        "points-scroller",
        element(
            "table",
            {},
            element(
                "thead",
                {},
                element(
                    "tr",
                    {},
                    element("th", { scope: "col" }, "point"),
                    shown.map((column) => heading(app, column)),
                ),
            ),
            element(
                "tbody",
                {},
                rows.slice(0, view.rows).map((at) => tableRow(app, shown, at)),
            ),
        ),
    );
    if (focus !== undefined)
        scroller.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
    const among = view.which === "front" ? "of the frontier" : "in this page";
    const count = `${found.length.toLocaleString("en")} of ${plural(candidates.length, "point")} ${among}`;
    fill("points-count", found.length ? count : `No point ${among} is within these limits`);
    showMore(app, rows.length);
}

function sorted(points, shown, { by, down }) {
    const { values } = shown.find((column) => column.name === by) ?? shown[0];
    const sign = down ? -1 : 1;
    const missing = (at) => values[at] === null || values[at] === undefined;
    return [...points].sort(
        (one, other) =>
            missing(one) - missing(other) || sign * ((values[one] > values[other]) - (values[one] < values[other])),
    );
}

function heading(app, { name, down }) {
    const { sort } = app.view;
    const pressed = () => {
        app.view.sort = { by: name, down: sort.by === name ? !sort.down : Boolean(down) };
        showTable(app);
    };
    const order = sort.by !== name ? "none" : sort.down ? "descending" : "ascending";
    return element(
        "th",
        { scope: "col", class: "number", "aria-sort": order },
        element(
            "button",
            { type: "button", onclick: pressed, "data-focus": `sort ${name}` },
            name.replaceAll("_", "_\n"),
        ),
    );
}

function tableRow(app, shown, at) {
    const { study } = app;
    const key = study.columns.key[at];
    const open = (event) => {
        event.stopPropagation();
        app.open(at);
    };
    return element(
        "tr",
        { "aria-current": at === app.opened ? "true" : null, onclick: open, "data-key": key },
        element(
            "td",
            {},
            symbol(shapeOf(study, at)),
            element(
                "button",
                {
                    type: "button",
                    class: "figure",
                    onclick: open,
                    "data-focus": key,
                    "aria-label": `open ${nameOf(study, at)}`,
                },
                key.slice(0, 8),
            ),
        ),
        shown.map(({ text, values }) => element("td", { class: "number" }, text(values[at]))),
    );
}

function showMore(app, count) {
    const left = count - app.view.rows;
    const more = () => {
        app.view.rows += left > 10 * PAGE ? 10 * PAGE : PAGE;
        showTable(app);
    };
    if (left <= 0) fill("points-more");
    else
        fill(
            "points-more",
            `${plural(left, "more row")} below`,
            element("button", { type: "button", onclick: more }, "Show more"),
        );
}

// The opened point: what it is, how it came about, how wide it is, and how to have it.

function showPoint(app) {
    const { study, opened } = app;
    if (opened === null) {
        fill(
            "point",
            element("h2", { id: "point-title" }, "No point opened"),
            element("p", { class: "hint" }, "Click a point of the chart or of the table."),
        );
        return;
    }
    fill(
        "point",
        pointHead(app),
        ranks(study, opened),
        bigFigures(study, opened),
        titled("Settings", pointSettings(study, opened)),
        confirmedFigures(study, opened),
        titled("How it came about", path(app)),
        titled("Widths beside the dense model", widths(study, opened)),
        titled("Take it out", takeOut(study, opened)),
        titled("Make it again", makeAgain(study, opened)),
    );
}

function titled(title, body) {
    return [element("h3", {}, title), body];
}

function pointHead(app) {
    const { study, opened } = app;
    const { flops: front } = study.data.fronts;
    const nth = front.indexOf(opened);
    const [smaller, larger] = nth < 0 ? beside(study, opened) : [front[nth - 1], front[nth + 1]];
    const button = (label, to, what) =>
        element(
            "button",
            {
                type: "button",
                disabled: to === undefined,
                "aria-label": what,
                onclick: () => app.open(to),
            },
            label,
        );
    return element(
        "div",
        { class: "panel-head" },
        element("h2", { id: "point-title" }, nameOf(study, opened)),
        element(
            "div",
            { class: "step-buttons" },
            button("‹ smaller", smaller, "open the next smaller point of the frontier"),
            button("larger ›", larger, "open the next larger point of the frontier"),
        ),
    );
}

/** The neighbours on the frontier of a point that is not on it. */
function beside({ columns, data }, point) {
    const nth = data.fronts.flops.findIndex((at) => columns.flops[at] > columns.flops[point]);
    const front = data.fronts.flops;
    return nth < 0 ? [front.at(-1), undefined] : [front[nth - 1], front[nth]];
}

function ranks(study, point) {
    const front = study.fronts.flops.has(point);
    const badges = [
        [
            front ? "front" : "other",
            front ? "on the frontier" : "not on the frontier: another point is at least as good",
            "",
        ],
        study.columns.kind[point] === "dense" ? ["dense", "dense model", ""] : null,
        study.confirmed.has(point) ? ["confirmed", "confirmed", " good"] : ["", "not confirmed", ""],
    ].filter((badge) => badge !== null);
    return element(
        "p",
        { class: "rank" },
        badges.map(([shape, label, extra]) =>
            element("span", { class: `badge${extra}` }, shape ? symbol(shape) : null, label),
        ),
    );
}

function bigFigures({ columns }, point) {
    const figures = [
        ["accuracy", shareText(columns.accuracy[point]), "validation split"],
        ["flops", countText(columns.flops[point]), `${percentText(columns.flops_kept[point])} of dense`],
        columns.latency_ms[point] === null
            ? ["params", countText(columns.params[point]), null]
            : ["latency", millisecondsText(columns.latency_ms[point]), `${countText(columns.params[point])} params`],
    ];
    return element(
        "dl",
        { class: "big" },
        figures.map(([term, value, beside]) =>
            element(
                "div",
                {},
                element("dt", {}, term),
                element("dd", {}, value, beside && element("small", {}, beside)),
            ),
        ),
    );
}

function pointSettings(study, point) {
    const { columns } = study;
    const after = columns.accuracy_after_cut[point];
    return pairs("pairs", [
        ...(columns.kind[point] === "dense" ? [] : settingsOf(study, point)),
        study.data.study.methods.length > 1 ? ["method", null] : ["method", columns.method[point]],
        ["seed", numberText(columns.seed[point])],
        ["accuracy_after_cut", after === null ? null : shareText(after)],
        [
            "cost of its path",
            `${countText(columns.path_train_flops[point])} train_flops, ${secondsText(columns.path_seconds[point])}`,
        ],
        ["found", timeText(columns.created[point])],
        ["key", element("span", { class: "figure" }, columns.key[point].slice(0, 16))],
    ]);
}

/** Test figures of fresh seeds, beside the dense model and the control from scratch. */
function confirmedFigures(study, point) {
    const rows = study.confirmed.get(point);
    if (rows === undefined) return null;
    const cells = (row) => [
        row.arm,
        numberText(row.seeds),
        deviated(row),
        countText(row.flops),
        row.optimism === null || row.optimism === undefined ? NONE : row.optimism.toFixed(4),
    ];
    const head = ["network", "seeds", "test_accuracy", "flops", "optimism"];
    return [
        ...titled(
            "Confirmed on the test split",
            element("div", { class: "scroller" }, plainTable(head, rows.map(cells))),
        ),
        element(
            "p",
            { class: "means" },
            "Mean and standard deviation over fresh seeds. Optimism: the search's accuracy minus " + "this mean.",
            rows.some((row) => row.with_validation) ? " Trained on train and validation." : "",
        ),
    ];
}

function deviated(row) {
    const deviation = row.test_accuracy_deviation;
    const mean = shareText(row.test_accuracy_mean);
    return deviation === null || deviation === undefined ? mean : `${mean} ± ${deviation.toFixed(4)}`;
}

function path(app) {
    const { study, opened } = app;
    const { columns } = study;
    const way = wayTo(study, opened);
    const label = (at) => (columns.kind[at] === "dense" ? "dense" : `cut ${columns.iteration[at]}`);
    const rows = way.map((at) =>
        element(
            "tr",
            { "aria-current": at === opened ? "true" : null },
            element("td", {}, element("button", { type: "button", onclick: () => app.open(at) }, label(at))),
            element("td", { class: "number" }, countText(columns.flops[at])),
            element("td", { class: "number" }, shareText(columns.accuracy_after_cut[at])),
            element("td", { class: "number" }, shareText(columns.accuracy[at])),
        ),
    );
    const head = ["stage", "flops", "after cut", "accuracy"].map((name, nth) =>
        element("th", { scope: "col", class: nth ? "number" : null }, name),
    );
    const gaps =
        way.length <= columns.iteration[opened]
            ? element("p", { class: "means" }, "Some of its steps are not in this page.")
            : null;
    return [
        element("table", { class: "path" }, element("thead", {}, element("tr", {}, head)), element("tbody", {}, rows)),
        gaps,
    ];
}

function widths({ data, columns }, point) {
    const left = data.widths.left[point];
    if (columns.kind[point] === "dense") return element("p", { class: "means" }, "All groups are whole.");
    if (left === undefined) return element("p", { class: "means" }, "The widths of this point are not in this page.");
    const rows = data.widths.groups.flatMap((name, nth) => {
        const dense = data.widths.dense[nth];
        return [
            element("span", { class: "name", title: name }, element("bdi", {}, name)),
            bar(left[nth] / dense),
            element("span", { class: "count" }, element("b", {}, String(left[nth])), ` / ${dense}`),
        ];
    });
    return [
        element("div", { class: "widths", tabindex: data.widths.groups.length > 14 ? "0" : null }, rows),
        element(
            "p",
            { class: "means" },
            "Channels left of those of the dense model, by group: layers that must keep the same " +
                "channels are one group. Groups that are not listed are whole.",
        ),
    ];
}

function bar(share) {
    return drawn(
        "svg",
        { viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" },
        drawn("rect", { class: "bar-whole", width: 100, height: 12, "vector-effect": "non-scaling-stroke" }),
        drawn("rect", { class: "bar", width: 100 * Math.min(1, share), height: 12 }),
    );
}

function takeOut({ data, columns, fronts }, point) {
    if (!fronts.flops.has(point)) {
        return element(
            "p",
            { class: "means" },
            "No budget of flops leads to this point, because another one is at least as " +
                "good. Its files are in the study, in the folder ",
            element("code", {}, `stages/${columns.key[point].slice(0, 16)}…`),
        );
    }
    const needed = [columns.model[point], columns.dataset[point]].map((name) => data.commands.allow[name]);
    const allowed = needed.filter((option) => option !== undefined).map((option) => ` ${option}`);
    return command(`${data.commands.export} --max-flops ${columns.flops[point]} --output my_model${allowed.join("")}`);
}

function makeAgain(study, point) {
    const { data, columns } = study;
    const space = spaceOf(study, point);
    if (space === null) {
        const why =
            data.commands.space === null
                ? "The study does not say what its trials are made of"
                : "What its trial was made of is known when that has ended";
        const search = data.commands.search; // a study that was merged has none
        const goesOn = search === null ? [`${why}.`] : [`${why}. The whole search goes on by:`, command(search)];
        return element("p", { class: "means" }, ...goesOn);
    }
    const file = `point_${columns.key[point].slice(0, 8)}.toml`;
    return [
        command(`orchestrator search ${file} --storage made_again`),
        element("details", {}, element("summary", {}, `${file}`), command(space)),
        element(
            "p",
            { class: "means" },
            "A search of the one trial that passes this point, with nothing taken from this study. " +
                "Same data, code and versions give the same key.",
        ),
    ];
}

/** The search space that leads to one point, or null where something that it needs is not known. */
function spaceOf(study, point) {
    const { data, columns } = study;
    const iterations = Math.max(1, columns.iteration[point]);
    const bounds = { low: iterations, high: iterations + 1 };
    if (data.commands.space === null) return null;
    const values = data.commands.space.map((piece) => {
        if (typeof piece === "string") return piece;
        if (piece.field in bounds) return String(bounds[piece.field]);
        const known = (columns[piece.field] ?? data.points.others[piece.field])?.[point];
        if (known !== null && known !== undefined) return JSON.stringify(known);
        const method = columns.method[point]; // null of the dense model
        const means = method !== null && (piece.method ?? method) === method;
        return means ? null : JSON.stringify(piece.otherwise);
    });
    return values.includes(null) ? null : values.join("");
}

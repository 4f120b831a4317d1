// The page of a comparison: what differs, the overlay, the figures, and what was confirmed.

function startComparison() {
    const data = JSON.parse(byId("data").textContent);
    const app = { data, hidden: new Set(), log: spansFar(data), chart: null };
    fill("subject", subjectOf(data));
    fill(
        "colophon",
        `Made ${timeText(data.made)} by pruning-orchestrator. It holds everything it shows, and asks no other ` +
            "computer for anything.",
    );
    showDifferences(data);
    showScale(app);
    showOverlay(app);
    showLines(app);
    showFigures(data);
    showTested(app);
    showMeanings(data);
    followWidth(app);
}

/** Whether a log axis shows more. */
function spansFar({ lines }) {
    const [least, most] = lowHigh(lines.flatMap(({ marks }) => marks.flops));
    return least > 0 && most >= 10 * least;
}

function subjectOf({ by, lines }) {
    const all = (name) => [...new Set(lines.flatMap((line) => line[name]))].join(", ");
    const what = by === "method" ? `The methods of ${all("studies")}` : `${plural(lines.length, "study", "studies")}`;
    return `${what}: ${all("models")} on ${lines[0].dataset}`;
}

function showDifferences({ lines, differences }) {
    byId("unequal").hidden = differences.length === 0;
    if (differences.length === 0) return;
    const rows = differences.map(({ field, values }) => [field, ...values]);
    fill(
        "unequal",
        element("h2", { id: "unequal-title" }, "Not the same"),
        element(
            "p",
            {},
            "Besides what is compared, these differ. Where budgets, data or training are unequal, so is the " +
                "comparison.",
        ),
        element(
            "div",
            { class: "scroller", tabindex: "0", role: "region", "aria-labelledby": "unequal-title" },
            plainTable(
                ["field", ...lines.map(({ name }) => name)],
                rows,
                lines.map((_, nth) => nth + 1),
            ),
        ),
    );
}

function showScale(app) {
    const options = [
        ["log", "log"],
        ["linear", "linear"],
    ];
    fill(
        "switches",
        choice("log", "Scale of the flops", options, app.log ? "log" : "linear", (value) => {
            app.log = value === "log";
            showOverlay(app);
            showTested(app);
        }),
    );
}

/** The legend, whose boxes put lines in and take them out. */
function showLines(app) {
    const { lines } = app.data;
    fill(
        "legend",
        lines.map(({ name }, nth) =>
            element(
                "li",
                {},
                element(
                    "label",
                    {},
                    element("input", {
                        type: "checkbox",
                        name: "line",
                        value: nth,
                        checked: true,
                        onchange: (event) => {
                            if (event.target.checked) app.hidden.delete(nth);
                            else app.hidden.add(nth);
                            showOverlay(app);
                        },
                    }),
                    sample(nth),
                    name,
                ),
            ),
        ),
    );
    const several = lines.some(({ seeds }) => seeds.length > 1);
    fill(
        "overlay-note",
        several
            ? "Marks are the points of each seed's frontier. A line is the mean over its seeds of the best accuracy " +
                  "up to those flops, its band the deviation of the sample; it begins where every seed has a point."
            : "Marks are points that no other of their line beats in both accuracy and flops. One seed each: " +
                  "nothing is known about the deviation.",
    );
    fill("overlay-hint", plural(lines.length, "line"));
}

function showFigures({ lines, budgets, reference_flops: reference }) {
    const figure = ({ mean, deviation }) => (mean === null ? NONE : meanText(mean, deviation));
    const within = (one, total) => (total > 1 && one.seeds > 0 ? `${figure(one)} (n = ${one.seeds})` : figure(one));
    const bestOf = (figures) => Math.max(...figures.map(({ mean }) => mean ?? -1));
    const best = {
        worth: bestOf(lines.map((line) => line.hypervolume)),
        at: budgets.map((_, nth) => bestOf(lines.map((line) => line.accuracy_at[nth]))),
    };
    const marked = (text, one, most) => (one.mean === most ? element("span", { class: "best" }, text) : text);
    const rows = lines.map((line, nth) => [
        [sample(nth), line.name],
        numberText(line.seeds.length),
        figure(line.dense),
        line.dense_flops.map(countText).join(", ") || NONE,
        numberText(line.trials),
        numberText(line.points),
        countText(line.train_flops),
        marked(within(line.hypervolume, line.seeds.length), line.hypervolume, best.worth),
        ...line.accuracy_at.map((one, at) => marked(within(one, line.seeds.length), one, best.at[at])),
    ]);
    const head = ["line", "seeds", "dense accuracy", "dense flops", "trials", "points", "train_flops", "hypervolume"];
    const asked = budgets.map((budget) => `accuracy at ${countText(budget)} (${percentText(budget / reference)})`);
    fill("figures-scroller", tableOf([...head, ...asked], rows));
    fill(
        "figures-note",
        "Accuracy is on the validation split, the best within the budget; shares are of " +
            `${countText(reference)} flops, the largest dense model's, the reference of every hypervolume too. ` +
            "The highest of a column is bold, whether or not the difference means anything.",
    );
}

/** A plain table whose cells may hold elements. */
function tableOf(head, rows, texts) {
    const empty = rows.map((row) => row.map(() => ""));
    const table = plainTable(head, empty, texts);
    for (const [nth, row] of [...table.tBodies[0].rows].entries()) {
        for (const [at, cell] of [...row.cells].entries()) cell.replaceChildren(...present([rows[nth][at]]));
    }
    return table;
}

function showTested(app) {
    const { confirmed, lines } = app.data;
    if (confirmed.length === 0) {
        fill(
            "tested-body",
            element(
                "p",
                { class: "means" },
                "Nothing was confirmed. Only figures of the test split, after training anew from fresh seeds, are " +
                    "results: ",
                element("code", {}, "orchestrator confirm STUDY"),
                " measures them, beside the dense model and the pruned widths from scratch under the same " +
                    "train_flops.",
            ),
        );
        return;
    }
    const rows = confirmed.map((row) => [
        [sample(lineAt(lines, row)), row.line],
        row.method ?? NONE,
        row.arm,
        numberText(row.seeds),
        meanText(row.test_accuracy_mean, row.test_accuracy_deviation),
        countText(row.flops),
        countText(row.train_flops_mean),
        row.key.slice(0, 12),
    ]);
    const head = ["line", "method", "network", "seeds", "test_accuracy", "flops", "train_flops", "point"];
    const chart = element("div", { class: "chart", id: "tested-chart" });
    const arms = { pruned: "pruned", dense: "dense model", scratch: "the pruned widths from scratch" };
    fill(
        "tested-body",
        chart,
        element(
            "ul",
            { class: "legend" },
            Object.entries(arms).map(([arm, label]) =>
                element(
                    "li",
                    {},
                    drawn(
                        "svg",
                        { viewBox: "0 0 30 14" },
                        spot(ARM_SHAPES[arm], 15, 7, `spot${arm === "pruned" ? "" : " open"}`),
                    ),
                    label,
                ),
            ),
        ),
        element(
            "div",
            { class: "scroller", tabindex: "0", role: "region", "aria-labelledby": "tested-title" },
            tableOf(head, rows, [1, 2, 7]),
        ),
        element(
            "p",
            { class: "means" },
            "Dense model and scratch are controls under the train_flops of the pruned path. ",
            confirmed.some((row) => row.with_validation) ? "Some were trained on train and validation." : "",
        ),
    );
    chart.replaceChildren(testedChart(app, chart));
}

/** The place of the line that a row is about. */
function lineAt(lines, row) {
    return lines.findIndex(({ name }) => name === row.line);
}

function showMeanings({ counted, limits }) {
    fill(
        "counted-body",
        Object.entries(counted).flatMap(([word, meaning]) => [element("dt", {}, word), element("dd", {}, meaning)]),
    );
    fill(
        "limits",
        limits.map((limit) => element("li", {}, limit)),
    );
}

function followWidth(app) {
    let width = byId("overlay-chart").clientWidth;
    new ResizeObserver(() => {
        const now = byId("overlay-chart").clientWidth;
        if (now === width || now === 0 || matchMedia("print").matches) return;
        width = now;
        showOverlay(app);
        showTested(app);
    }).observe(byId("overlay-chart"));
}

startComparison();

// Figures as people read them, with the same units as on the command line.

const UNITS = [
    [1e18, "E"],
    [1e15, "P"],
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
];
const SUFFIXES = { "": 1, k: 1e3, m: 1e6, g: 1e9, t: 1e12 };
const NONE = "–";

/** 12345678 is "12.35 M". */
function countText(value) {
    if (value === null || value === undefined) return NONE;
    const [scale, unit] = UNITS.find(([least]) => Math.abs(value) >= least) ?? [1, ""];
    const short = Number((value / scale).toPrecision(4));
    return unit ? `${short}\u00a0${unit}` : String(short);
}

function shareText(value) {
    return value === null || value === undefined ? NONE : value.toFixed(4);
}

function percentText(value) {
    return value === null || value === undefined ? NONE : `${Number((100 * value).toPrecision(3))} %`;
}

function numberText(value) {
    return value === null || value === undefined
        ? NONE
        : String(typeof value === "number" ? Number(value.toPrecision(6)) : value);
}

function millisecondsText(value) {
    return value === null || value === undefined ? NONE : `${value.toPrecision(4)}\u00a0ms`;
}

function secondsText(value) {
    if (value < 120) return `${Math.round(value)} s`;
    return value < 7200 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

function costText(cost, value) {
    return cost === "latency_ms" ? millisecondsText(value) : countText(value);
}

/** 2026-11-23 02:16 UTC */
function timeText(iso) {
    return `${iso.slice(0, 10)} ${iso.slice(11, 16)} UTC`;
}

function plural(count, one, many = `${one}s`) {
    return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** "60M", "4.1 G" or "2500000" as a number; null where it is none, undefined where nothing was typed. */
function parseCount(text) {
    if (text.trim() === "") return undefined;
    const match = /^\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmgt]?)\s*$/i.exec(text);
    return match ? Number(match[1]) * SUFFIXES[match[2].toLowerCase()] : null;
}

/** A share from 0 to 1; null and undefined as in parseCount. */
function parseShare(text) {
    if (text.trim() === "") return undefined;
    const value = Number(text);
    return value >= 0 && value <= 1 ? value : null;
}

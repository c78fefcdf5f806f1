"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  // made with text, never with markup: what runs have stored is shown as it is
  function make(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  function fold(title, ...children) {
    return make("details", {}, make("summary", {}, title), ...children);
  }

  function grid(header, lines) {
    const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
    const body = lines.map((line) => make("tr", {}, ...line.map((text, place) =>
      make(place ? "td" : "th", place ? {} : { scope: "row" }, String(text)))));
    return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  }

  // light and dark

  const theme = byId("theme");
  function show(dark) {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(dark));
  }
  show(matchMedia("(prefers-color-scheme: dark)").matches);
  theme.addEventListener("click", () => show(theme.getAttribute("aria-pressed") !== "true"));

  // sorting: numbers before texts, empty cells last, the paper's rows where they belong

  function sortBy(header) {
    const table = header.closest("table");
    const place = [...header.parentNode.children].indexOf(header);
    const up = header.getAttribute("aria-sort") === "descending";
    for (const other of header.parentNode.children) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.children[place].dataset.sort;
    const sign = up ? 1 : -1;
    const rows = [...table.tBodies[0].rows];
    rows.sort((first, second) => {
      const [a, b] = [value(first), value(second)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const [x, y] = [Number(a), Number(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) {
        return Number.isNaN(x) - Number.isNaN(y) || sign * a.localeCompare(b);
      }
      return sign * (x - y);
    });
    table.tBodies[0].append(...rows);
  }
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => sortBy(button.closest("th")));
  }

  // what a number opens

  const dialog = byId("details");
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  function open(title, runs, row) {
    byId("details-title").textContent = title;
    const content = byId("details-content");
    content.replaceChildren(...[row ? changed(row) : null, row ? browser(row) : null,
      make("h3", {}, runs.length === 1 ? "The run" : `The ${runs.length} runs`),
      ...runs.filter((id) => data.runs[id]).map((id) => runPart(id, runs.length === 1)),
    ].filter((part) => part !== null));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  for (const button of document.querySelectorAll("button.number")) {
    button.addEventListener("click", () => {
      const line = button.closest("tr");
      const key = `${button.closest("section").dataset.key}/${line.dataset.row}`;
      const table = button.closest("table");
      const head = table.tHead.rows[0].cells[[...line.children].indexOf(button.closest("td"))];
      const title = `${line.children[0].textContent}: ${head.textContent} ${button.textContent}`;
      open(title, button.dataset.runs.split(" "), data.rows[key]);
    });
  }

  function changed(row) {
    if (!row.changed.length) return null;
    const tables = row.changed.map((one) => make("div", {}, make("h3", {}, one.metric),
      grid(["Class", "Points", "Samples"], one.classes.map(([name, gain, count]) =>
        [name, `${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(1)}`, count]))));
    return fold(`Classes that changed most, against ${row.against}`,
      make("div", { class: "pair" }, ...tables));
  }

  function runPart(id, opened) {
    const run = data.runs[id];
    const took = run.seconds > 0 ? `, ${run.seconds.toFixed(0)} s` : "";
    const part = fold(`${run.row}, seed ${run.seed}, run ${id}${took}`);
    let filled = false;
    part.addEventListener("toggle", () => {
      if (!part.open || filled) return;
      filled = true;
      const stale = run.stale ? make("p", { class: "wrong" },
        `Made before this changed: ${run.stale}`) : null;
      const code = `commit ${run.commit || "not recorded"}`
        + (run.diff ? ", with changes that were not committed:" : run.dirty ? ", changed" : "");
      part.append(...[stale,
        make("p", {}, code), run.diff ? make("pre", { tabindex: 0 }, data.diffs[run.diff]) : null,
        curves(run), scores(run), costs(run),
        fold("Spec", make("pre", { tabindex: 0 }, JSON.stringify(run.spec, null, 2))),
        fold("Environment", make("pre", { tabindex: 0 },
          JSON.stringify({ ...run.env, implementations: run.implementations }, null, 2))),
      ].filter((one) => one !== null));
    });
    part.open = opened;
    return part;
  }

  function scores(run) {
    const lines = Object.entries(run.scores)
      .map(([name, value]) => [name, value === null ? "–" : (100 * value).toFixed(2)]);
    return lines.length ? fold("Scores on the test split, %", grid(["Metric", "%"], lines)) : null;
  }

  function costs(run) {
    const tables = Object.entries(run.cost).filter(([, parts]) => Object.keys(parts).length)
      .map(([title, parts]) => make("div", {}, make("h3", {}, title), grid(["Part", title],
        Object.entries(parts).map(([name, value]) => [name, Number(value.toPrecision(4))]))));
    return tables.length ? fold("Cost", make("div", { class: "pair" }, ...tables)) : null;
  }

  function curves(run) {
    const drawn = Object.entries(run.curves).map(([name, points]) => plot(name, points));
    return drawn.length ? fold("Learning curves", make("div", { class: "pair" }, ...drawn)) : null;
  }

  function shape(name, attributes, text = "") {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    return node;
  }

  function plot(name, all, unit = 100) {
    const points = all.filter(([, value]) => value !== null);
    if (!points.length) return make("p", {}, `${name}: no finite value`);
    const [width, height, left, low] = [380, 170, 46, 140];
    const xs = points.map(([x]) => x), ys = points.map(([, y]) => unit * y);
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    const [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    const at = ([x, y]) => [left + (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5) * (width - left - 8),
      low - (y1 > y0 ? (unit * y - y0) / (y1 - y0) : 0.5) * (low - 24)];
    const label = `${name}, select split: ${ys[0].toFixed(1)} to ${ys.at(-1).toFixed(1)} %`;
    const picture = shape("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": label });
    picture.append(
      shape("path", { d: `M${left} 18V${low}H${width - 4}`, fill: "none", stroke: "currentColor" }),
      shape("polyline", { points: points.map((one) => at(one).join(",")).join(" "), fill: "none",
        stroke: "var(--accent)", "stroke-width": 2 }),
      shape("text", { x: left - 4, y: 28, "text-anchor": "end" }, y1.toFixed(1)),
      shape("text", { x: left - 4, y: low, "text-anchor": "end" }, y0.toFixed(1)),
      shape("text", { x: left, y: low + 16 }, `epoch ${x0}`),
      shape("text", { x: width - 6, y: low + 16, "text-anchor": "end" }, String(x1)),
      shape("text", { x: left, y: 12 }, `${name}, select split (%)`));
    return picture;
  }

  // predictions

  function browser(row) {
    const found = data.samples[row.section];
    if (!found || !found.rows[row.name]) return null;
    const right = (sample, name) => Object.entries(sample.truth)
      .every(([target, truth]) => sample.said[name][target][0] === truth);
    const kinds = {
      "all": () => true,
      "wrong": (sample) => !right(sample, row.name),
      "right": (sample) => right(sample, row.name),
    };
    const others = Object.keys(found.rows).filter((name) => name !== row.name);
    const kind = make("select", { "aria-label": "Which samples" },
      ...Object.keys(kinds).map((name) => make("option", {}, name)));
    const other = make("select", { "aria-label": "Row to compare with" },
      ...others.map((name) => make("option", { value: name }, found.rows[name])));
    if (others.includes(row.beside)) other.value = row.beside;
    const place = make("span", { "aria-live": "polite" });
    const shown = make("div");
    let chosen = found.samples, at = 0;
    const step = (by) => { at = Math.min(Math.max(at + by, 0), chosen.length - 1); draw(); };
    const before = make("button", { type: "button" }, "Previous");
    const next = make("button", { type: "button" }, "Next");
    before.addEventListener("click", () => step(-1));
    next.addEventListener("click", () => step(1));
    kind.addEventListener("change", () => {
      chosen = found.samples.filter(kinds[kind.value]);
      at = 0;
      draw();
    });
    other.addEventListener("change", draw);
    function draw() {
      place.textContent = chosen.length ? `${at + 1} of ${chosen.length}` : "none of these";
      shown.replaceChildren(...(chosen.length ? sampleParts(chosen[at], row, other.value, found) : []));
    }
    draw();
    return fold("Predictions of the first seed", make("p", { class: "where" },
      `Samples that rows disagree on most, then others at even steps.${found.note ? ` ${found.note}.` : ""}`),
      make("div", { class: "browse" }, before, next, place, kind,
        others.length ? make("label", {}, "beside ", other) : null), shown);
  }

  function sampleParts(sample, row, other, found) {
    const names = [row.name, ...(other ? [other] : [])];
    const lines = Object.entries(sample.truth).map(([target, truth]) => make("tr", {},
      make("th", { scope: "row" }, target), make("td", {}, truth),
      ...names.map((name) => {
        const [answer, share] = sample.said[name][target];
        const is = answer === truth;
        return make("td", { class: is ? "right" : "wrong" },
          `${is ? "✓" : "✗"} ${answer} (${(100 * share).toFixed(0)} %)`);
      })));
    const head = ["Target", "True", ...names.map((name) => found.rows[name])];
    const table = make("table", {}, make("thead", {}, make("tr", {},
      ...head.map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...lines));
    const group = sample.group ? `, ${sample.group}` : "";
    return [make("p", {}, `Sample ${sample.id}${group}`),
      ...Object.entries(sample.shown).map(([name, one]) => stream(name, one)), table];
  }

  function stream(name, one) {
    if (one.kind === "text") return make("blockquote", { "aria-label": name }, one.text);
    if (one.kind === "series") {
      return make("div", { class: "pair" }, ...one.values.map((values, channel) =>
        series(`${name}, channel ${channel}`, values)));
    }
    const scale = Math.max(1, Math.round(96 / one.height));
    const width = one.width * scale, height = one.height * scale;
    const image = make("img", { src: one.src, alt: `${name}: ${one.frames} frames`,
      width: width * one.frames, height });
    const boxes = one.boxes.flatMap((frame, place) => frame.map(([x0, y0, x1, y1]) => make("span", {
      class: "box", style: `left:${(place + x0) * width}px;top:${y0 * height}px;`
        + `width:${(x1 - x0) * width}px;height:${(y1 - y0) * height}px` })));
    return make("div", { class: "strip", tabindex: 0, role: "group", "aria-label": name },
      make("div", {}, image, ...boxes));
  }

  function series(name, values) {
    const points = values.map((value, place) => [place, value]);
    const low = Math.min(...values), span = Math.max(...values) - low || 1;
    const picture = shape("svg", { class: "plot", viewBox: "0 0 380 80", role: "img", "aria-label": name });
    picture.append(shape("text", { x: 0, y: 12 }, name), shape("polyline", { fill: "none",
      stroke: "var(--accent)", "stroke-width": 1.5,
      points: points.map(([x, y]) => [380 * x / (values.length - 1), 76 - 58 * (y - low) / span]
        .map((one) => one.toFixed(1)).join(",")).join(" ") }));
    return picture;
  }

  // an address for each run: #run=<id>

  function follow() {
    const id = new URLSearchParams(location.hash.slice(1)).get("run");
    if (id && data.runs[id]) open(`Run ${id}`, [id], null);
  }
  addEventListener("hashchange", follow);
  follow();
})();

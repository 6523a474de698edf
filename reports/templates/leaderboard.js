
"use strict";
(() => {
  // Everything shown comes from the data block, and goes into the page as text alone.
  const data = JSON.parse(document.getElementById("data").textContent);
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const MOST = 150; // rows drawn at once, unless all are asked for
  const ABOUT = ["backbone", "year", "memory", "kind"];
  const form = document.getElementById("filter");
  const status = document.getElementById("status");
  const dialog = document.getElementById("provenance");
  const sections = [...document.querySelectorAll("section.board")];
  const state = data.boards.map((board) => ({ sort: { setting: board.main, score: board.total }, down: true, all: false, only: null, lines: new Map() }));
  let current = 0;
  for (const board of data.boards) board.rows.forEach((row, place) => { row.place = place; });

  const text = (place) => data.texts[place];
  const make = (name, words, kind) => {
    const node = document.createElement(name);
    if (words !== undefined) node.textContent = words;
    if (kind) node.className = kind;
    return node;
  };

  // A row: {method, remark, backbone, year, memory, kind, badges, ranked, places: {setting: [numbers, source, inferred]}};
  // a number: [as shown, status, off by, why].
  const number = (row, setting, score) => {
    const place = row.places[setting];
    return place && place[0][score][0] !== "-" ? place[0][score] : null;
  };
  const value = (row, setting, score) => {
    const found = number(row, setting, score);
    return found ? Math.round(parseFloat(found[0]) * 100) / 100 : NaN;
  };
  const key = (row, sort) => {
    if (sort.column === undefined) return value(row, sort.setting, sort.score);
    const found = row[sort.column];
    return sort.column === "method" ? `${found} ${row.remark}` : found === "-" ? NaN : found;
  };
  const sorted = (rows, sort, down) => {
    const keyed = rows.map((row, place) => [key(row, sort), place, row]);
    keyed.sort(([a, i], [b, j]) => {
      const [none, other] = [Number.isNaN(a), Number.isNaN(b)];
      if (none || other) return none - other || i - j; // a row without a number is last, either way
      const order = typeof a === "number" ? a - b : collator.compare(a, b);
      return (down ? -order : order) || i - j;
    });
    return keyed.map((entry) => entry[2]);
  };

  const wanted = () => {
    const chosen = new FormData(form);
    const [words, kinds] = [chosen.get("method").trim().toLowerCase(), new Set(chosen.getAll("kind"))];
    const asked = ["backbone", "memory", "year"].map((name) => [name, chosen.get(name)]).filter(([, choice]) => choice);
    return (row) => kinds.has(row.kind) && `${row.method} ${row.remark}`.toLowerCase().includes(words) &&
      asked.every(([name, choice]) => String(row[name]) === choice);
  };

  // The best and the second of a column, by what is shown: what looks equal ranks equal.
  const leaders = (rows, setting, score) => {
    const values = [];
    for (const row of rows) {
      const found = row.ranked && number(row, setting, score);
      if (found && data.statuses[found[1]] !== "inconsistent") values.push(value(row, setting, score));
    }
    if (values.length < 2) return [];
    return [...new Set(values)].sort((a, b) => b - a).slice(0, 2);
  };

  const words = (found) => (data.statuses[found[1]] === "off" ? `off by ${found[2]}` : data.statuses[found[1]]);
  const drawNumber = (board, row, setting, score, best) => {
    const cell = make("td", undefined, "number");
    cell.dataset.score = score;
    const found = number(row, setting, score);
    if (!found) {
      if (row.places[setting]) cell.append(make("span", "–", "value"));
      return cell;
    }
    const competes = row.ranked && data.statuses[found[1]] !== "inconsistent";
    const rank = competes ? best.indexOf(value(row, setting, score)) + 1 : 0;
    cell.className = `number ${data.statuses[found[1]].replace(" ", "-")}${["", " best", " second"][rank]}`;
    const button = make("button", undefined, "value");
    button.type = "button";
    const [mean, spread] = found[0].split(" ± ");
    button.append(make("span", mean, "figure"));
    if (spread) button.append(make("span", ` ±${spread}`, "spread"));
    const mark = (board.comparable || data.statuses[found[1]] !== "unverified") && data.marks[found[1]];
    if (mark) button.append(" ", make("span", mark + found[2], "mark"));
    if (row.places[setting][2]) button.append(" ", make("span", data.inferred, "inferred"));
    const ranked = ["", ", best of its column", ", second of its column"][rank];
    const inferred = row.places[setting][2] ? ", setting inferred" : "";
    button.setAttribute("aria-label", `${found[0]}, ${row.method}, ${board.settings[setting]} ${data.scores[score]}, ` +
      `${words(found)}${inferred}${ranked}: where it comes from`);
    [button.dataset.row, button.dataset.setting, button.dataset.number] = [row.place, setting, score];
    cell.append(button);
    return cell;
  };

  const drawRow = (board, row, settings, best) => {
    const line = make("tr");
    const head = make("th");
    head.scope = "row";
    head.append(make("span", row.method, "name"), " ");
    if (row.remark) head.append(make("span", row.remark, "remark"), " ");
    for (const [name, why] of row.badges) {
      const badge = make("span", text(name), "badge");
      badge.title = text(why);
      head.append(badge, " ");
    }
    head.append(make("span", `${row.backbone}, ${row.kind}`, "which"));
    line.append(head);
    for (const setting of settings)
      for (let score = 0; score < data.scores.length; score += 1)
        line.append(drawNumber(board, row, setting, score, best[setting][score]));
    line.append(...ABOUT.map((name) => make("td", row[name] === "-" ? "–" : row[name], "about-row")));
    return line;
  };

  // ``reordered``: the rows and columns on show are the same as before, and so are their lines.
  const draw = (reordered = false) => {
    const [board, now, section] = [data.boards[current], state[current], sections[current]];
    const settings = board.settings.map((_, place) => place).filter((place) => now.only === null || place === now.only);
    const takes = wanted();
    const rows = board.rows.filter((row) => takes(row) && settings.some((place) => row.places[place]));
    const best = {};
    for (const setting of settings) best[setting] = data.scores.map((_, score) => leaders(rows, setting, score));
    const drawn = sorted(rows, now.sort, now.down).slice(0, now.all ? rows.length : MOST);
    if (!reordered) now.lines.clear();
    for (const row of drawn) if (!now.lines.has(row)) now.lines.set(row, drawRow(board, row, settings, best));
    section.querySelector("tbody").replaceChildren(...drawn.map((row) => now.lines.get(row)));
    for (const head of section.querySelectorAll("th[data-setting]")) head.hidden = !settings.includes(+head.dataset.setting);
    for (const button of section.querySelectorAll(".sort")) {
      const head = button.parentNode.dataset;
      const chosen = head.column ? head.column === now.sort.column
        : +head.setting === now.sort.setting && +head.score === now.sort.score;
      button.parentNode.setAttribute("aria-sort", chosen ? (now.down ? "descending" : "ascending") : "none");
    }
    const more = section.querySelector(".more");
    more.hidden = drawn.length === rows.length;
    more.textContent = `Show all ${rows.length} rows`;
    const by = now.sort.column || `${board.settings[now.sort.setting]} ${data.scores[now.sort.score]}`;
    status.textContent = `${drawn.length} of ${board.rows.length} rows shown, by ${by}, ${now.down ? "descending" : "ascending"}.`;
  };

  const sortBy = (head) => {
    const now = state[current];
    const sort = head.column ? { column: head.column } : { setting: +head.setting, score: +head.score };
    const same = sort.column === now.sort.column && sort.setting === now.sort.setting && sort.score === now.sort.score;
    now.down = same ? !now.down : sort.column === undefined || sort.column === "year"; // numbers start with the best
    now.sort = sort;
    draw(true);
  };

  const open = (button) => {
    const [board, setting, score] = [data.boards[current], +button.dataset.setting, +button.dataset.number];
    const row = board.rows[+button.dataset.row];
    const [, source, inferred] = row.places[setting];
    const found = number(row, setting, score);
    const pairs = [["Number", `${found[0]} (${data.scores[score]}, ${board.settings[setting]})`],
      ["Status", words(found) + (inferred ? "; the setting is inferred" : "")], ["Why", text(found[3])]];
    for (const [name, why] of row.badges) pairs.push(["Caution", `${text(name)}. ${text(why)}`]);
    const known = data.sources[source];
    for (let place = 0; place < known.length; place += 2) pairs.push([text(known[place]), text(known[place + 1])]);
    document.getElementById("provenance-title").textContent = `${row.method}${row.remark ? ` (${row.remark})` : ""}`;
    dialog.querySelector("dl").replaceChildren(...pairs.flatMap(([label, told]) => [make("dt", label), make("dd", told)]));
    dialog.showModal();
    dialog.scrollTop = 0;
  };

  const choose = () => {
    const asked = data.boards.findIndex((board) => board.id === location.hash.slice(1));
    if (asked >= 0) current = asked;
    sections.forEach((section, place) => { section.hidden = place !== current; });
    for (const link of document.querySelectorAll("nav.boards a")) {
      if (+link.dataset.board === current) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    draw();
  };

  form.elements.method.addEventListener("input", () => draw());
  form.addEventListener("change", () => draw());
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(draw)); // after the form has been emptied
  for (const section of sections) {
    section.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.classList.contains("sort")) sortBy(button.parentNode.dataset);
      else if (button.classList.contains("more")) { state[current].all = true; draw(true); }
      else open(button);
    });
    section.querySelector(".setting").addEventListener("change", (event) => {
      const now = state[current];
      now.only = event.target.value === "" ? null : +event.target.value;
      if (now.only !== null && now.sort.column === undefined) now.sort = { setting: now.only, score: now.sort.score };
      draw();
    });
  }
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  window.addEventListener("hashchange", choose);
  if (window.matchMedia("(max-width: 40rem)").matches) { // a phone: no room for all settings, nor for the filters
    document.getElementById("filters").open = false;
    sections.forEach((section, place) => {
      state[place].only = data.boards[place].main;
      section.querySelector(".setting").value = data.boards[place].main;
    });
  }
  choose();
})();

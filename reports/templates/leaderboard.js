"use strict";
(() => {
  // Everything shown comes from the data block, and goes into the page as text alone.
  const data = JSON.parse(document.getElementById("data").textContent);
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const MOST = 150; // rows drawn at once, unless all are asked for
  const CHOICES = ["backbone", "background", "memory", "year"];
  const form = document.getElementById("filter");
  const status = document.getElementById("status");
  const dialog = document.getElementById("provenance");
  const sections = [...document.querySelectorAll("section.board")];
  const phone = window.matchMedia("(max-width: 40rem)").matches; // no room for all settings, nor for the filters
  const start = (board) => ({ sort: { setting: board.main, score: board.total }, down: true, all: false, only: phone ? board.main : null });
  const state = data.boards.map((board) => ({ ...start(board), lines: new Map() }));
  const kinds = [...form.elements.kind.length === undefined ? [form.elements.kind] : form.elements.kind];
  let current = 0;
  let chosen = null; // what the filters say
  for (const board of data.boards) board.rows.forEach((row, place) => { row.place = place; });

  const text = (place) => data.texts[place];
  const make = (name, words, kind) => {
    const node = document.createElement(name);
    if (words !== undefined) node.textContent = words;
    if (kind) node.className = kind;
    return node;
  };

  // A row: {method, remark, backbone, run_by, year, memory, supervision, keeps (images: yes, no or -), kind, badges,
  // ranked, places: {setting: numbers}}; a number: [as shown, status, differences, why, background, flags, kind, source, and of what was measured [mean, spread]].
  const readFilters = () => {
    const now = new FormData(form);
    chosen = Object.fromEntries(CHOICES.map((name) => [name, now.get(name)]));
    chosen.words = now.get("method").trim().toLowerCase();
    chosen.kinds = new Set(now.getAll("kind"));
  };
  const place = (row, setting) => {
    const numbers = row.places[setting];
    if (!numbers || (chosen.background && String(numbers[data.boards[current].total][4]) !== chosen.background)) return null;
    return numbers;
  };
  const number = (row, setting, score) => {
    const numbers = place(row, setting);
    return numbers && numbers[score][0] !== "-" && chosen.kinds.has(text(numbers[score][6])) ? numbers[score] : null;
  };
  const takes = (row, settings) =>
    `${row.method} ${row.remark}`.toLowerCase().includes(chosen.words) &&
    ["backbone", "year"].every((name) => !chosen[name] || String(row[name]) === chosen[name]) &&
    (!chosen.memory || row.keeps === chosen.memory) &&
    settings.some((setting) => data.scores.some((_, score) => number(row, setting, score)));
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
    const keyed = rows.map((row, index) => [key(row, sort), index, row]);
    keyed.sort(([a, i], [b, j]) => {
      const [none, other] = [Number.isNaN(a), Number.isNaN(b)];
      if (none || other) return none - other || i - j; // a row without a number is last, either way
      const order = typeof a === "number" ? a - b : collator.compare(a, b);
      return (down ? -order : order) || i - j;
    });
    return keyed.map((entry) => entry[2]);
  };

  // Numbers with and without the background are ranked apart; where that is not known, a number is not ranked.
  const competes = (row, found) => row.ranked && data.statuses[found[1]] !== "inconsistent" && found[4] !== 2;
  // The best and the second of a column, by what is shown (what looks equal ranks equal): [without, with background].
  const leaders = (rows, setting, score) => [0, 1].map((counted) => {
    const values = [];
    for (const row of rows) {
      const found = number(row, setting, score);
      if (found && found[4] === counted && competes(row, found)) values.push(value(row, setting, score));
    }
    return values.length < 2 ? [] : [...new Set(values)].sort((a, b) => b - a).slice(0, 2);
  });

  const words = (found) => {
    const name = data.statuses[found[1]];
    return name === "off" ? `off by ${found[2]}` : found[2] ? `${name}: ${found[2]}` : name;
  };
  const flagged = (found) => data.flags.filter((_, index) => found[5][index]);
  const background = (found, score) => (data.scores[score] === "new" ? "" : data.counted[found[4]]);
  const drawNumber = (board, row, setting, score, best) => {
    const cell = make("td", undefined, "number");
    cell.dataset.score = score;
    const found = number(row, setting, score);
    if (!found) {
      if (place(row, setting)) cell.append(make("span", "–", "value"));
      return cell;
    }
    const rank = competes(row, found) ? best[found[4]].indexOf(value(row, setting, score)) + 1 : 0;
    cell.className = `number ${data.statuses[found[1]].replaceAll(" ", "-")}${["", " best", " second"][rank]}`;
    const button = make("button", undefined, "value");
    button.type = "button";
    const [mean, spread] = found[0].split(" ± ");
    button.append(make("span", mean, "figure"));
    if (spread) button.append(make("span", ` ±${spread}`, "spread"));
    const counted = background(found, score);
    if (counted) button.append(" ", make("span", counted, "counted"));
    for (const [mark, kind] of flagged(found)) button.append(" ", make("span", mark, kind));
    const mark = (board.comparable || data.statuses[found[1]] !== "unverified") && data.marks[found[1]];
    if (mark) button.append(" ", make("span", mark + found[2], "mark"));
    const ranked = ["", ", best of its column", ", second of its column"][rank];
    const flags = flagged(found).map((flag) => `, ${flag[2]}`).join("");
    button.setAttribute("aria-label", `${found[0]}, ${row.method}, ${board.settings[setting]} ${data.scores[score]}, ` +
      `${text(found[6])}${found[5][2] ? "?" : ""}, ${words(found)}${flags}${ranked}: where it comes from`);
    button.title = [...pairs(found)].filter(([label]) => label === "Source" || label === "Run by").map((pair) => pair.join(": ")).join("\n");
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
      const badge = make("span", text(name), text(name).startsWith("not known") ? "badge unknown" : "badge");
      badge.title = text(why);
      head.append(badge, " ");
    }
    const who = { "-": "run by: not known", here: "run here" }[row.run_by] ?? `run by ${row.run_by}`;
    head.append(make("span", `${row.backbone}, ${who}`, "which"));
    line.append(head);
    for (const setting of settings)
      for (let score = 0; score < data.scores.length; score += 1)
        line.append(drawNumber(board, row, setting, score, best[setting][score]));
    line.append(...data.about.map((name) => make("td", row[name] === "-" ? "–" : row[name], "about-row")));
    return line;
  };

  const shown = () => {
    const [board, now] = [data.boards[current], state[current]];
    const settings = board.settings.map((_, index) => index).filter((index) => now.only === null || index === now.only);
    return [settings, board.rows.filter((row) => takes(row, settings))];
  };

  // ``reordered``: the rows and columns on show are the same as before, and so are their lines.
  const draw = (reordered = false) => {
    const [board, now, section] = [data.boards[current], state[current], sections[current]];
    readFilters();
    const [settings, rows] = shown();
    const best = {};
    for (const setting of settings) best[setting] = data.scores.map((_, score) => leaders(rows, setting, score));
    const drawn = sorted(rows, now.sort, now.down).slice(0, now.all ? rows.length : MOST);
    if (!reordered) now.lines.clear();
    for (const row of drawn) if (!now.lines.has(row)) now.lines.set(row, drawRow(board, row, settings, best));
    section.querySelector("tbody").replaceChildren(...drawn.map((row) => now.lines.get(row)));
    for (const head of section.querySelectorAll("th[data-setting]")) head.hidden = !settings.includes(+head.dataset.setting);
    for (const button of section.querySelectorAll(".sort")) {
      const head = button.parentNode.dataset;
      const same = head.column ? head.column === now.sort.column
        : +head.setting === now.sort.setting && +head.score === now.sort.score;
      button.parentNode.setAttribute("aria-sort", same ? (now.down ? "descending" : "ascending") : "none");
    }
    section.querySelector(".setting").value = now.only === null ? "" : now.only;
    const more = section.querySelector(".more");
    more.hidden = drawn.length === rows.length;
    more.textContent = `Show all ${rows.length} rows`;
    status.textContent = `${drawn.length} of ${board.rows.length} rows shown, by ${sortName(board, now)}, ${now.down ? "descending" : "ascending"}.`;
    history.replaceState(null, "", address());
  };

  const sortName = (board, now) => now.sort.column || `${board.settings[now.sort.setting]} ${data.scores[now.sort.score]}`;

  // The address holds what differs from the page as it opens, so that it can be sent: #board&setting=...&sort=...
  const address = () => {
    const [board, now, asked] = [data.boards[current], state[current], new URLSearchParams()];
    const usual = start(board);
    if (now.only !== usual.only) asked.set("setting", now.only === null ? "" : board.settings[now.only]);
    if (sortName(board, now) !== sortName(board, usual) || !now.down) asked.set("sort", `${now.down ? "-" : ""}${sortName(board, now)}`);
    if (now.all) asked.set("rows", "all");
    if (chosen.words) asked.set("method", chosen.words);
    for (const name of CHOICES) if (chosen[name]) asked.set(name, chosen[name]);
    if (chosen.kinds.size < kinds.length) asked.set("kind", [...chosen.kinds].join(","));
    return `#${[board.id, asked].join("&").replace(/&$/, "")}`;
  };
  const readAddress = () => {
    const [name, ...rest] = location.hash.slice(1).split("&");
    const found = data.boards.findIndex((board) => board.id === name);
    if (found >= 0) current = found;
    if (!rest.length) return; // a link to a board keeps the filters
    const [asked, board] = [new URLSearchParams(rest.join("&")), data.boards[current]];
    const now = Object.assign(state[current], start(board));
    const settingOf = (words) => board.settings.indexOf(words);
    if (asked.has("setting")) now.only = settingOf(asked.get("setting")) < 0 ? null : settingOf(asked.get("setting"));
    if (asked.has("sort")) {
      now.down = asked.get("sort").startsWith("-");
      const by = asked.get("sort").replace(/^-/, "");
      const [setting, score] = by.split(" ");
      const known = settingOf(setting) >= 0 && data.scores.includes(score);
      if (known) now.sort = { setting: settingOf(setting), score: data.scores.indexOf(score) };
      else if (["method", ...data.about].includes(by)) now.sort = { column: by };
    }
    now.all = asked.get("rows") === "all";
    form.elements.method.value = asked.get("method") || "";
    for (const choice of CHOICES) form.elements[choice].value = asked.get(choice) || "";
    const wanted = asked.has("kind") ? new Set(asked.get("kind").split(",")) : null;
    for (const box of kinds) box.checked = !wanted || wanted.has(box.value);
  };

  const sortBy = (head) => {
    const now = state[current];
    const sort = head.column ? { column: head.column } : { setting: +head.setting, score: +head.score };
    const same = sort.column === now.sort.column && sort.setting === now.sort.setting && sort.score === now.sort.score;
    now.down = same ? !now.down : sort.column === undefined || sort.column === "year"; // numbers start with the best
    now.sort = sort;
    draw(true);
  };

  function* pairs(found) {
    const known = data.sources[found[7]];
    for (let index = 0; index < known.length; index += 2) yield [text(known[index]), text(known[index + 1])];
  }
  // Addresses come from the ledger alone, never from a record, which may be anybody's.
  const links = (addresses) => {
    const told = make("dd");
    for (const address of addresses.split(" ")) {
      const link = make("a", address);
      if (/^https?:\/\//.test(address)) link.href = address;
      link.rel = "noopener noreferrer";
      told.append(link, " ");
    }
    return told;
  };
  const open = (button) => {
    const [board, setting, score] = [data.boards[current], +button.dataset.setting, +button.dataset.number];
    const row = board.rows[+button.dataset.row];
    const found = number(row, setting, score);
    const counted = ["is not one of its classes", "is one of its classes", "may or may not be one of its classes: not known"];
    const told = [["Number", `${found[0]} (${data.scores[score]}, ${board.settings[setting]})`],
      ["Status", [words(found), ...flagged(found).map((flag) => flag[2])].join("; ")], ["Why", text(found[3])],
      ["Background", counted[found[4]]]];
    for (const [name, why] of row.badges) told.push(["Caution", `${text(name)}. ${text(why)}`]);
    told.push(...pairs(found));
    document.getElementById("provenance-title").textContent = `${row.method}${row.remark ? ` (${row.remark})` : ""}`;
    dialog.querySelector("dl").replaceChildren(...told.flatMap(([label, words]) =>
      [make("dt", label), label === data.links ? links(words) : make("dd", words)]));
    dialog.showModal();
    dialog.scrollTop = 0;
  };

  // A line a number on show, with what the table says about it.
  const records = () => {
    const [board, now, lines] = [data.boards[current], state[current], []];
    const [settings, rows] = shown();
    for (const row of sorted(rows, now.sort, now.down))
      for (const setting of settings)
        data.scores.forEach((score, index) => {
          const found = number(row, setting, index);
          if (!found) return;
          const [exact, spread] = found[8] ?? [+found[0], null]; // not rounded
          const known = new Map(pairs(found));
          lines.push({ board: board.title, setting: board.settings[setting], score, method: row.method, remark: row.remark,
            network: row.backbone, run_by: row.run_by === "-" ? null : row.run_by, value: exact, spread,
            kind: text(found[6]), kind_inferred: !!found[5][2], background: [false, true, null][found[4]], status: words(found), setting_inferred: !!found[5][0],
            disputed: !!found[5][1], badges: row.badges.map(([name]) => text(name)).join("; "), year: row.year === "-" ? null : row.year,
            memory: row.memory === "-" ? null : row.memory, supervision: row.supervision === "-" ? null : row.supervision,
            source: known.get("Source") ?? null, links: known.get(data.links) ?? null, run_keys: known.get("Run keys") ?? null });
        });
    return lines;
  };
  const field = (found) => {
    if (typeof found !== "string") return found === null ? "" : String(found);
    const safe = /^[=+\-@\t\r\n＝＋－＠]/.test(found) ? `'${found}` : found; // a spreadsheet would take it for a formula
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const download = (form) => {
    const lines = records();
    const csv = () => [Object.keys(lines[0] ?? {}), ...lines.map(Object.values)].map((line) => line.map(field).join(",") + "\n").join("");
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([form === "json" ? JSON.stringify(lines) : csv()], { type: form === "json" ? "application/json" : "text/csv" }));
    link.download = `${data.boards[current].id}.${form}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000); // a busy browser begins to save later than now
  };

  const choose = () => {
    readAddress();
    sections.forEach((section, index) => { section.hidden = index !== current; });
    for (const link of document.querySelectorAll("nav.boards a")) {
      if (+link.dataset.board === current) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    draw();
  };

  form.elements.method.addEventListener("input", () => draw());
  form.addEventListener("change", (event) => {
    // The method is drawn as it is typed. Its change comes with the click that leaves the field: drawn again then, the
    // button below the pointer would be another one, and the click be lost.
    if (event.target !== form.elements.method) draw();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("[type=reset]").addEventListener("click", (event) => {
    event.preventDefault(); // by hand, so that the rows are drawn at once: the event reset comes before the form is empty
    form.reset();
    draw();
  });
  for (const section of sections) {
    section.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.classList.contains("sort")) sortBy(button.parentNode.dataset);
      else if (button.classList.contains("more")) { state[current].all = true; draw(true); }
      else if (button.classList.contains("download")) download(button.dataset.form);
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
  if (phone) document.getElementById("filters").open = false;
  choose();
})();

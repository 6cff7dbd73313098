// The lens of the report: an index to filter and search, replies coloured by provenance, candidates side by side.
// Text from replies reaches the page through text nodes only.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { index, prompts, replies } = data;
  const PAGE = 25,
    OPTIONS = 200,
    LEAST_TOKENS = 3,
    LONG = 3000;
  const KINDS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };
  const WORDS = {
    teacher: "teacher sentence",
    student: "student sentence",
    common: "common, within the margin",
    short: "too short to count, or not scored",
  };
  // What hides or turns the text around it, as builder/report_page.py has it
  const UNSEEN =
    /([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufdd0-\ufdef\ufffe\uffff]|\p{Cs})\1*/gu;
  const CLOSES = { "```": "```", "`": "`", $$: "$$", $: "$", "\\[": "\\]", "\\(": "\\)" };
  const state = { margin: data.margin, reply: null, beside: null, found: [], page: 0, sort: null, down: true };

  // ---- columns -----------------------------------------------------------------------------------------------
  function array(text, kind) {
    const raw = atob(text),
      bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new KINDS[kind](bytes.buffer);
  }
  function numbers(column) {
    const values = array(column.data, column.type),
      bits = 8 * values.BYTES_PER_ELEMENT;
    const missing = column.type[0] === "u" ? 2 ** bits - 1 : -(2 ** (bits - 1));
    return (i) => (values[i] === missing ? null : values[i] / column.scale);
  }
  const number = {},
    code = {};
  for (const name of ["tokens", "teacher", "counted", "delta", "probability", "distinct"])
    number[name] = numbers(index[name]);
  for (const name of ["domain", "temperature", "role", "verdict", "rules", "stages"])
    code[name] = array(index[name].data, index[name].type);
  const word = (name, i) => index[name].words[code[name][i]];
  const set = (name, i) => index[name].sets[code[name][i]].map((place) => index[name].words[place]);
  const place = new Map(replies.map((reply, i) => [reply.id, i]));
  const isColoured = replies.some((reply) => reply.teacher);
  const idOf = (i) => (i < replies.length ? replies[i].id : index.ids[i]);

  for (const reply of replies) {
    if (!reply.teacher) continue;
    for (const name of ["teacher", "student"]) reply[name] = array(reply[name], "f4");
    for (const name of ["teacherTokens", "studentTokens"]) reply[name] = array(reply[name], "u2");
  }
  function whose(reply, n) {
    if (!reply.teacher || n < 1) return "short";
    const gap = reply.teacher[n - 1] - reply.student[n - 1];
    if (Number.isNaN(gap) || Math.min(reply.teacherTokens[n - 1], reply.studentTokens[n - 1]) < LEAST_TOKENS)
      return "short";
    return gap > state.margin ? "teacher" : -gap > state.margin ? "student" : "common";
  }
  function tally(reply) {
    const found = { teacher: 0, student: 0, common: 0, short: 0 };
    for (let n = 1; n <= (reply.teacher || []).length; n++) found[whose(reply, n)]++;
    return found;
  }

  // ---- elements ----------------------------------------------------------------------------------------------
  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      if (value !== null && value !== undefined) made.setAttribute(name, value);
    for (const child of children) if (child !== null) made.append(child);
    return made;
  }
  function visible(parent, text) {
    let done = 0;
    for (const match of text.matchAll(UNSEEN)) {
      if (match.index > done) parent.append(text.slice(done, match.index));
      const name = "U+" + match[1].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      const times = match[0].length / match[1].length;
      parent.append(el("b", { class: "code" }, times > 1 ? `${name} ×${times}` : name));
      done = match.index + match[0].length;
    }
    if (done < text.length) parent.append(text.slice(done));
    return parent;
  }
  // Code and formulas as they were written, set apart: their places in a text. A mark that nothing closes is text.
  function marked(text) {
    const open = /```|`|\$\$|\$|\\\[|\\\(/g,
      dead = new Set(),
      found = [];
    let match;
    while ((match = open.exec(text))) {
      const mark = match[0],
        start = match.index;
      if (dead.has(mark)) continue;
      const close = text.indexOf(CLOSES[mark], start + mark.length);
      if (close < 0) {
        dead.add(mark);
        continue;
      }
      const inside = text.slice(start + mark.length, close),
        single = mark === "$" || mark === "`";
      if (
        !inside.trim() ||
        (single && inside.includes("\n")) ||
        (mark === "$" && (/^\s|\s$/.test(inside) || /\d/.test(text[close + 1] || "")))
      )
        continue;
      const isBlock = mark === "```" || mark === "$$" || mark === "\\[";
      let end = close + CLOSES[mark].length;
      open.lastIndex = end;
      if (isBlock && text[end] === "\n") end++; // the block ends its line by itself
      found.push([start, end, `${mark[0] === "`" ? "program" : "math"}${isBlock ? " block" : ""}`]);
    }
    return found;
  }
  // Text that stands at `from` of the text whose marks are given
  function styled(parent, text, marks, from = 0, first = 0) {
    let done = 0;
    for (let at = first; at < marks.length; at++) {
      const [start, end, kind] = marks[at];
      if (end <= from) continue;
      if (start >= from + text.length) break;
      const low = Math.max(0, start - from),
        high = Math.min(text.length, end - from);
      visible(parent, text.slice(done, low));
      parent.append(visible(el("code", { class: kind }), text.slice(low, high)));
      done = high;
    }
    return visible(parent, text.slice(done));
  }
  const shown = (value, digits) =>
    value === null || value === undefined || Number.isNaN(value)
      ? "–"
      : digits === undefined
        ? value.toLocaleString("en")
        : value.toFixed(digits).replace("-", "−");
  const cell = (value, digits) => el("td", { class: "n" }, shown(value, digits));
  const named = (text) => visible(el("bdi"), text.length > 120 ? text.slice(0, 119) + "…" : text);

  // ---- what became of a reply --------------------------------------------------------------------------------
  function broken(i) {
    const seen = new Map(
      (replies[i]?.broken || []).map(([rule, observed, threshold]) => [rule, [observed, threshold]]),
    );
    return set("rules", i).map((rule) => {
      const [observed, threshold] = seen.get(rule) || [null, null];
      const values = [
        observed === null ? null : `observed ${+observed.toPrecision(4)}`,
        threshold === null ? null : `allowed ${+threshold.toPrecision(4)}`,
      ];
      return rule + (observed === null && threshold === null ? "" : ` (${values.filter(Boolean).join(", ")})`);
    });
  }
  const isKept = (i) => set("stages", i).length > 0;
  function fate(i) {
    const reply = replies[i],
      rules = broken(i),
      rank = reply?.rank ? `rank ${reply.rank} of ${reply.rivals} by ${data.selector}` : null;
    if (isKept(i))
      return [
        `Kept in ${set("stages", i).join(", ")}`,
        reply && reply.position !== null ? `, position ${shown(reply.position)}` : "",
        rank ? `: ${rank}` : "",
      ].join("");
    if (rules.length) return `Dropped by ${rules.join("; ")}`;
    if (rank) return `${reply.rank > data.keep ? "Outranked" : "In no stage"}: ${rank}`;
    return "Breaks no rule, in no stage";
  }
  function why(a, b) {
    const [win, lose] = !isKept(a) && isKept(b) ? [b, a] : [a, b];
    if (!isKept(win)) return "Neither is kept.";
    const begin = `${label(win)} is kept`;
    if (isKept(lose))
      return word("temperature", a) === word("temperature", b)
        ? "Both are kept."
        : "Both are kept: temperatures are ranked apart.";
    if (set("rules", lose).length) return `${begin}; ${label(lose)} was dropped by ${broken(lose).join("; ")}.`;
    if (word("temperature", a) !== word("temperature", b))
      return `${begin}; ${label(lose)} was outranked at its own temperature.`;
    const one = [number.teacher(win), number.delta(win)],
      other = [number.teacher(lose), number.delta(lose)];
    return [
      `${begin}: rank ${shown(replies[win].rank)} against ${shown(replies[lose].rank)} by ${data.selector}`,
      `teacher sentences at margin ${data.countedAt}: ${shown(one[0])} against ${shown(other[0])}`,
      `mean_delta ${shown(one[1], 3)} against ${shown(other[1], 3)}.`,
    ].join("; ");
  }
  const label = (i) => idOf(i).slice(0, 8);

  // ---- the list ----------------------------------------------------------------------------------------------
  const COLUMNS = [
    ["id", null],
    ["domain", null],
    ["T", (i) => Number(word("temperature", i))],
    ["tokens", number.tokens],
    ["teacher sentences", number.teacher],
    ["counted", number.counted],
    ["mean_delta", number.delta],
    ["probability", number.probability],
    ["distinct 4-grams", number.distinct],
    ["verdict", null],
    ["what became of it", null],
  ];
  const texts = replies.map((reply, i) =>
    [
      ...prompts[reply.prompt].messages.map((one) => one[1]),
      ...reply.parts.reasoning.map((one) => one[1]),
      "\n\n",
      ...reply.parts.answer.map((one) => one[1]),
    ]
      .join("")
      .toLowerCase(),
  );
  function fill(id, name, first) {
    const counts = new Map(),
      groups = index[name].sets,
      values = code[name];
    for (let i = 0; i < index.size; i++)
      for (const at of groups ? groups[values[i]] : [values[i]]) counts.set(at, (counts.get(at) || 0) + 1);
    const select = byId(id);
    select.append(...first.map(([value, text]) => el("option", { value }, text)));
    const listed = [...counts].sort((a, b) => (name === "temperature" ? a[0] - b[0] : b[1] - a[1])).slice(0, OPTIONS);
    for (const [at, count] of listed)
      select.append(
        el(
          "option",
          { value: at },
          visible(el("span"), index[name].words[at].slice(0, 80)).textContent + ` (${shown(count)})`,
        ),
      );
    select.closest(".field").hidden = counts.size < 2 && !first.some(([value]) => value === "none");
  }
  fill("domain", "domain", [["", "all"]]);
  fill("temperature", "temperature", [["", "all"]]);
  fill("verdict", "verdict", [["", "all"]]);
  fill("role", "role", [["", "all"]]);
  fill("rule", "rules", [
    ["", "all"],
    ["none", "breaks none"],
    ["any", "breaks one"],
  ]);
  fill("stage", "stages", [
    ["", "all"],
    ["none", "in none"],
    ["any", "in one"],
  ]);

  function filter() {
    const wanted = byId("search").value.trim().toLowerCase();
    const limit = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
    const bounds = [
      [number.tokens, limit("tokens"), limit("tokens-most")],
      [number.teacher, limit("teacher"), null],
      [number.delta, limit("delta"), null],
    ].filter(([, low, high]) => low !== null || high !== null);
    const codes = ["domain", "temperature", "verdict", "role"]
      .filter((name) => byId(name).value !== "")
      .map((name) => [code[name], Number(byId(name).value)]);
    const sets = [
      ["rule", "rules"],
      ["stage", "stages"],
    ]
      .filter(([id]) => byId(id).value !== "")
      .map(([id, name]) => {
        const value = byId(id).value,
          test =
            value === "none"
              ? (one) => !one.length
              : value === "any"
                ? (one) => one.length > 0
                : (one) => one.includes(Number(value));
        return [code[name], index[name].sets.map(test)];
      });
    const size = byId("texts").checked ? replies.length : index.size;
    state.found = [];
    for (let i = 0; i < size; i++) {
      if (!codes.every(([values, value]) => values[i] === value) || !sets.every(([values, good]) => good[values[i]]))
        continue;
      if (
        !bounds.every(([of, low, high]) => {
          const value = of(i);
          return value !== null && (low === null || value >= low) && (high === null || value <= high);
        })
      )
        continue;
      if (
        wanted &&
        !idOf(i).includes(wanted) &&
        !wanted.startsWith(index.ids[i]) &&
        !(i < texts.length && texts[i].includes(wanted))
      )
        continue;
      state.found.push(i);
    }
    const key = state.sort === null ? null : COLUMNS[state.sort][1];
    if (key) {
      const keys = new Map(state.found.map((i) => [i, key(i)]));
      const side = state.down ? -1 : 1;
      state.found.sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        return x === null ? (y === null ? a - b : 1) : y === null ? -1 : side * (x - y) || a - b;
      });
    }
    state.page = 0;
    list();
    highlight();
  }
  function head() {
    const row = el("tr");
    COLUMNS.forEach(([name, key], at) => {
      const sorted = state.sort === at;
      const cell = el("th", {
        scope: "col",
        class: key ? "n" : null,
        "aria-sort": sorted ? (state.down ? "descending" : "ascending") : null,
      });
      if (!key) cell.append(name);
      else {
        const button = el(
          "button",
          { type: "button", class: "sort" },
          name,
          el("span", { "aria-hidden": "true" }, sorted ? (state.down ? " ↓" : " ↑") : " ↕"),
        );
        button.addEventListener("click", () => {
          state.down = sorted ? !state.down : true;
          state.sort = at;
          filter();
          head();
          byId("rows").tHead.querySelectorAll("th")[at].firstChild.focus();
        });
        cell.append(button);
      }
      row.append(cell);
    });
    byId("rows").tHead.replaceChildren(row);
  }
  function list() {
    const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
    const body = byId("rows").tBodies[0];
    body.replaceChildren(
      ...state.found.slice(state.page * PAGE, (state.page + 1) * PAGE).map((i) => {
        const button = el(
          "button",
          { type: "button", class: "link", "data-at": i, "aria-current": i === state.reply ? "true" : null },
          visible(el("code"), label(i)),
        );
        const rules = set("rules", i),
          stages = set("stages", i);
        const outcome = stages.length
          ? `in ${stages.join(", ")}`
          : rules.length
            ? `breaks ${rules.join(", ")}`
            : "in no stage";
        return el(
          "tr",
          { class: i === state.reply ? "current" : null },
          el("th", { scope: "row" }, button),
          el("td", { class: "domain" }, named(word("domain", i))),
          el("td", { class: "n" }, word("temperature", i)),
          cell(number.tokens(i)),
          cell(number.teacher(i)),
          cell(number.counted(i)),
          cell(number.delta(i), 3),
          cell(number.probability(i), 2),
          cell(number.distinct(i), 2),
          el(
            "td",
            { class: `verdict ${["correct", "wrong"].includes(word("verdict", i)) ? word("verdict", i) : ""}` },
            word("verdict", i),
          ),
          el("td", { class: "fate" }, named(outcome)),
        );
      }),
    );
    const here = state.found.filter((i) => i < replies.length).length;
    byId("found").textContent =
      `${shown(state.found.length)} of ${shown(index.size)} replies found, ${shown(here)} with text here`;
    byId("page").textContent = `page ${state.page + 1} of ${pages}`;
    byId("back").disabled = state.page === 0;
    byId("on").disabled = state.page >= pages - 1;
  }

  // ---- one reply, or two side by side ------------------------------------------------------------------------
  function sentence(i, n, text, author, marks, from, first) {
    const made = styled(
      el("span", { class: "s", "data-reply": i, "data-n": n, tabindex: -1 }),
      text,
      marks,
      from,
      first,
    );
    if (author) made.classList.add("plain", `from-${author}`);
    return made;
  }
  function part(i, name) {
    const pieces = replies[i].parts[name];
    if (!pieces.length) return null;
    const whole = pieces.map(([, text]) => text).join(""),
      marks = marked(whole),
      length = whole.length;
    const box = el("div", {
      class: `text ${length > LONG ? "long" : ""}`,
      dir: "auto",
      role: "group",
      "aria-label": `${name} of reply ${label(i)}: arrow keys move from sentence to sentence`,
    });
    let from = 0,
      at = 0;
    for (const [n, text, author] of pieces) {
      while (at < marks.length && marks[at][1] <= from) at++;
      box.append(sentence(i, n, text, author, marks, from, at));
      from += text.length;
    }
    box.firstChild.tabIndex = 0;
    return el("div", {}, el("h5", {}, name[0].toUpperCase() + name.slice(1)), box);
  }
  function article(i) {
    const reply = replies[i],
      made = el("article", { "aria-label": `Reply ${reply.id}`, class: isKept(i) ? "kept" : null });
    const counts = el("p", { class: "counts", "data-reply": i });
    made.append(
      el("h4", {}, "Reply ", visible(el("code"), label(i)), isKept(i) ? el("span", { class: "badge" }, "kept") : null),
      visible(el("p", { class: "fate" }), fate(i) + "."),
      counts,
    );
    for (const name of ["reasoning", "answer"]) {
      const one = part(i, name);
      if (one) made.append(one);
    }
    if (reply.hidden) made.append(el("p", { class: "soft" }, `${shown(reply.hidden)} more characters are not shown.`));
    if (reply.teacher) {
      const details = el("details", {}, el("summary", {}, "Both probabilities, sentence by sentence"));
      details.addEventListener("toggle", () => {
        if (details.open && details.children.length === 1) details.append(sentences(i));
      });
      made.append(details);
    }
    return made;
  }
  function sentences(i) {
    const reply = replies[i],
      starts = new Map(),
      body = el("tbody");
    for (const [n, text] of [...reply.parts.reasoning, ...reply.parts.answer])
      if (!starts.has(n)) starts.set(n, text.trim());
    for (const [n, text] of starts) {
      const kind = whose(reply, n),
        gap = reply.teacher[n - 1] - reply.student[n - 1];
      body.append(
        el(
          "tr",
          {},
          el("td", { class: "n" }, String(n)),
          el("td", { class: "begins" }, visible(el("bdi"), text.slice(0, 60))),
          el("td", { "data-kind": n, "data-reply": i }, WORDS[kind]),
          cell(reply.teacher[n - 1], 2),
          cell(reply.student[n - 1], 2),
          cell(gap, 2),
          el("td", { class: "n" }, `${reply.teacherTokens[n - 1]} / ${reply.studentTokens[n - 1]}`),
        ),
      );
    }
    const titles = ["no.", "begins", "whose", "teacher", "student", "difference", "tokens, teacher / student"];
    return el(
      "div",
      { class: "scroll", role: "region", tabindex: 0, "aria-label": `Table: sentences of reply ${label(i)}` },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ...titles.map((title, at) =>
              el("th", { scope: "col", class: at && at !== 1 && at !== 2 ? "n" : null }, title),
            ),
          ),
        ),
        body,
      ),
    );
  }
  function siblings(i) {
    return replies.map((_, at) => at).filter((at) => replies[at].prompt === replies[i].prompt);
  }
  function candidates(i) {
    const own = siblings(i),
      all = prompts[replies[i].prompt].candidates,
      body = el("tbody");
    for (const at of own) {
      const button = el(
        "button",
        { type: "button", class: "link", "data-at": at, "aria-current": at === i ? "true" : null },
        visible(el("code"), label(at)),
      );
      body.append(
        el(
          "tr",
          { class: at === i ? "current" : null },
          el("th", { scope: "row" }, button, isKept(at) ? el("span", { class: "badge" }, "kept") : null),
          el("td", { class: "n" }, word("temperature", at)),
          cell(replies[at].rank),
          cell(number.tokens(at)),
          isColoured ? el("td", { class: "n live", "data-reply": at }) : null,
          cell(number.teacher(at)),
          cell(number.delta(at), 3),
          el("td", {}, word("verdict", at)),
          el("td", { class: "fate" }, named(fate(at))),
        ),
      );
    }
    const counts = isColoured
      ? ["teacher sentences at this margin", `at ${data.countedAt}`]
      : [`teacher sentences at ${data.countedAt}`];
    const titles = ["candidate", "T", "rank", "tokens", ...counts, "mean_delta", "verdict", "what became of it"];
    return el(
      "div",
      { class: "scroll", role: "region", tabindex: 0, "aria-label": "Table: candidates of this prompt" },
      el(
        "table",
        {},
        el(
          "caption",
          {},
          `${own.length === all ? "All" : `${own.length} of`} ${all} candidate${all === 1 ? "" : "s"} of this prompt; `,
          "the selector ranks each temperature apart",
        ),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ...titles.map((title, at) =>
              el("th", { scope: "col", class: at > 0 && at < titles.length - 2 ? "n" : null }, title),
            ),
          ),
        ),
        body,
      ),
    );
  }
  function question(prompt) {
    const made = el("div", { class: "asked" });
    if (prompt.hidden)
      made.append(
        el(
          "p",
          { class: "soft" },
          `The last ${prompt.messages.length} of ${prompt.messages.length + prompt.hidden} messages:`,
        ),
      );
    for (const [role, content, hidden] of prompt.messages) {
      const long = content.length > LONG / 2;
      made.append(
        visible(el("h4"), role === "user" && prompt.messages.length === 1 ? "Question" : role.slice(0, 80)),
        styled(
          el("div", {
            class: `text question ${long ? "long" : ""}`,
            dir: "auto",
            role: long ? "region" : null,
            tabindex: long ? 0 : null,
            "aria-label": long ? "Prompt" : null,
          }),
          content,
          marked(content),
        ),
      );
      if (hidden) made.append(el("p", { class: "soft" }, `${shown(hidden)} more characters are not shown.`));
    }
    if (prompt.gold !== null)
      made.append(visible(el("p", { class: "soft" }, "Reference answer: "), prompt.gold.slice(0, 200)));
    return made;
  }
  function read() {
    const i = state.reply,
      reader = byId("reader");
    hideTip();
    if (i === null) return;
    if (i >= replies.length || i < 0) {
      reader.replaceChildren(elsewhere(i));
      return;
    }
    const reply = replies[i],
      others = siblings(i).filter((at) => at !== i);
    const meta = [
      `temperature ${word("temperature", i)}`,
      number.tokens(i) === null ? null : `${shown(number.tokens(i))} tokens`,
      word("verdict", i),
      reply.finish ? `finished by ${reply.finish}` : null,
      `role ${word("role", i)}`,
      reply.model,
      word("domain", i),
    ];
    const title = el("h3", { id: "reader-title", tabindex: -1 }, "Reply ", visible(el("code"), reply.id));
    const link = el("a", { href: hash(), class: "permalink" }, "link to this reply at this margin");
    const choose = el(
      "select",
      { id: "beside" },
      el("option", { value: "" }, "none"),
      ...others.map((at) =>
        el(
          "option",
          { value: at },
          `${label(at)}, T ${word("temperature", at)}: `,
          isKept(at) ? "kept" : set("rules", at).length ? "dropped" : "not kept",
        ),
      ),
    );
    choose.value = state.beside === null ? "" : String(state.beside);
    choose.addEventListener("change", () => {
      state.beside = choose.value === "" ? null : Number(choose.value);
      read();
      remember();
      byId("beside").focus();
    });
    const pair = el(
      "div",
      { class: `columns ${state.beside === null ? "" : "two"}` },
      article(i),
      state.beside === null ? null : article(state.beside),
    );
    reader.replaceChildren(
      title,
      visible(el("p", { class: "soft" }), meta.filter(Boolean).join(" · ")),
      question(prompts[reply.prompt]),
      candidates(i),
      el("p", { class: "tools" }, el("label", { for: "beside" }, "Beside it: "), choose, " ", link),
      state.beside === null ? "" : visible(el("p", { class: "why" }), why(i, state.beside)),
      pair,
    );
    if (!others.length) choose.disabled = true;
    colour();
    highlight();
  }
  function elsewhere(i) {
    const id = i < 0 ? state.asked : idOf(i);
    const how = data.isRun
      ? [" ", visible(el("code"), `builder explain ${data.name} ${id} --text`), " prints it."]
      : [
          " ",
          visible(el("code"), `builder sql ${data.name} -c "select * from candidates where response_id like '${id}%'"`),
          " prints it.",
        ];
    return el(
      "p",
      {},
      "Reply ",
      visible(el("code"), id),
      i < 0 ? " is not among those with text in this page." : ` has no text in this page. ${fate(i)}.`,
      ...how,
    );
  }
  const isBegun = (reply) =>
    Object.values(reply.parts)
      .flat()
      .some(([, , author]) => author === "student");
  function colour() {
    for (const span of byId("reader").querySelectorAll(".s")) {
      const reply = replies[span.dataset.reply],
        n = Number(span.dataset.n),
        kind = whose(reply, n);
      for (const name of Object.keys(WORDS)) span.classList.toggle(name, name === kind && n > 0);
      if (kind === "teacher" || kind === "student")
        span.style.setProperty("--d", Math.abs(reply.teacher[n - 1] - reply.student[n - 1]).toFixed(2));
    }
    for (const line of byId("reader").querySelectorAll(".counts")) {
      const reply = replies[line.dataset.reply],
        found = tally(reply);
      line.textContent = reply.teacher
        ? `${shown(found.teacher)} of ${shown(reply.teacher.length)} sentences the teacher's, ` +
          `${shown(found.student)} the student's, ${shown(found.common)} common, ` +
          `${shown(found.short)} too short to count`
        : "No sentence scores: the text is not coloured." +
          (isBegun(reply) ? " What the student began is underlined with dots." : "");
    }
    for (const one of byId("reader").querySelectorAll("td.live")) {
      const reply = replies[one.dataset.reply];
      one.textContent = reply.teacher ? shown(tally(reply).teacher) : "–";
    }
    for (const one of byId("reader").querySelectorAll("[data-kind]"))
      one.textContent = WORDS[whose(replies[one.dataset.reply], Number(one.dataset.kind))];
  }
  function highlight() {
    if (!window.Highlight || !CSS.highlights) return;
    CSS.highlights.delete("found");
    const wanted = byId("search").value.trim().toLowerCase(),
      ranges = [];
    if (wanted.length < 2) return;
    const walk = document.createTreeWalker(byId("reader"), NodeFilter.SHOW_TEXT);
    while (walk.nextNode() && ranges.length < 2000) {
      const text = walk.currentNode.data.toLowerCase();
      if (text.length !== walk.currentNode.data.length) continue;
      for (
        let at = text.indexOf(wanted);
        at >= 0 && ranges.length < 2000;
        at = text.indexOf(wanted, at + wanted.length)
      ) {
        const range = new Range();
        range.setStart(walk.currentNode, at);
        range.setEnd(walk.currentNode, at + wanted.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  }

  // ---- probabilities on hover and on focus -------------------------------------------------------------------
  const tip = byId("tip");
  let told = null;
  function showTip(span) {
    const reply = replies[span.dataset.reply],
      n = Number(span.dataset.n);
    if (!reply.teacher || n < 1) return;
    if (told !== span) hideTip();
    told = span;
    const kind = whose(reply, n),
      p = reply.teacher[n - 1],
      q = reply.student[n - 1];
    tip.replaceChildren(
      el("strong", {}, `Sentence ${n} of ${reply.teacher.length}: ${WORDS[kind]}`),
      el("br"),
      `teacher ${shown(p, 3)} · student ${shown(q, 3)} · difference ${shown(p - q, 3)}`,
      el("br"),
      `${reply.teacherTokens[n - 1]} teacher tokens, ${reply.studentTokens[n - 1]} student tokens`,
    );
    tip.hidden = false;
    span.setAttribute("aria-describedby", "tip");
    const box = span.getClientRects()[0] || span.getBoundingClientRect(),
      wide = tip.offsetWidth,
      tall = tip.offsetHeight;
    tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - wide - 8))}px`;
    tip.style.top = `${box.top - tall - 6 < 8 ? box.bottom + 6 : box.top - tall - 6}px`;
  }
  function hideTip() {
    tip.hidden = true;
    if (told) told.removeAttribute("aria-describedby");
    told = null;
  }
  const sentenceAt = (target) => (target instanceof Element ? target.closest(".s") : null);
  const reader = byId("reader");
  reader.addEventListener("pointerover", (event) => {
    const span = sentenceAt(event.target);
    if (span) showTip(span);
  });
  reader.addEventListener("pointerout", (event) => {
    if (sentenceAt(event.target) && !sentenceAt(event.relatedTarget) && !tip.contains(event.relatedTarget)) hideTip();
  });
  tip.addEventListener("pointerleave", hideTip);
  reader.addEventListener("focusin", (event) => {
    const span = sentenceAt(event.target);
    if (span) showTip(span);
    else hideTip();
  });
  reader.addEventListener("focusout", hideTip);
  addEventListener(
    "scroll",
    () => {
      if (told && told !== document.activeElement) hideTip();
      else if (told) showTip(told);
    },
    { passive: true, capture: true },
  );
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
  });
  reader.addEventListener("keydown", (event) => {
    const span = sentenceAt(event.target);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!span || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...span.parentElement.children];
    const next =
      event.key === "Home"
        ? all[0]
        : event.key === "End"
          ? all[all.length - 1]
          : step
            ? all[all.indexOf(span) + step]
            : null;
    if (!next) return;
    event.preventDefault();
    span.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  // ---- where one is ------------------------------------------------------------------------------------------
  function hash() {
    const parts = [`reply=${encodeURIComponent(idOf(state.reply))}`, `margin=${state.margin}`];
    if (state.beside !== null) parts.push(`beside=${encodeURIComponent(idOf(state.beside))}`);
    return `#${parts.join("&")}`;
  }
  function remember() {
    if (state.reply === null || state.reply < 0) return;
    history.replaceState(null, "", hash());
    const link = byId("reader").querySelector(".permalink");
    if (link) link.href = hash();
  }
  function rival(i) {
    if (i >= replies.length || !matchMedia("(min-width: 900px)").matches) return null;
    const others = siblings(i).filter((at) => at !== i && word("temperature", at) === word("temperature", i));
    const rank = (at) => replies[at].rank ?? 1e9;
    return others.sort((a, b) => isKept(b) - isKept(a) || rank(a) - rank(b))[0] ?? null;
  }
  function open(i, beside) {
    state.reply = i;
    state.beside = beside === undefined ? rival(i) : beside;
    read();
    list();
  }
  function setMargin(value) {
    state.margin = Math.min(0.995, Math.max(0, Number.isFinite(value) ? value : data.margin));
    byId("margin").value = String(state.margin);
    byId("margin-now").textContent = state.margin.toFixed(
      Number.isInteger(Math.round(state.margin * 1e6) / 1e4) ? 2 : 3,
    );
    colour();
    if (told) showTip(told);
  }
  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (!asked.has("reply")) return false;
    const id = asked.get("reply");
    let i = place.get(id) ?? replies.findIndex((reply) => id.length >= 4 && reply.id.startsWith(id));
    if (i < 0) i = index.ids.findIndex((short) => id.startsWith(short));
    if (asked.has("margin")) setMargin(Number(asked.get("margin")));
    state.asked = id;
    const beside = asked.has("beside") ? place.get(asked.get("beside")) : undefined;
    open(
      i,
      i >= 0 && i < replies.length
        ? beside !== undefined && siblings(i).includes(beside) && beside !== i
          ? beside
          : undefined
        : null,
    );
    byId("reader").scrollIntoView({ behavior: "instant" });
    return true;
  }
  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? event.target.closest("button.link[data-at]") : null;
    if (!button) return;
    open(Number(button.dataset.at));
    remember();
    const target = byId("reader-title") || reader;
    target.focus({ preventScroll: true });
    const top = reader.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight * 0.6) reader.scrollIntoView();
  });
  byId("margin").addEventListener("input", (event) => {
    setMargin(Number(event.target.value));
    remember();
  });
  byId("filters").addEventListener("input", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(filter));
  for (const [id, step] of [
    ["back", -1],
    ["on", 1],
  ])
    byId(id).addEventListener("click", () => {
      state.page += step;
      list();
    });
  addEventListener("hashchange", follow);
  byId("filters").hidden = byId("lens-app").hidden = false;
  byId("bar").hidden = !isColoured;
  if (location.hash.includes("reply=")) history.scrollRestoration = "manual"; // the link says where
  if (!replies.length) byId("texts").checked = false;
  setMargin(data.margin);
  head();
  filter();
  if (!follow() && replies.length) open(0);
})();

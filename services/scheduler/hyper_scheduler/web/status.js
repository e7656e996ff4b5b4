// The status page. It only reads, and everything it shows goes in as text, never as markup.
"use strict";

const main = document.getElementById("main");
const live = document.getElementById("live");
const tenantField = document.getElementById("tenant");
const tokenField = document.getElementById("token");
const POLL_MS = 2000;
let timer = 0;
let turn = 0;

tenantField.value = sessionStorage.getItem("tenant") || "default";
tokenField.value = sessionStorage.getItem("token") || "";

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "className") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  for (const child of children) if (child !== null) node.append(child);
  return node;
}

function drawn(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

async function ask(path, parameters) {
  const headers = tokenField.value ? { Authorization: `Bearer ${tokenField.value}` } : {};
  const query = new URLSearchParams(parameters);
  const response = await fetch(`api/${path}?${query}`, { headers });
  const found = await response.json();
  if (!response.ok) throw new Error(found.error || `HTTP ${response.status}`);
  return found;
}

function last(name) { return name.slice(name.lastIndexOf("/") + 1); }
function number(value) { return Number(value || 0); }
function plain(state) { return (state || "").replace(/^(RUN|TASK|WORKER)_STATE_/, ""); }
function stateCell(state, more) {
  const word = plain(state) || "UNKNOWN";
  return make("span", { className: /^[A-Z]+$/.test(word) ? word : "" }, word.toLowerCase() + (more || ""));
}
function lasted(start, end) {
  if (!start) return "";
  const seconds = Math.max(0, (new Date(end || Date.now()) - new Date(start)) / 1000);
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
function gigabytes(bytes) { return (number(bytes) / 2 ** 30).toFixed(1); }

function bar(counts) {
  const total = Math.max(1, number(counts.total));
  const box = make("span", { className: "bar", "aria-hidden": "true" });
  for (const [name, count] of [["done", counts.succeeded], ["busy", counts.running], ["bad", counts.failed]]) {
    const part = make("span", { className: name });
    part.style.width = `${(100 * number(count)) / total}%`;
    box.append(part);
  }
  const failed = number(counts.failed) ? `, ${counts.failed} failed` : "";
  const lost = number(counts.lost) ? `, ${counts.lost} lost and run again` : "";
  return make("span", {}, box, `${number(counts.succeeded)}/${number(counts.total)}${failed}${lost}`);
}

function table(caption, heads, rows) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))));
  return make("div", { className: "scroll" },
    make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body)));
}

function link(target, text) {
  return make("a", { href: `#${new URLSearchParams(target)}` }, text);
}

async function overview() {
  const found = await ask("overview", { tenant: tenantField.value });
  const workflows = (found.workflows || []).map((each) => [
    link({ workflow: each.name }, last(each.name)),
    each.display_name || "",
    stateCell(each.state, each.paused ? " (paused)" : ""),
    bar(each.tasks || {}),
    lasted(each.create_time, each.end_time),
    each.message || each.waiting || "",
  ]);
  const workers = (found.workers || []).map((each) => {
    const use = each.usage || {};
    const gpus = (use.gpus || []).map((gpu) => `${gpu.index || 0}: ${Math.round(100 * number(gpu.utilization))}%`);
    return [
      last(each.name), stateCell(each.state), `${number(each.running)}/${number(each.slots)}`,
      use.cpus_total ? `${number(use.cpus).toFixed(1)}/${use.cpus_total}` : "",
      use.memory_total_bytes ? `${gigabytes(use.memory_bytes)}/${gigabytes(use.memory_total_bytes)}` : "",
      gpus.join(" "),
      Object.entries(each.labels || {}).map(([key, value]) => `${key}=${value}`).join(" "),
    ];
  });
  const services = (found.services || []).map((each) => [each.service, each.instance || "", each.address || ""]);
  return [
    make("h2", {}, "Workflows"),
    workflows.length
      ? table(`of tenant ${tenantField.value}, newest first`, ["Workflow", "Recipe", "State", "Tasks", "Time", "Message"], workflows)
      : make("p", { className: "soft" }, "No workflows yet; start one with `hyper submit RECIPE`."),
    make("h2", {}, "Workers"),
    table(`${workers.length} machines`, ["Worker", "State", "Busy", "CPUs", "Memory, GiB", "GPUs", "Labels"], workers),
    make("h2", {}, "Services"),
    table("replicas that are alive", ["Service", "Instance", "Address"], services),
  ];
}

// Layers from left to right: an experiment stands right of all that it depends on.
function graph(workflow) {
  const experiments = workflow.experiments || [];
  const layer = new Map();
  for (const each of experiments) {
    layer.set(last(each.name), Math.max(0, ...(each.depends_on || []).map((name) => (layer.get(name) ?? -1) + 1)));
  }
  const rows = [];
  const place = new Map();
  for (const each of experiments) {
    const column = layer.get(last(each.name));
    rows[column] = (rows[column] || 0) + 1;
    place.set(last(each.name), [10 + column * 190, 10 + (rows[column] - 1) * 54]);
  }
  const width = 20 + Math.max(1, rows.length) * 190;
  const height = 20 + Math.max(1, ...rows.map((count) => count || 0)) * 54;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img" });
  svg.append(drawn("title", {}, `Experiments and what they depend on: ${experiments.length}`));
  for (const each of experiments) {
    const [x, y] = place.get(last(each.name));
    for (const name of each.depends_on || []) {
      const from = place.get(name);
      if (!from) continue;
      const [a, b] = [from[0] + 150, from[1] + 20];
      svg.append(drawn("path", { d: `M${a} ${b} C${a + 20} ${b} ${x - 20} ${y + 20} ${x} ${y + 20}` }));
    }
  }
  for (const each of experiments) {
    const name = last(each.name);
    const [x, y] = place.get(name);
    const counts = each.tasks || {};
    const word = plain(each.state);
    svg.append(drawn("g", { class: /^[A-Z]+$/.test(word) ? word : "" },
      drawn("rect", { x, y, width: 150, height: 40, rx: 4 }),
      drawn("text", { x: x + 8, y: y + 17 }, name.length > 20 ? `${name.slice(0, 19)}…` : name),
      drawn("text", { x: x + 8, y: y + 32 }, `${word.toLowerCase()} ${number(counts.succeeded)}/${number(counts.total)}`)));
  }
  return make("div", { className: "scroll" }, svg);
}

async function oneWorkflow(target) {
  const found = await ask("workflow", { name: target.get("workflow") });
  const rows = (found.experiments || []).map((each) => [
    link({ workflow: found.name, experiment: each.name }, last(each.name)),
    stateCell(each.state), bar(each.tasks || {}), lasted(each.start_time, each.end_time),
    (each.depends_on || []).join(", "), each.message || "",
  ]);
  return [
    make("h2", {}, `${last(found.name)} (${found.display_name || ""})`),
    make("p", {}, stateCell(found.state, found.paused ? " (paused)" : ""), ` after ${lasted(found.create_time, found.end_time)}. `,
      found.message || "", found.waiting ? ` Waiting: ${found.waiting}` : ""),
    graph(found),
    table("experiments", ["Experiment", "State", "Tasks", "Time", "Depends on", "Message"], rows),
    make("details", {}, make("summary", {}, "Recipe"), make("pre", {}, found.recipe_yaml || "")),
  ];
}

async function tasks(target) {
  const parent = target.get("experiment");
  const state = target.get("state") || "";
  const found = await ask("tasks", { parent, state, page: target.get("page") || "" });
  const base = { workflow: target.get("workflow"), experiment: parent };
  const rows = (found.tasks || []).map((each) => [
    link({ ...base, task: each.name }, String(number(each.index))),
    stateCell(each.state, each.stopped_early ? " (stopped early)" : ""),
    last(each.worker || ""), number(each.failures), number(each.losses),
    lasted(each.start_time, each.end_time),
    each.objective === undefined ? "" : Number(each.objective).toPrecision(5),
    each.parameters_json || "", each.message || "",
  ]);
  const filter = make("select", { "aria-label": "state of tasks",
    onchange: (event) => { location.hash = new URLSearchParams({ ...base, state: event.target.value }); } },
  ...["", "running", "pending", "succeeded", "failed", "cancelled"].map((word) => {
    const option = make("option", { value: word }, word || "all");
    if (word === state) option.setAttribute("selected", "");
    return option;
  }));
  return [
    make("p", {}, link({ workflow: base.workflow }, last(base.workflow || ""))),
    make("h2", {}, `Tasks of ${last(parent)}`),
    make("p", {}, "Show ", filter),
    table("", ["Task", "State", "Worker", "Failures", "Losses", "Time", "Objective", "Parameters", "Message"], rows),
    found.next_page_token
      ? make("p", {}, link({ ...base, state, page: found.next_page_token }, "More"))
      : null,
  ];
}

async function oneTask(target) {
  const name = target.get("task");
  const [found, log] = await Promise.all([ask("task", { name }), ask("log", { task: name })]);
  const base = { workflow: target.get("workflow"), experiment: target.get("experiment") };
  const output = make("pre", { tabindex: "0", "aria-label": "output" }, log.text || "(nothing yet)");
  return [
    make("p", {}, link({ workflow: base.workflow }, last(base.workflow || "")), " / ",
      link(base, last(base.experiment || ""))),
    make("h2", {}, `Task ${number(found.index)}`),
    make("p", {}, stateCell(found.state), ` on ${last(found.worker || "nothing yet")}, ${lasted(found.start_time, found.end_time)}. `, found.message || ""),
    make("h2", {}, "Parameters"), make("pre", {}, found.parameters_json || "{}"),
    make("h2", {}, "Result"), make("pre", {}, found.result_json || "(none)"),
    make("h2", {}, log.cut ? "Output (its end)" : "Output"), output,
  ];
}

async function show() {
  clearTimeout(timer);
  const mine = ++turn;
  const target = new URLSearchParams(location.hash.slice(1));
  const view = target.has("task") ? oneTask : target.has("experiment") ? tasks
    : target.has("workflow") ? oneWorkflow : overview;
  try {
    const nodes = (await view(target)).filter((node) => node !== null);
    if (mine !== turn) return;
    const open = main.querySelector("details[open]") !== null;
    const focused = main.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const log = main.querySelector("pre[tabindex]");
    const kept = log && log.scrollTop + log.clientHeight < log.scrollHeight - 4 ? log.scrollTop : null;
    main.replaceChildren(...nodes);
    if (open) main.querySelector("details")?.setAttribute("open", "");
    if (focused) for (const a of main.querySelectorAll("a")) if (a.getAttribute("href") === focused) a.focus();
    const next = main.querySelector("pre[tabindex]");
    if (next) next.scrollTop = kept === null ? next.scrollHeight : kept;
    say("live", false);
  } catch (error) {
    if (mine !== turn) return;
    say(error.message, true);
  }
  if (!document.hidden) timer = setTimeout(show, POLL_MS);
}

function say(text, bad) {
  if (live.textContent !== text) live.textContent = text;
  live.className = bad ? "bad" : "";
}

document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("tenant", tenantField.value);
  sessionStorage.setItem("token", tokenField.value);
  show();
});
window.addEventListener("hashchange", () => { main.replaceChildren(); main.focus(); show(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) show(); });
show();

// Ties the parts together: what is heard, what is searched for, what is shown.

import { Customers, HIGHEST, LOWEST, SILENT_MS, waiting } from "./customers.js";
import { Detail } from "./detail.js";
import { Stream } from "./stream.js";
import { Table } from "./table.js";

const SAID_AGAIN_MS = 15_000; // screen readers are told no more often

const element = (id) => document.getElementById(id);
const customers = new Customers();
let trouble = "";
let figures = null;
let said = "";
let saidAt = -Infinity;

const detail = new Detail(element("detail"), () => stream.now());
const table = new Table(element("scroller"), (customer) => detail.open(customer));
const stream = new Stream({
  onAll: (message) => heard(message, "replace"),
  onNew: (message) => heard(message, "add"),
  onTrouble: (message) => {
    trouble = message.trouble;
    draw();
  },
});
table.now = () => stream.now();

element("legend").textContent = `Silent: no beat for more than ${SILENT_MS / 1000} s; its rate `
  + `is then old and shown as --. Out of range: below ${LOWEST} or above ${HIGHEST} beats a `
  + "minute. Everybody heard since the beginning of yesterday (UTC) is listed. Press / to "
  + "search, the arrow keys to go from customer to customer, Enter for the last hour.";

function heard(message, how) {
  trouble = "";
  customers[how](message);
  figures = message.figures;
  // An opened customer that is known by a new object, after everything was told anew.
  if (how === "replace" && detail.customer) {
    detail.customer = customers.all.find((each) => each.id === detail.customer.id) ?? detail.customer;
  }
  draw();
}

function draw() {
  const search = element("search").value;
  const show = document.querySelector("input[name=show]:checked").value;
  const { counts, rows } = customers.ordered(search, show);
  table.show(rows);
  for (const [name, count] of Object.entries(counts)) {
    write(document.querySelector(`[data-count=${name}]`), count.toLocaleString("en"));
  }
  element("nobody").hidden = rows.length > 0 || !figures;
  write(element("nobody"), customers.all.length ? "Nobody is found." : "Nobody was heard since yesterday.");
  if (figures) announce(search.trim() ? `${rows.length} found` : `${counts.silent} silent, ${counts.out} out of range`);
  drawLink();
  drawFigures();
  detail.update();
}

function drawLink() {
  const link = element("link");
  let state = "heard";
  let words = "Hears the server";
  if (stream.heardAt === null) {
    [state, words] = ["waiting", stream.closed || "Connecting…"];
  } else if (!stream.isHeard()) {
    // The seconds are left out: a screen reader would read each of them.
    [state, words] = ["lost", stream.closed || "Does not hear the server: what is shown is old"];
  } else if (trouble) {
    [state, words] = ["lost", trouble];
  } else if (waiting(figures)) {
    [state, words] = ["late", `${waiting(figures)}: who looks silent may not be`];
  }
  if (link.dataset.state !== state) link.dataset.state = state;
  write(link, words);
}

function drawFigures() {
  const known = figures && stream.isHeard() && !trouble ? figures : {};
  write(element("rate"), whole(known.stored_per_second));
  write(element("delay"), `${time(known.delay_p50_seconds)} / ${time(known.delay_p95_seconds)}`);
  write(element("lag"), whole(known.lag));
  write(element("refused"), whole(known.refused));
}

function announce(words) {
  const now = performance.now();
  if (words === said || now - saidAt < SAID_AGAIN_MS) return;
  said = words;
  saidAt = now;
  element("found").textContent = words;
}

function whole(number) {
  return number === null || number === undefined ? "--" : Math.round(number).toLocaleString("en");
}

function time(seconds) {
  if (seconds === null || seconds === undefined) return "--";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;
}

function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

element("tools").addEventListener("submit", (event) => {
  event.preventDefault();
  table.focus(0);
});
element("tools").addEventListener("input", () => {
  saidAt = -Infinity;
  element("scroller").scrollTop = 0;
  draw();
});
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search]");
  if (event.key === "/" && !typing && !element("detail").open) {
    event.preventDefault();
    element("search").focus();
  } else if (event.key === "ArrowDown" && typing) {
    event.preventDefault();
    table.focus(0);
  }
});
// Also while nothing is heard: rates become old.
setInterval(() => {
  stream.check();
  if (!stream.isHeard() || trouble) draw();
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) draw(); // before it is seen again: what it shows is old
});

// The table: of thousands of customers only the rows in sight are in the page.

import { ageText, HIGHEST, isStale, LOWEST, SLOTS, slotsOf, stateOf } from "./customers.js";

const AROUND = 5; // rows above and below those in sight
const SVG = "http://www.w3.org/2000/svg";
const SPARK_HEIGHT = 30;
const LOW = 40; // what lies below or above is drawn at the edge
const HIGH = 160;

export class Table {
  constructor(scroller, onOpen) {
    this.scroller = scroller;
    this.table = scroller.querySelector("table");
    this.body = scroller.querySelector("tbody");
    this.onOpen = onOpen;
    this.customers = [];
    this.rows = new Map(); // customer -> its row in the page
    this.above = this._spacer();
    this.below = this._spacer();
    this.body.append(this.above, this.below);
    this.now = () => 0;
    scroller.addEventListener("scroll", () => this._soon());
    addEventListener("resize", () => this._soon());
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr.customer");
      if (row) this.onOpen(row.customer);
    });
    this.body.addEventListener("keydown", (event) => this._key(event));
  }

  show(customers) {
    this.customers = customers;
    this.draw();
  }

  _soon() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  height() {
    return parseFloat(getComputedStyle(this.table).getPropertyValue("--row-height"));
  }

  draw() {
    const height = this.height();
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - AROUND);
    const end = Math.min(
      this.customers.length,
      Math.ceil((this.scroller.scrollTop + this.scroller.clientHeight) / height) + AROUND,
    );
    const focused = document.activeElement?.closest?.("tr.customer")?.customer;
    const wanted = this.customers.slice(first, end);
    // Whoever is no more in sight gives its row to one who comes.
    const here = new Set(wanted);
    const free = [];
    for (const [customer, row] of this.rows) {
      if (!here.has(customer)) {
        this.rows.delete(customer);
        free.push(row);
      }
    }
    let next = this.above.nextSibling;
    wanted.forEach((customer, i) => {
      let row = this.rows.get(customer);
      if (!row) {
        row = free.pop() ?? this._row();
        row.customer = customer;
        row.name.textContent = customer.id;
        row.name.title = customer.id;
        this.rows.set(customer, row);
      }
      if (row === next) next = next.nextSibling;
      else this.body.insertBefore(row, next);
      set(row, "aria-rowindex", String(first + i + 2));
      this._fill(row, customer);
    });
    for (const row of free) row.remove();
    this.above.style.height = `${first * height}px`;
    this.below.style.height = `${Math.max(0, this.customers.length - end) * height}px`;
    this.above.hidden = first === 0;
    this.below.hidden = end >= this.customers.length;
    set(this.table, "aria-rowcount", String(this.customers.length + 1));
    // Moving a row in the page takes the focus from it.
    const row = focused && this.rows.get(focused);
    if (row && document.activeElement !== row.name) row.name.focus({ preventScroll: true });
  }

  _fill(row, customer) {
    const now = this.now();
    const stale = isStale(customer, now);
    const state = stateOf(customer, now);
    set(row, "data-state", state);
    write(row.state, state);
    write(row.rate, stale ? "--" : String(customer.rate));
    write(row.age, ageText(now - customer.at));
    set(row.spark, "d", path(slotsOf(customer, now)));
  }

  _row() {
    const row = document.createElement("tr");
    row.className = "customer";
    const head = document.createElement("th");
    head.scope = "row";
    row.name = document.createElement("button");
    row.name.type = "button";
    head.append(row.name);
    row.append(head);
    for (const part of ["state", "rate"]) {
      row[part] = document.createElement("td");
      row[part].className = part;
      row.append(row[part]);
    }
    const drawing = document.createElementNS(SVG, "svg");
    drawing.setAttribute("viewBox", `0 -1 ${SLOTS} ${SPARK_HEIGHT + 2}`);
    drawing.setAttribute("preserveAspectRatio", "none");
    drawing.setAttribute("aria-hidden", "true");
    const range = document.createElementNS(SVG, "rect"); // in range, to compare with
    range.setAttribute("width", SLOTS);
    range.setAttribute("y", y(HIGHEST));
    range.setAttribute("height", y(LOWEST) - y(HIGHEST));
    row.spark = document.createElementNS(SVG, "path");
    drawing.append(range, row.spark);
    const cell = document.createElement("td");
    cell.className = "spark";
    cell.append(drawing);
    row.age = document.createElement("td");
    row.age.className = "age";
    row.append(cell, row.age);
    return row;
  }

  _spacer() {
    const row = document.createElement("tr");
    row.className = "spacer";
    row.setAttribute("aria-hidden", "true");
    row.hidden = true;
    const cell = document.createElement("td");
    cell.colSpan = 5;
    row.append(cell);
    return row;
  }

  // Arrows, Home, End and the page keys go from customer to customer.
  _key(event) {
    const row = event.target.closest("tr.customer");
    if (!row || event.ctrlKey || event.altKey || event.metaKey) return;
    const at = this.customers.indexOf(row.customer);
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.height()) - 2);
    const to = {
      ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page,
      Home: 0, End: this.customers.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.focus(Math.min(this.customers.length - 1, Math.max(0, to)));
  }

  focus(number) {
    const customer = this.customers[number];
    if (!customer) return;
    const height = this.height();
    const top = number * height;
    const head = this.table.tHead.offsetHeight;
    const seen = this.scroller.clientHeight - head - height;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top > this.scroller.scrollTop + seen) this.scroller.scrollTop = top - seen;
    this.draw();
    this.rows.get(customer)?.name.focus({ preventScroll: true });
  }
}

function y(rate) {
  return (SPARK_HEIGHT * (HIGH - Math.min(HIGH, Math.max(LOW, rate)))) / (HIGH - LOW);
}

function path(slots) {
  let drawn = "";
  let pen = "M";
  slots.forEach(([low, high], i) => {
    if (!low) {
      pen = "M";
      return;
    }
    drawn += `${pen}${i} ${y(low).toFixed(1)}L${i + 0.5} ${y(high).toFixed(1)}`;
    pen = "L";
  });
  return drawn;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// What the page knows of the customers, and in which order they need eyes. Pure: the
// time is passed in. The same slots as heartbeat_app/storage/live.py.

export const SILENT_MS = 15_000; // no beat for longer: silent, and its rate is old
export const LOWEST = 50; // below: out of range
export const HIGHEST = 120; // above: out of range
export const SLOT_MS = 10_000;
export const SLOTS = 30;

const SILENT = 0;
const OUT = 1;
const IN = 2;
export const GROUPS = ["silent", "out", "in"];
const natural = new Intl.Collator("en", { numeric: true });

export class Customers {
  constructor() {
    this.all = []; // by number
    this.now = 0; // when the database was looked at, by its own clock
  }

  // A message "all": forget what was known.
  replace({ now, customers }) {
    this.now = now;
    const slot = Math.floor(now / SLOT_MS);
    this.all = customers.map(([id, age, rate, slots]) => ({
      id, at: now - age, rate, slot,
      lows: ring(slots.filter((_, i) => i % 2 === 0), slot),
      highs: ring(slots.filter((_, i) => i % 2 === 1), slot),
      place: 0, found: id.toLowerCase(),
    }));
    this._number();
  }

  // A message "new".
  add({ now, ids, heard }) {
    this.now = now;
    for (const id of ids) {
      this.all.push({
        id, at: 0, rate: 0, slot: 0, place: 0, found: id.toLowerCase(),
        lows: new Array(SLOTS).fill(0), highs: new Array(SLOTS).fill(0),
      });
    }
    for (const [number, age, rate, low = rate, high = rate] of heard) {
      note(this.all[number], now - age, rate, low, high);
    }
    if (ids.length) this._number();
  }

  // Ids in a person's order, once and not at each sorting.
  _number() {
    [...this.all].sort((a, b) => natural.compare(a.id, b.id) || (a.id < b.id ? -1 : 1))
      .forEach((customer, place) => { customer.place = place; });
  }

  // Those that are looked for, in order, and how many there are of each group.
  // Judged at the last look: if the page hears nothing, nobody has fallen silent.
  ordered(search, show) {
    const counts = { all: 0, silent: 0, out: 0, in: 0 };
    const wanted = search.trim().toLowerCase();
    const keyed = [];
    for (const customer of this.all) {
      const group = groupOf(customer, this.now);
      customer.group = GROUPS[group];
      if (wanted && !customer.found.includes(wanted)) continue;
      counts.all += 1;
      counts[GROUPS[group]] += 1;
      if (show !== "all" && show !== GROUPS[group]) continue;
      keyed.push([group, urgency(customer, group), customer.place, customer]);
    }
    keyed.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
    return { counts, rows: keyed.map((key) => key[3]) };
  }
}

function groupOf(customer, now) {
  if (now - customer.at > SILENT_MS) return SILENT;
  return customer.rate < LOWEST || customer.rate > HIGHEST ? OUT : IN;
}

// Who fell silent last comes first; who is further out of range, in steps of ten, so
// that rows do not jump with every beat.
function urgency(customer, group) {
  if (group === SILENT) return -customer.at;
  if (group === OUT) {
    return -Math.floor(Math.max(LOWEST - customer.rate, customer.rate - HIGHEST) / 10);
  }
  return 0;
}

export function isStale(customer, now) {
  return now - customer.at > SILENT_MS;
}

export function stateOf(customer, now) {
  if (customer.group === "silent") return "silent";
  if (isStale(customer, now)) return "unknown"; // the page hears nothing
  if (customer.rate < LOWEST) return "low";
  return customer.rate > HIGHEST ? "high" : "in range";
}

// Why a customer may look silent who is not: beats wait to be stored. Some always do.
export function waiting({ lag, stored_per_second: rate }) {
  if (lag === null) return "Kafka does not answer";
  if (lag <= Math.max(100, 10 * (rate ?? 0))) return "";
  return `${lag.toLocaleString("en")} records wait to be stored`;
}

export function ageText(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h`;
}

// Low and high of each slot up to now, 0 where there was no beat.
export function slotsOf(customer, now) {
  const last = Math.floor(now / SLOT_MS);
  const found = [];
  for (let slot = last - SLOTS + 1; slot <= last; slot += 1) {
    const known = slot <= customer.slot && slot > customer.slot - SLOTS;
    found.push(known ? [customer.lows[slot % SLOTS], customer.highs[slot % SLOTS]] : [0, 0]);
  }
  return found;
}

function note(customer, at, rate, low, high) {
  if (at > customer.at) {
    customer.at = at;
    customer.rate = rate;
  }
  const slot = Math.floor(at / SLOT_MS);
  if (slot <= customer.slot - SLOTS) return;
  if (slot > customer.slot) {
    for (let passed = Math.max(customer.slot + 1, slot - SLOTS + 1); passed <= slot; passed += 1) {
      customer.lows[passed % SLOTS] = 0;
      customer.highs[passed % SLOTS] = 0;
    }
    customer.slot = slot;
  }
  const place = slot % SLOTS;
  const before = customer.lows[place];
  customer.lows[place] = before ? Math.min(before, low) : low;
  customer.highs[place] = Math.max(customer.highs[place], high);
}

function ring(values, last) {
  const found = new Array(SLOTS);
  values.forEach((value, i) => { found[(last - SLOTS + 1 + i) % SLOTS] = value; });
  return found;
}

// One customer's last hour.

import { HIGHEST, isStale, LOWEST, stateOf } from "./customers.js";

const AGAIN_MS = 10_000;

export class Detail {
  constructor(dialog, now) {
    this.dialog = dialog;
    this.now = now;
    this.customer = null;
    this.chart = null;
    this.part = (id) => dialog.querySelector(`#${id}`);
    this.part("close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    dialog.addEventListener("close", () => this._end());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this._load());
    addEventListener("resize", () => this.chart?.setSize(this._size()));
  }

  open(customer) {
    this.customer = customer;
    this.part("detail-name").textContent = customer.id;
    this.part("detail-text").textContent = "Loading the last hour…";
    this.dialog.showModal();
    this.update();
    this._load();
    this.timer = setInterval(() => this._load(), AGAIN_MS);
  }

  update() {
    if (!this.customer) return;
    const now = this.now();
    const rate = isStale(this.customer, now) ? "--" : this.customer.rate;
    this.part("detail-now").textContent = `${rate} beats a minute, ${stateOf(this.customer, now)}`;
  }

  _end() {
    clearInterval(this.timer);
    this.customer = null;
    this.chart?.destroy();
    this.chart = null;
  }

  async _load() {
    const customer = this.customer;
    if (!customer) return;
    let answer = null;
    try {
      const got = await fetch(`customer?${new URLSearchParams({ id: customer.id })}`);
      if (got.ok) answer = await got.json();
    } catch {
      // said below
    }
    if (this.customer !== customer) return; // closed, or another one meanwhile
    if (answer) this._draw(answer);
    else this.part("detail-text").textContent = "The last hour cannot be had now; trying again.";
  }

  _draw({ steps, step_seconds: step, span_seconds: span }) {
    const end = Math.floor(this.now() / 1000 / step) * step;
    const byBegin = new Map(steps.map((each) => [each[0], each]));
    const found = [[], [], [], []];
    for (let begin = end - span; begin <= end; begin += step) {
      const [, mean, low, high] = byBegin.get(begin) ?? [begin, null, null, null];
      [begin, high, low, mean].forEach((value, i) => found[i].push(value));
    }
    this.chart?.destroy();
    const colors = getComputedStyle(this.dialog);
    const color = (name) => colors.getPropertyValue(name).trim();
    const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
    const axis = { stroke: color("--text"), grid: { stroke: color("--line"), width: 1 } };
    const limits = [LOWEST, HIGHEST];
    const host = this.part("chart");
    this.chart = new uPlot({
      ...this._size(),
      legend: { show: false },
      cursor: { drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [Math.min(40, low ?? 40), Math.max(130, high ?? 130)] } },
      axes: [
        { ...axis, space: 60, values: (_, times) => times.map((at) => clock.format(at * 1000)) },
        { ...axis, size: 44 },
      ],
      series: [
        {},
        { label: "highest", width: 0 },
        { label: "lowest", width: 0 },
        { label: "mean", stroke: color("--accent"), width: 2 },
      ],
      bands: [{ series: [1, 2], fill: color("--band") }],
      hooks: {
        draw: [(chart) => {
          chart.ctx.save();
          chart.ctx.strokeStyle = color("--bad");
          chart.ctx.setLineDash([6, 6]);
          for (const rate of limits) {
            const y = chart.valToPos(rate, "y", true);
            chart.ctx.beginPath();
            chart.ctx.moveTo(chart.bbox.left, y);
            chart.ctx.lineTo(chart.bbox.left + chart.bbox.width, y);
            chart.ctx.stroke();
          }
          chart.ctx.restore();
        }],
      },
    }, found, host);
    this.part("detail-text").textContent = words(steps);
  }

  _size() {
    return { width: this.part("chart").clientWidth || 300, height: 240 };
  }
}

// The same as the picture, for who does not see it.
function words(steps) {
  if (!steps.length) return "No beat in the last hour.";
  const beats = steps.reduce((sum, each) => sum + each[4], 0);
  const mean = steps.reduce((sum, each) => sum + each[1] * each[4], 0) / beats;
  const low = Math.min(...steps.map((each) => each[2]));
  const high = Math.max(...steps.map((each) => each[3]));
  return `Last hour: ${beats.toLocaleString("en")} beats, from ${low} to ${high}, `
    + `${Math.round(mean)} on average. Gaps are times without a beat; the band is from `
    + `the lowest to the highest of 5 s; the dashed lines are ${LOWEST} and ${HIGHEST}.`;
}

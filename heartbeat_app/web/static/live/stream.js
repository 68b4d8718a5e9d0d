// Listens to the server, tells whether it is heard, and what the time is there.

const UNHEARD_MS = 3_000; // the server says something every second
const GIVE_UP_MS = 10_000; // a connection that says nothing for so long is a dead one
const AGAIN_MS = 2_000;

// A moment, by two clocks: one stands still while the machine sleeps, a person sets
// the other. What is old by either of them is old.
const moment = () => ({ running: performance.now(), wall: Date.now() });
const since = (then) => Math.max(performance.now() - then.running, Date.now() - then.wall);

const WHY = {
  401: "Your login has ended: reload the page",
  403: "Without WEB_TOKEN this page is shown on the worker's own machine only",
  503: "Too many pages are open: trying again",
};

export class Stream {
  constructor({ onAll, onNew, onTrouble }) {
    this.on = { all: onAll, new: onNew, trouble: onTrouble };
    this.source = null;
    this.heardAt = null; // the moment of the last event of any kind
    this.toldAt = null; // … of the last one that told something
    this.listenedAt = null; // … of the beginning of this connection
    this.told = 0; // the database's time then
    this.closed = ""; // why it is not listened to
    document.addEventListener("visibilitychange", () => this._turn());
    this._turn();
  }

  // A hidden tab holds no connection: a browser has few of them for one server.
  _turn() {
    if (document.hidden) this._stop();
    else if (!this.source) this._listen();
  }

  _stop() {
    this.source?.close();
    this.source = null;
  }

  _listen() {
    const source = new EventSource("events");
    this.source = source;
    this.listenedAt = moment();
    for (const name of ["all", "new", "trouble"]) {
      source.addEventListener(name, (event) => {
        this.heardAt = moment();
        this.closed = "";
        const message = JSON.parse(event.data);
        if (name !== "trouble") {
          this.toldAt = this.heardAt;
          this.told = message.now;
        }
        this.on[name](message);
      });
    }
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) this._askWhy();
    });
  }

  // The browser gives up where the answer is not 200.
  async _askWhy() {
    this._stop();
    try {
      const answer = await fetch("events", { method: "HEAD" });
      this.closed = WHY[answer.status] ?? "";
    } catch {
      this.closed = "";
    }
    setTimeout(() => this._turn(), AGAIN_MS);
  }

  // Once a second: the browser itself does not notice a connection that is dead.
  check() {
    const silent = this.source && Math.min(
      since(this.listenedAt), this.heardAt === null ? Infinity : since(this.heardAt),
    );
    if (silent > GIVE_UP_MS) {
      this._stop();
      this._turn();
    }
  }

  // The database's clock, as it goes on also while nothing is heard.
  now() {
    return this.toldAt === null ? 0 : this.told + since(this.toldAt);
  }

  isHeard() {
    return this.heardAt !== null && since(this.heardAt) <= UNHEARD_MS;
  }
}

const ROWS = 500; // That are shown at first, and more by each press of the button below.
const STEPS = {
  ArrowDown: 1,
  ArrowUp: -1,
  PageDown: 10,
  PageUp: -10,
  Home: -Infinity,
  End: Infinity,
};

/** A table of images, which its headers sort; the arrow keys walk its rows. */
class ImageTable {
  /**
   * @param {HTMLElement} container Scrolls it.
   * @param {HTMLButtonElement} more Shows more rows.
   * @param {{names: string[], columns: object[], sort: {column: number, descending: boolean}}} data
   *   Column -1 is the name.
   * @param {function(number)} choose Is called with the number of an image.
   */
  constructor(container, more, { names, columns, sort }, choose) {
    Object.assign(this, { container, more, names, columns, sort, choose });
    [this.values, this.order, this.limit, this.chosen] = [[], [], ROWS, null];
    this.heads = [{ label: "Image", words: "Its name" }, ...columns].map((column, place) =>
      this.head(column, place - 1),
    );
    this.body = element("tbody", { keydown: (event) => this.walk(event) });
    const head = element("thead", {}, element("tr", {}, ...this.heads));
    container.replaceChildren(element("table", { class: "images" }, head, this.body));
    more.addEventListener("click", () => {
      this.limit += ROWS;
      this.fill();
    });
  }

  /** Shows other values: an array for each image, in the order of the columns. */
  show(values) {
    this.values = values;
    this.arrange();
  }

  head({ label, words }, column) {
    const sort = () => {
      this.sort = { column, descending: this.sort.column === column && !this.sort.descending };
      this.limit = ROWS;
      this.arrange();
    };
    const button = element("button", { type: "button", title: words, click: sort }, label);
    return element("th", { scope: "col" }, button);
  }

  arrange() {
    const { column, descending } = this.sort;
    const key = (index) => (column < 0 ? this.names[index] : this.values[index][column]);
    const turn = descending ? -1 : 1;
    this.order = [...this.names.keys()].sort((a, b) => compared(key(a), key(b), turn) || a - b);
    const direction = descending ? "descending" : "ascending";
    this.heads.forEach((head, place) =>
      head.setAttribute("aria-sort", place - 1 === column ? direction : "none"),
    );
    this.fill();
  }

  fill() {
    this.body.replaceChildren(...this.order.slice(0, this.limit).map((index) => this.row(index)));
    this.more.hidden = this.order.length <= this.limit;
    this.more.textContent = `Show more of the ${this.order.length} images`;
    this.mark(this.chosen);
  }

  row(index) {
    const name = this.names[index];
    const button = element("button", { type: "button", tabindex: -1, title: name }, name);
    const cells = this.columns.map((column, place) =>
      element("td", {}, shown(this.values[index][place], column)),
    );
    const attributes = { "data-index": index, click: () => this.choose(index) };
    return element("tr", attributes, element("th", { scope: "row" }, button), ...cells);
  }

  rowOf(index) {
    return this.body.querySelector(`tr[data-index="${index}"]`);
  }

  /** One row is chosen, and one name can be reached by the tab key. */
  mark(index) {
    this.body.querySelector("[aria-current]")?.removeAttribute("aria-current");
    this.body.querySelector('[tabindex="0"]')?.setAttribute("tabindex", -1);
    this.chosen = index;
    const row = this.rowOf(index);
    row?.setAttribute("aria-current", "true");
    (row ?? this.body.rows[0])?.querySelector("button").setAttribute("tabindex", 0);
    if (row) this.bringIntoView(row);
  }

  /** Scrolls the table alone; the page stays where it is. */
  bringIntoView(row) {
    const top = row.offsetTop - this.heads[0].offsetHeight;
    const bottom = row.offsetTop + row.offsetHeight - this.container.clientHeight;
    if (this.container.scrollTop > top) this.container.scrollTop = top;
    if (this.container.scrollTop < bottom) this.container.scrollTop = bottom;
  }

  /** Chooses the image so many rows below. */
  step(by) {
    const last = this.order.length - 1;
    const place = Math.max(0, Math.min(last, this.order.indexOf(this.chosen) + by));
    if (place >= this.limit) {
      this.limit = place + 1;
      this.fill();
    }
    this.choose(this.order[place]);
  }

  walk(event) {
    const by = STEPS[event.key];
    if (by === undefined) return;
    event.preventDefault();
    this.step(by);
    this.rowOf(this.chosen).querySelector("button").focus({ preventScroll: true });
  }
}

/** Less than 0 where a comes before b; what is not defined comes last in either direction. */
function compared(a, b, turn) {
  if (a == null || b == null) return (a == null) - (b == null);
  if (typeof a === "number") return turn * (a - b);
  return turn * a.localeCompare(b, undefined, { numeric: true });
}

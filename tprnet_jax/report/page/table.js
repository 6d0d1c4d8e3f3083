const ROWS = 500; // That are shown at first, and by each press of the button below.

/**
 * A table of images, sorted by its headers; the arrow keys walk its rows.
 *
 * @param {{container: HTMLElement, more: HTMLButtonElement, names: string[], columns: object[],
 *   sort: {column: number, descending: boolean}, choose: function(number)}} options Column -1 is
 *   the name.
 * @returns {{show: function(any[][]), mark: function(number), step: function(number)}} Shows values
 *   (an array for each image), marks an image as chosen, and chooses a neighbour of it.
 */
function imageTable({ container, more, names, columns, sort, choose }) {
  let [values, order, limit, chosen] = [[], [], ROWS, null];
  const heads = [{ label: "Image", words: "Its name." }, ...columns].map(head);
  const body = element("tbody", { keydown: walk });
  container.replaceChildren(element("table", { class: "images" },
    element("thead", {}, element("tr", {}, ...heads)), body));
  more.addEventListener("click", () => {
    limit += ROWS;
    fill();
  });

  function head(column, place) {
    const sorted = () => {
      sort = { column: place - 1, descending: sort.column === place - 1 && !sort.descending };
      limit = ROWS;
      arrange();
    };
    return element("th", { scope: "col" },
      element("button", { type: "button", title: column.words, click: sorted }, column.label));
  }

  function arrange() {
    const key = (index) => (sort.column < 0 ? names[index] : values[index][sort.column]);
    const turn = sort.descending ? -1 : 1;
    order = [...names.keys()].sort((a, b) => compared(key(a), key(b), turn) || a - b);
    heads.forEach((each, place) => {
      const direction = sort.descending ? "descending" : "ascending";
      each.setAttribute("aria-sort", place - 1 === sort.column ? direction : "none");
    });
    fill();
  }

  function fill() {
    body.replaceChildren(...order.slice(0, limit).map(row));
    more.hidden = order.length <= limit;
    more.textContent = `Show more of the ${order.length} images`;
    mark(chosen);
  }

  function row(index) {
    const name = element("button", { type: "button", tabindex: -1, title: names[index] }, names[index]);
    return element("tr", { "data-index": index, click: () => choose(index) },
      element("th", { scope: "row" }, name),
      ...columns.map((column, place) => element("td", {}, shown(values[index][place], column))));
  }

  const rowOf = (index) => body.querySelector(`tr[data-index="${index}"]`);

  /** One row is chosen, and one name can be reached by the tab key. */
  function mark(index) {
    body.querySelector("[aria-current]")?.removeAttribute("aria-current");
    body.querySelector('[tabindex="0"]')?.setAttribute("tabindex", -1);
    chosen = index;
    const now = rowOf(index);
    now?.setAttribute("aria-current", "true");
    (now ?? body.rows[0])?.querySelector("button").setAttribute("tabindex", 0);
    if (now) bringIntoView(now);
  }

  /** Scrolls the table alone; the page stays where it is. */
  function bringIntoView(now) {
    const top = now.offsetTop - heads[0].offsetHeight;
    const bottom = now.offsetTop + now.offsetHeight - container.clientHeight;
    if (container.scrollTop > top) container.scrollTop = top;
    if (container.scrollTop < bottom) container.scrollTop = bottom;
  }

  function step(by) {
    const shownRows = Math.min(order.length, limit);
    const place = Math.max(0, Math.min(shownRows - 1, order.indexOf(chosen) + by));
    choose(order[place]);
  }

  function walk(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    step(by);
    rowOf(chosen).querySelector("button").focus({ preventScroll: true });
  }

  return {
    show(given) {
      values = given;
      arrange();
    },
    mark,
    step,
    first: () => order[0],
  };
}

/** Less than 0 where a comes before b; what is not defined comes last in either direction. */
function compared(a, b, turn) {
  if (a == null || b == null) return (a == null) - (b == null);
  if (typeof a === "number") return turn * (a - b);
  return turn * a.localeCompare(b, undefined, { numeric: true });
}

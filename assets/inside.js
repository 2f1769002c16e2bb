// The Inside tab: what is clicked there asks the server (cnn/ui/inside.py); the field of a clicked cell is drawn here.
(() => {
  const root = () => document.getElementById("inside");
  let clicked = null; // {element, asked}: what had the focus, drawn anew with the answer
  let upwards = false; // what was asked is shown above
  let cell = null; // the clicked one, {tap, row, column}

  const ask = (detail, from) => {
    upwards = "channel" in detail || "open" in detail ? Boolean(from?.closest("#inside-below")) : false;
    clicked = from?.dataset.ask ? { element: from, asked: from.dataset.ask } : null;
    root()?.classList.add("asked"); // until the server's own words come
    window.dispatchEvent(new CustomEvent("inside-ask", { detail }));
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#inside [data-ask]");
    if (button) return ask(JSON.parse(button.dataset.ask), button);
    const strokes = event.target.closest?.("#inside svg[data-pick]");
    if (!strokes) return;
    const { left, width } = strokes.getBoundingClientRect();
    const count = strokes.viewBox.baseVal.width;
    ask({ channel: Math.min(Math.floor(((event.clientX - left) / width) * count), count - 1) }, strokes);
  });
  document.addEventListener("change", (event) => {
    const input = event.target.closest?.("#inside input[data-ask-number]");
    if (input && input.value !== "" && input.checkValidity()) ask({ [input.dataset.askNumber]: input.valueAsNumber }, null);
    else input?.reportValidity();
  });

  // ---- what a cell sees, on the picture above

  const clamp = (place, places) => Math.min(Math.max(place, 0), places);
  const frameOn = (plane, name) => {
    let frame = plane.querySelector(`.${name}`);
    if (!frame) {
      frame = document.createElement("b");
      frame.className = name;
      plane.append(frame);
    }
    return frame;
  };
  const place = (element, left, right, bottom, top) =>
    Object.assign(element.style, {
      left: `${100 * left}%`, width: `${100 * (right - left)}%`, bottom: `${100 * bottom}%`, height: `${100 * (top - bottom)}%`,
    });
  const roomOf = () => document.querySelector("#inside .stop-words")?.dataset.room; // this sound, this network
  const draw = () => {
    for (const old of document.querySelectorAll("#inside .field, #inside .cell")) old.remove();
    const words = document.querySelector("#inside .stop-words");
    const sees = document.querySelector("#inside .sees");
    if (!cell || !words?.dataset.field || !sees) return;
    const map = document.querySelector(`#inside-large .timed[data-tap="${cell.tap}"]`);
    if (!map) return;
    const [stride, size, start] = words.dataset.field.split(" ").map(Number);
    const [bins, frames] = [Number(sees.dataset.bins), Number(sees.dataset.frames)];
    const { seconds, hop } = map.dataset;
    const wide = seconds / hop; // frames that the axis is wide; frame k lies around k
    const from = [start + cell.row * stride, start + cell.column * stride];
    const bottom = clamp(from[0], bins), top = clamp(from[0] + size, bins);
    const first = clamp(from[1], frames), last = clamp(from[1] + size, frames);
    const axis = (edge) => clamp((edge - 0.5) / wide, 1);
    place(frameOn(sees.querySelector(".plane"), "field"), axis(first), axis(last), bottom / bins, top / bins);
    // the cell itself, around place cell * stride
    const [low, left] = [(cell.row - 0.5) * stride + 0.5, (cell.column - 0.5) * stride];
    const [foot, head] = [clamp(low / bins, 1), cell.row === cell.rows - 1 ? 1 : clamp((low + stride) / bins, 1)];
    const right = cell.column === cell.columns - 1 ? 1 : clamp((left + stride) / wide, 1);
    place(frameOn(map.querySelector(".plane"), "cell"), clamp(left / wide, 1), right, foot, head);
    const centres = map.dataset.centres.split(" ").map(Number);
    const inWords = (hertz) => (hertz >= 1000 ? `${Number((hertz / 1000).toPrecision(2))} kHz` : `${hertz.toFixed(0)} Hz`);
    const at = Number(map.dataset.start);
    const when = [first, last - 1].map((k) => (at + clamp(k * hop, Number(seconds))).toFixed(2));
    const output = document.getElementById("inside-field");
    if (output)
      output.textContent =
        `The cell at ${cell.seconds.toFixed(2)} s and ${inWords(cell.hertz)} sees what is in the frame: ` +
        `${when[0]} to ${when[1]} s, ${inWords(centres[bottom])} to ${inWords(centres[top - 1])}.`;
  };
  document.addEventListener("clock:cell", ({ detail }) => {
    const figure = detail.figure.closest("#inside-large, #inside-below");
    if (!figure) return;
    const [rows, columns] = JSON.parse(detail.figure.dataset.map).shape;
    cell = { ...detail, rows, columns, room: roomOf() };
    const wanted = detail.channel === null ? { open: detail.tap } : { channel: detail.channel };
    if (figure.id === "inside-below") ask(wanted, figure);
    else draw();
  });

  // By keyboard: Enter on the large map chooses the brightest cell under the cursor; its arrows move the cursor.
  document.addEventListener("keydown", (event) => {
    const map = event.key === "Enter" && event.target.closest?.("#inside-large .plane")?.closest(".timed[data-map]");
    if (!map) return;
    const { shape, data } = JSON.parse(map.dataset.map);
    const steps = new Uint16Array(Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)).buffer);
    const { start, seconds, hop, tap, centres } = map.dataset;
    const stride = Number(document.querySelector("#inside .stop-words").dataset.field.split(" ")[0]);
    const frame = clamp((window.clock.time() - start) / hop, seconds / hop);
    const column = Math.min(Math.floor(frame / stride + 0.5), shape[1] - 1);
    const rows = [...Array(shape[0]).keys()];
    const row = rows.reduce((best, k) => (steps[k * shape[1] + column] > steps[best * shape[1] + column] ? k : best));
    const pitches = centres.split(" ").map(Number);
    const at = { seconds: Number(start) + column * stride * hop, hertz: pitches[Math.min(row * stride, pitches.length - 1)] };
    cell = { tap, row, column, rows: shape[0], columns: shape[1], room: roomOf(), ...at };
    draw();
  });

  // ---- after an answer

  const settle = () => {
    const inside = root();
    if (!inside) return;
    const busy = inside.querySelector("#inside-status .busy");
    if (busy || inside.querySelector("#inside-status [role=alert]")) inside.classList.remove("asked");
    const words = inside.querySelector(".stop-words");
    if (words) {
      const open = words.dataset.open;
      if (cell && (words.dataset.tap !== cell.tap || words.dataset.room !== cell.room)) cell = null;
      for (const button of inside.querySelectorAll(".strip [data-ask]")) {
        const leads = JSON.parse(button.dataset.ask).open;
        if (leads === open) {
          button.setAttribute("aria-current", "true");
          const [strip, stop] = [button.closest(".strip"), button.closest("li")];
          const from = stop.offsetLeft - strip.offsetLeft;
          const hidden = from < strip.scrollLeft || from + stop.offsetWidth > strip.scrollLeft + strip.clientWidth;
          if (hidden) strip.scrollLeft = from - (strip.clientWidth - stop.offsetWidth) / 2;
        } else button.removeAttribute("aria-current");
        button.classList.toggle("within", button.matches(".stop") && open.startsWith(`${leads}.`));
      }
    }
    const plane = inside.querySelector("#inside-large .timed[data-map] .plane");
    if (plane && !plane.hasAttribute("role")) {
      plane.tabIndex = 0;
      plane.setAttribute("role", "application");
      plane.setAttribute("aria-label", "Map. Arrows move the cursor, Enter shows what the brightest cell there sees");
    }
    draw();
    if (busy) return;
    if (upwards && inside.querySelector("#inside-large").getBoundingClientRect().top < 60) {
      const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      inside.querySelector("#inside-sound").scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
    }
    upwards = false;
    if (!clicked) return;
    // the button is gone, or is another one now
    const { activeElement: here } = document;
    if (here === document.body || (here === clicked.element && here.dataset.ask !== clicked.asked)) {
      const same = [...inside.querySelectorAll("[data-ask]")].find((button) => button.dataset.ask === clicked.asked);
      (same ?? inside.querySelector(".walk button.next, .walk button")).focus({ preventScroll: true });
    }
    clicked = null;
  };
  const DRAWN = ["status", "top", "sound", "large", "stop", "below"].map((name) => `#inside-${name}`).join();
  const isOwn = (node) => node.id === "inside-field" || node.matches?.(".field, .cell");
  let due = 0;
  new MutationObserver((changes) => {
    const anew = changes.some(
      ({ target, addedNodes, removedNodes }) =>
        target.closest?.(DRAWN) && !isOwn(target) && [...addedNodes, ...removedNodes].some((node) => !isOwn(node))
    );
    if (anew) due ||= requestAnimationFrame(() => ((due = 0), settle()));
  }).observe(document.documentElement, { childList: true, subtree: true });
})();

// One clock for every picture of the sound in hand, in the page and in a saved report: whatever is of class `timed`
// shows its cursor, a click there seeks, a drag selects a stretch; whatever is of class `transport` has its buttons.
// What plays is the sound as the network heard it: decoded on the server, so that no encoder delay shifts the cursor.
(() => {
  const SHORTEST = 0.05; // seconds; a stretch below that was meant as a click
  const STEPS = { ArrowLeft: -0.1, ArrowDown: -0.1, ArrowRight: 0.1, ArrowUp: 0.1, PageDown: -1, PageUp: 1 };
  const timed = document.getElementsByClassName("timed"); // both live: also what is drawn later
  const bars = document.getElementsByClassName("transport");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  let audio = new Audio();
  let stretch = null; // {from, to} in seconds
  let alone = false; // only the stretch is being heard
  let looping = false;
  let anchor = null; // where a stretch that is selected by keyboard begins
  let failed = "";
  let loads = 0;

  const length = () => (Number.isFinite(audio.duration) ? audio.duration : 0);
  const within = (seconds) => Math.min(Math.max(seconds, 0), length());
  const shown = () => [...bars].some((bar) => bar.offsetParent);
  const two = (seconds) => seconds.toFixed(2);
  const put = (element, text) => element.textContent === text || (element.textContent = text);
  const tell = (name, detail) => document.dispatchEvent(new CustomEvent(name, { detail }));

  // ---- what is seen

  const paint = () => {
    const now = audio.currentTime;
    for (const figure of timed) {
      const { start, seconds } = figure.dataset;
      const place = (time) => (time - start) / seconds;
      const cursor = figure.querySelector(".cursor");
      const at = place(now);
      cursor.style.transform = `translateX(${at * 100}%)`; // it is as wide as the plane
      cursor.style.visibility = length() && at >= 0 && at <= 1 ? "visible" : "hidden";
      mark(figure.querySelector(".stretch"), stretch && place(stretch.from), stretch && place(stretch.to));
    }
    for (const bar of bars) paintBar(bar, now);
  };

  const mark = (element, from, to) => {
    const [left, right] = [Math.max(from, 0), Math.min(to, 1)];
    element.hidden = !stretch || right <= left;
    element.style.left = `${left * 100}%`;
    element.style.width = `${(right - left) * 100}%`;
  };

  const paintBar = (bar, now) => {
    const find = (name) => bar.querySelector(name);
    const total = length();
    const play = find("[data-do=play]");
    const name = audio.paused ? "Play" : "Pause";
    put(play.querySelector("span"), name);
    play.classList.toggle("playing", !audio.paused);
    for (const button of bar.querySelectorAll("button")) button.disabled = !total;
    find("[data-do=loop]").setAttribute("aria-pressed", looping);
    put(find(".time"), failed || `${now.toFixed(1)} / ${total.toFixed(1)} s`);
    const seek = find(".seek");
    seek.querySelector(".gone").style.width = `${total ? (now / total) * 100 : 0}%`;
    mark(seek.querySelector(".stretch"), stretch && stretch.from / total, stretch && stretch.to / total);
    if (audio.paused) {
      // not while it plays: a screen reader would never stop
      seek.setAttribute("aria-valuemax", two(total));
      seek.setAttribute("aria-valuenow", two(now));
      seek.setAttribute("aria-valuetext", `${two(now)} of ${two(total)} seconds`);
    }
    bar.classList.toggle("has-stretch", Boolean(stretch));
    put(find(".chosen output"), stretch ? `${two(stretch.from)} to ${two(stretch.to)} s` : "");
    find("[data-do=name]").hidden = !bar.closest(".names"); // where the answer is shown
  };

  let frame = 0;
  let soon = 0;
  let last = -Infinity;
  const run = (stamp) => {
    frame = 0;
    // who asked for less motion gets a cursor that steps, four times a second, and does not glide
    if (!calm.matches || audio.paused || stamp - last >= 250) {
      last = stamp;
      paint();
    }
    bound();
    if (!audio.paused) refresh();
  };
  const refresh = () => (frame ||= requestAnimationFrame(run));

  // The end of what is to be heard. Also called where no frames are drawn, in a tab in the background.
  const bound = () => {
    if (audio.paused || !stretch || !(looping || alone)) return;
    const left = stretch.to - audio.currentTime;
    if (left > 0) {
      clearTimeout(soon);
      if (left < 0.1) soon = setTimeout(bound, 1000 * left); // the next frame may come up to 17 ms late
      return;
    }
    if (looping) audio.currentTime = stretch.from;
    else {
      alone = false;
      audio.pause();
      audio.currentTime = stretch.to;
    }
  };

  const listen = () => {
    for (const event of ["play", "pause", "seeked", "loadedmetadata", "emptied", "ended"])
      audio.addEventListener(event, refresh);
    audio.addEventListener("timeupdate", bound);
    audio.addEventListener("ended", () => looping && play());
    audio.addEventListener("error", () => {
      failed = "The sound did not load; hear it again.";
      refresh();
    });
  };
  listen();

  // ---- what can be done

  const play = () => {
    if (!length()) return;
    const { from, to } = looping && stretch ? stretch : alone && stretch ? stretch : { from: 0, to: length() };
    const now = audio.currentTime;
    if (now >= to - 0.01 || (looping && stretch && now < from)) audio.currentTime = from;
    const begun = () => (failed = "");
    audio.play().then(begun, (error) => {
      if (error.name === "AbortError") return; // a pause or another sound came first
      failed = "The browser does not let it play.";
      refresh();
    });
  };
  const pause = () => audio.pause();
  const seek = (seconds) => {
    alone = false;
    audio.currentTime = within(seconds);
    refresh();
  };
  const select = (from, to) => {
    const [a, b] = [within(Math.min(from, to)), within(Math.max(from, to))];
    stretch = b - a >= SHORTEST ? { from: a, to: b } : null;
    alone = false;
    refresh();
    tell("clock:select", stretch);
  };
  const clear = () => {
    anchor = null;
    select(0, 0);
  };
  const load = async (url) => {
    const mine = ++loads;
    pause();
    [looping, failed] = [false, ""];
    clear();
    if (audio.src.startsWith("blob:")) URL.revokeObjectURL(audio.src);
    audio.removeAttribute("src");
    audio.load();
    if (!url) return;
    try {
      const answer = await fetch(url);
      if (!answer.ok) throw new Error(answer.status);
      const sound = await answer.blob();
      if (mine !== loads) return; // another came since
      audio.src = URL.createObjectURL(sound); // in hand as a whole: every seek is at once
      await new Promise((done) => {
        audio.addEventListener("loadedmetadata", done, { once: true });
        audio.addEventListener("error", done, { once: true });
        audio.addEventListener("emptied", done, { once: true });
      });
    } catch {
      if (mine === loads) failed = "The sound did not load; hear it again.";
    }
    refresh();
  };
  const actions = {
    play: () => (audio.paused ? play() : pause()),
    loop: () => (looping = !looping),
    alone: () => {
      seek(stretch.from);
      alone = true;
      play();
    },
    name: () => document.getElementById("name-stretch").click(),
    clear,
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".transport button");
    if (!button) return;
    actions[button.dataset.do]();
    refresh();
  });

  // ---- pointer: a click seeks, a drag selects; on the bar's own line a drag seeks

  const fraction = (event, element) => {
    const { left, width } = element.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - left) / width, 0), 1);
  };
  const timeOf = (event, plane) => {
    const figure = plane.closest(".timed");
    const { start, seconds } = figure ? figure.dataset : { start: 0, seconds: length() };
    return Number(start) + fraction(event, plane) * seconds;
  };
  let drag = null;

  document.addEventListener("pointerdown", (event) => {
    const plane = event.target.closest?.(".plane, .seek");
    if (!plane || event.button !== 0 || !length()) return;
    drag = { plane, x: event.clientX, time: timeOf(event, plane), far: false };
    plane.setPointerCapture(event.pointerId);
    if (plane.matches(".seek")) seek(drag.time);
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag) return read(event);
    if (drag.plane.matches(".seek")) return seek(timeOf(event, drag.plane));
    drag.far ||= Math.abs(event.clientX - drag.x) > 4;
    if (drag.far) select(drag.time, timeOf(event, drag.plane));
  });
  document.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { plane, time, far } = drag;
    drag = null;
    anchor = null;
    if (plane.matches(".seek")) return;
    if (far && stretch) return seek(stretch.from);
    seek(time);
    const cell = cellAt(event, plane.closest(".timed"));
    if (cell) tell("clock:cell", cell);
  });
  document.addEventListener("pointercancel", () => (drag = null)); // the page is being scrolled

  // ---- keys, where a picture or the bar's line has the focus; space also where nothing has

  document.addEventListener("keydown", (event) => {
    const here = event.target.closest?.(".plane, .seek");
    const nowhere = event.target === document.body && event.key === " ";
    if ((!here && !nowhere) || !shown() || event.ctrlKey || event.altKey || event.metaKey) return;
    const now = audio.currentTime;
    const to = { Home: 0, End: length() }[event.key] ?? (event.key in STEPS ? now + STEPS[event.key] : null);
    if (event.key === " ") actions.play();
    else if (event.key === "Escape") clear();
    else if (to === null) return;
    else if (event.shiftKey) {
      const at = (end) => Math.abs(now - end) < 0.005; // the player rounds
      anchor ??= at(stretch?.from) ? stretch.to : at(stretch?.to) ? stretch.from : now;
      seek(to);
      select(anchor, within(to));
    } else {
      anchor = null;
      seek(to);
    }
    event.preventDefault();
  });

  // ---- what a cell says: the very one that the picture shows at that place (cnn.pictures._cells)

  const maps = new WeakMap();
  const decoded = (figure) => {
    if (!maps.has(figure)) {
      const { shape, low, high, data } = JSON.parse(figure.dataset.map);
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      const steps = new DataView(bytes.buffer);
      const value = (row, column) =>
        low + ((high - low) * steps.getUint16(2 * (row * shape[1] + column), true)) / 65535;
      maps.set(figure, { shape, value, centres: figure.dataset.centres.split(" ").map(Number) });
    }
    return maps.get(figure);
  };
  const strideOf = (cells, of) => {
    let stride = 1;
    while (Math.ceil(of / stride) > cells) stride *= 2;
    return stride;
  };
  const cellAt = (event, figure) => {
    if (!figure?.dataset.map) return null;
    const plane = figure.querySelector(".plane");
    const { top, height } = plane.getBoundingClientRect();
    const up = 1 - (event.clientY - top) / height;
    const { start, seconds, hop, tap, channel } = figure.dataset;
    const { shape, value, centres } = decoded(figure);
    const frames = Math.floor(seconds / hop + 1e-6) + 1;
    const nearest = (place, cells, of) =>
      Math.min(Math.max(Math.floor(place / strideOf(cells, of) + 0.5), 0), cells - 1);
    const column = nearest((fraction(event, plane) * seconds) / hop, shape[1], frames);
    const row = nearest(up * centres.length - 0.5, shape[0], centres.length);
    return {
      tap: tap ?? "",
      channel: channel === undefined ? null : Number(channel),
      row,
      column,
      seconds: Number(start) + Math.min(column * strideOf(shape[1], frames) * hop, Number(seconds)),
      hertz: centres[Math.min(row * strideOf(shape[0], centres.length), centres.length - 1)],
      value: value(row, column),
      figure,
    };
  };

  const inWords = (hertz) => (hertz >= 1000 ? `${(hertz / 1000).toPrecision(3)} kHz` : `${hertz.toFixed(0)} Hz`);
  let reading = null;
  const read = (event) => {
    const plane = event.pointerType === "mouse" && event.target.closest?.(".timed .plane");
    if (!plane) {
      if (reading) reading.hidden = true;
      return;
    }
    if (!reading?.isConnected) {
      reading = document.createElement("div");
      reading.className = "reading";
      reading.setAttribute("aria-hidden", "true");
      (plane.closest(".gradio-container") ?? document.body).append(reading); // its typeface
    }
    const figure = plane.closest(".timed");
    const cell = cellAt(event, figure);
    const number = cell && Number(cell.value.toPrecision(3)).toString().replace("-", "−");
    reading.hidden = false;
    put(
      reading,
      cell
        ? `${number}${figure.dataset.unit ? ` ${figure.dataset.unit}` : ""} · ${two(cell.seconds)} s · ${inWords(cell.hertz)}`
        : `${two(timeOf(event, plane))} s`
    );
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - reading.offsetWidth - 4);
    reading.style.transform = `translate(${left}px, ${Math.max(event.clientY - 34, 2)}px)`;
  };

  // ---- pictures and bars that come later, and the sound that a saved report brings with it

  new MutationObserver(refresh).observe(document.documentElement, { childList: true, subtree: true });
  document.addEventListener("DOMContentLoaded", () => {
    const given = document.querySelector("audio.clip");
    if (!given) return;
    audio = given; // without this script the browser's own player stands there
    given.hidden = true;
    listen();
    const bytes = Uint8Array.from(atob(given.src.split(",")[1]), (letter) => letter.charCodeAt(0));
    given.src = URL.createObjectURL(new Blob([bytes], { type: "audio/wav" }));
    document.documentElement.classList.add("clocked");
  });

  window.clock = {
    load,
    play,
    pause,
    seek,
    select,
    clear,
    time: () => audio.currentTime,
    get playing() {
      return !audio.paused;
    },
    get stretch() {
      return stretch && { ...stretch };
    },
    get audio() {
      return audio;
    },
  };
})();

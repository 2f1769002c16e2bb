// The Why tab: what is asked there goes to the server (cnn/ui/why.py); a rectangle is erased with the mouse.
(() => {
  const root = () => document.getElementById("why");
  const ask = (detail) => {
    root()?.classList.add("asked"); // until the server's own words come
    window.dispatchEvent(new CustomEvent("why-ask", { detail }));
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#why [data-ask]");
    if (button) return ask(JSON.parse(button.dataset.ask));
    if (event.target.closest?.("#why [data-mode=erase]")) erasing(!root().classList.contains("erasing"));
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest?.("#why form[data-edit]");
    if (!form) return;
    event.preventDefault();
    const numbers = [...form.querySelectorAll("input")].map((x) => [x.name, x.value === "" ? null : x.valueAsNumber]);
    ask({ edit: form.dataset.edit, ...Object.fromEntries(numbers) });
  });
  const fill = (values) => {
    for (const [name, value] of Object.entries(values))
      root().querySelector(`form[data-edit=erase] input[name=${name}]`).value = value;
  };
  document.addEventListener("clock:select", ({ detail }) => {
    if (detail && root()?.offsetParent) fill({ start: detail.from.toFixed(2), end: detail.to.toFixed(2) });
  });

  // ---- a rectangle, dragged over a picture while that is the mode; otherwise a drag selects, as everywhere

  let drag = null; // {plane, from, to}
  const erasing = (on) => {
    root().classList.toggle("erasing", on);
    root().querySelector("[data-mode=erase]").setAttribute("aria-pressed", on);
    if (!on) stop();
    else if (root().querySelector("#why-map .plane").getBoundingClientRect().top < 60)
      root().querySelector("#why-map").scrollIntoView({ block: "start" });
  };
  const stop = () => {
    drag?.rubber.remove();
    drag = null;
  };
  const place = ({ clientX, clientY }, plane) => {
    const { left, top, width, height } = plane.getBoundingClientRect();
    const within = (share) => Math.min(Math.max(share, 0), 1);
    return { x: within((clientX - left) / width), up: within(1 - (clientY - top) / height) };
  };
  const sides = ({ from, to }) => ({
    left: Math.min(from.x, to.x), right: Math.max(from.x, to.x), foot: Math.min(from.up, to.up), head: Math.max(from.up, to.up),
  });
  const draw = () => {
    const { left, right, foot, head } = sides(drag);
    Object.assign(drag.rubber.style, {
      left: `${100 * left}%`, width: `${100 * (right - left)}%`, bottom: `${100 * foot}%`, height: `${100 * (head - foot)}%`,
    });
  };
  const hertz = (up, plane) => {
    const centres = plane.closest(".timed").dataset.centres.split(" ").map(Number);
    const row = up * centres.length - 0.5;
    if (row <= 0) return 0; // below the lowest centre all is erased, above the highest all that the network hears
    if (row >= centres.length - 1) return Number(plane.closest(".erasable").dataset.top);
    const low = Math.floor(row);
    return Math.round(centres[low] + (row - low) * (centres[low + 1] - centres[low]));
  };
  const on = (name, act) => document.addEventListener(name, act, true); // before the clock sees it
  on("pointerdown", (event) => {
    const plane = root()?.classList.contains("erasing") && event.target.closest?.("#why-map .plane");
    if (!plane || event.button !== 0) return;
    event.stopPropagation();
    event.preventDefault();
    stop();
    for (const reading of document.querySelectorAll(".reading")) reading.hidden = true; // the clock's
    const at = place(event, plane);
    drag = { plane, from: at, to: at, rubber: document.createElement("b") };
    drag.rubber.className = "rubber";
    plane.append(drag.rubber);
    plane.setPointerCapture(event.pointerId);
  });
  on("pointermove", (event) => {
    if (!drag) return;
    event.stopPropagation();
    drag.to = place(event, drag.plane);
    draw();
  });
  on("pointerup", (event) => {
    if (!drag) return;
    event.stopPropagation();
    const { left, right, foot, head } = sides(drag);
    const { plane } = drag;
    stop();
    const { width, height } = plane.getBoundingClientRect();
    if ((right - left) * width < 4 || (head - foot) * height < 4) return; // a click
    const { start, seconds } = plane.closest(".timed").dataset;
    const time = (x) => Number((Number(start) + x * seconds).toFixed(3));
    const asked = { start: time(left), end: time(right), low: hertz(foot, plane), high: hertz(head, plane) };
    fill(asked);
    ask({ edit: "erase", ...asked });
  });
  on("pointercancel", stop);
  on("keydown", (event) => {
    if (event.key === "Escape" && root()?.classList.contains("erasing")) {
      event.stopPropagation(); // the clock keeps its stretch
      erasing(false);
    }
  });

  new MutationObserver((changes) => {
    if (changes.some(({ target }) => target.closest?.("#why-status"))) root()?.classList.remove("asked");
  }).observe(document.documentElement, { childList: true, subtree: true });
})();

// Versions of one sound on the one clock (assets/clock.js), in the page and in a saved report: every button of class
// `hear` in a table of class `parts` plays one of them in the place of the sound in hand, at the same second.
(() => {
  const buttons = document.getElementsByClassName("hear"); // live: also what is drawn later
  const player = () => window.clock.audio;
  let offered = {}; // {name: {url, file}}, what the server made
  let home = ""; // the sound in hand, as the clock has it
  let given = ""; // what the player got in its place
  let current = ""; // its name
  let pending = null; // {at, play}: till the player knows what it got
  let turn = 0;
  let watched = null;

  const away = () => Boolean(given) && player().src === given;
  const paint = () => {
    if (given && !away() && player().src !== home) {
      // the clock has another sound
      URL.revokeObjectURL(home);
      [home, given, current] = ["", "", ""];
    }
    for (const button of buttons) {
      const on = away() && button.dataset.sound === current;
      button.setAttribute("aria-pressed", on);
      button.classList.toggle("playing", on && window.clock.playing);
    }
  };
  const watch = () => {
    if (watched === player()) return;
    watched = player();
    for (const event of ["play", "pause", "ended", "loadedmetadata", "emptied"]) watched.addEventListener(event, paint);
    watched.addEventListener("loadedmetadata", () => {
      if (!pending) return;
      const { at, play } = pending;
      pending = null;
      window.clock.seek(at);
      if (play) window.clock.play();
    });
  };
  const swap = (src, name, play) => {
    watch();
    const old = away() ? given : "";
    if (!old) home = player().src;
    pending = { at: pending?.at ?? window.clock.time(), play };
    [given, current] = [src, name];
    window.clock.pause();
    player().src = src;
    if (old && old !== home) URL.revokeObjectURL(old);
    paint();
  };
  const goHome = () => {
    turn++;
    if (away()) swap(home, "", false);
    given = "";
    paint();
  };

  // The part of a longer sound, with silence in front: it lies in the window that was explained.
  const laid = (bytes, start) => {
    const view = new DataView(bytes.buffer);
    let [at, rate, block] = [12, 0, 0];
    for (; view.getUint32(at) !== 0x64617461; at += 8 + view.getUint32(at + 4, true)) // "data"
      if (view.getUint32(at) === 0x666d7420) [rate, block] = [view.getUint32(at + 12, true), view.getUint16(at + 20, true)];
    const silence = new Uint8Array(Math.round(start * rate) * block);
    const head = bytes.slice(0, at + 8);
    const sizes = new DataView(head.buffer);
    sizes.setUint32(4, view.getUint32(4, true) + silence.length, true);
    sizes.setUint32(at + 4, view.getUint32(at + 4, true) + silence.length, true);
    return new Blob([head, silence, bytes.subarray(at + 8)], { type: "audio/wav" });
  };
  const read = async (url) => {
    if (url.startsWith("data:")) return Uint8Array.from(atob(url.split(",")[1]), (letter) => letter.charCodeAt(0));
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(answer.status);
    return new Uint8Array(await answer.arrayBuffer());
  };
  const hear = async (button, play) => {
    const table = button.closest(".parts");
    const name = button.dataset.sound;
    const said = table.parentElement.querySelector(".unplayed");
    const mine = ++turn;
    try {
      const bytes = await read(button.parentElement.querySelector("audio")?.src ?? offered[name].url);
      if (mine !== turn) return;
      said.textContent = "";
      swap(URL.createObjectURL(laid(bytes, Number(table.dataset.start))), name, play);
    } catch {
      said.textContent = "This part did not load; choose the class again.";
    }
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".parts .hear");
    if (button) {
      if (!away() || button.dataset.sound !== current) hear(button, true);
      else if (window.clock.playing) window.clock.pause();
      else window.clock.play();
    }
    const keep = event.target.closest?.(".parts .keep");
    if (keep && offered[keep.dataset.sound]) {
      const link = document.createElement("a");
      const { url, file } = offered[keep.dataset.sound];
      [link.href, link.download] = [url, file];
      link.click();
    }
    // elsewhere in the page the sound in hand is heard
    if (given) setTimeout(() => [...buttons].some((x) => x.offsetParent) || goHome());
  });

  // The server made other parts: what is being heard goes on as the part of the same name.
  const offer = (files) => {
    offered = Object.fromEntries((files ?? []).map((f) => [f.orig_name.match(/(\w+)\.wav$/)[1], { url: f.url, file: f.orig_name }]));
    if (!away()) return paint();
    const again = offered[current] && document.querySelector(`.parts .hear[data-sound=${current}]`);
    if (again) hear(again, window.clock.playing);
    else goHome();
  };
  new MutationObserver(paint).observe(document.documentElement, { childList: true, subtree: true });

  window.parts = { offer };
})();

// The address of what is in hand: ?example=dog&from=1.20&to=2.45. Only an example clip has one: others have not its sound.
(() => {
  const asked = new URLSearchParams(location.search); // before the page changes it
  const known = new Map(); // in the order in which they were first set
  const address = () => {
    const url = new URL(location.href);
    for (const name of known.keys()) url.searchParams.delete(name);
    if (known.get("example")) for (const [name, value] of known) if (value) url.searchParams.set(name, value);
    url.hash = "";
    return url.href;
  };
  const show = () => {
    history.replaceState(history.state, "", address());
    for (const place of document.querySelectorAll(".link")) {
      place.hidden = !known.get("example");
      place.querySelector("input").value = address();
      place.querySelector("[role=status]").textContent = "";
    }
  };
  // {name: value}; an empty value takes the name out
  const set = (values) => {
    for (const [name, value] of Object.entries(values)) known.set(name, value);
    show();
  };
  document.addEventListener("clock:select", ({ detail }) =>
    set({ from: detail?.from.toFixed(2), to: detail?.to.toFixed(2) })
  );
  document.addEventListener("click", async (event) => {
    const place = event.target.closest?.(".link button")?.closest(".link");
    if (!place) return;
    place.querySelector("input").select();
    let done = true;
    try {
      await navigator.clipboard.writeText(address());
    } catch {
      done = document.execCommand("copy"); // where the page is not served by https
    }
    place.querySelector("[role=status]").textContent = done ? "Copied." : "Press Ctrl+C to copy it.";
  });
  window.link = {
    set,
    asked: (name) => asked.get(name) ?? "",
    address: () => (known.get("example") ? address() : ""),
  };
})();

// Gradio's audio box refuses in the browser what the system does not call audio: webm, mp4, caf, names without an
// extension. Here the content decides, on the server: so whatever is chosen or dropped is handed over as audio.
(() => {
  const box = "#sound";
  const largest = Number("$MAX_BYTES");
  const refused = (files) => {
    const file = [...files].find((file) => file.size > largest);
    const place = document.getElementById("refused");
    const limit = `${Math.round(largest / 1e6)} MB`;
    place.textContent = file ? `${file.name} is larger than ${limit}; cut it, or save it as FLAC or MP3.` : "";
    return Boolean(file);
  };
  const asAudio = (files) => {
    const handed = new DataTransfer();
    for (const file of files) {
      const known = file.type.startsWith("audio/");
      handed.items.add(known ? file : new File([file], file.name, { type: "audio/unknown" }));
    }
    return handed;
  };
  // once there is an answer: tell those who press play in vain that it is the player, not the sound
  window.sayIfUnplayable = (sound) => {
    const place = document.getElementById("unplayable");
    place.textContent = "";
    if (!sound?.url) return;
    const player = new Audio();
    player.onerror = () => (place.textContent = "Your browser cannot play this format; the network heard it.");
    player.preload = "metadata";
    // Gradio may wrap the address of what it serves already into another of the kind
    player.src = sound.url.replace(/^.*\/gradio_api\/file=(?=https?:)/, "");
  };
  const isChooser = (target) => target instanceof HTMLInputElement && target.type === "file" && target.closest(box);

  document.addEventListener(
    "click",
    (event) => {
      if (isChooser(event.target)) event.target.removeAttribute("accept");
      // every way to another sound is a button in this column: what was said of the last one has had its day
      if (event.target.closest?.("#hear button")) {
        window.clock.pause(); // a microphone would hear it
        for (const id of ["refused", "unplayable"]) document.getElementById(id).textContent = "";
      }
    },
    true
  );
  document.addEventListener(
    "change",
    (event) => {
      if (!isChooser(event.target)) return;
      if (refused(event.target.files)) {
        event.stopImmediatePropagation();
        event.target.value = "";
      } else {
        event.target.files = asAudio(event.target.files).files;
      }
    },
    true
  );
  document.addEventListener(
    "drop",
    (event) => {
      if (!event.isTrusted || !event.target.closest?.(box) || !event.dataTransfer.files.length) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      const dataTransfer = refused(event.dataTransfer.files) ? new DataTransfer() : asAudio(event.dataTransfer.files);
      event.target.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    },
    true
  );
})();

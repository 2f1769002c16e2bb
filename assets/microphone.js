// The microphone is for sounds, not for speech: ask the browser to leave them as they are, and say what it granted.
(() => {
  const said = (text) => {
    const place = document.getElementById("granted");
    if (place) place.textContent = text;
  };
  const media = navigator.mediaDevices;
  if (!media || !media.getUserMedia) {
    // the page is drawn later than this script runs
    const timer = setInterval(() => {
      if (!document.getElementById("granted")) return;
      clearInterval(timer);
      said("No microphone here: browsers open it only for https pages and for localhost. Upload a file instead.");
    }, 200);
    return;
  }
  const refusals = {
    NotAllowedError: "not allowed. Allow it in the browser's address bar.",
    NotFoundError: "none found. Connect one.",
    NotReadableError: "in use by another program, or switched off. Free it and try again.",
    OverconstrainedError: "the one chosen is not there any more. Choose another.",
  };
  const original = media.getUserMedia.bind(media);
  media.getUserMedia = async (wanted) => {
    if (!wanted || !wanted.audio) return original(wanted);
    const audio = wanted.audio === true ? {} : wanted.audio;
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
    let stream;
    try {
      stream = await original({ ...wanted, audio: { ...audio, ...plain } });
    } catch (error) {
      said(`Microphone: ${refusals[error.name] ?? `it does not open (${error.name}).`} Or upload a file.`);
      throw error;
    }
    const got = stream.getAudioTracks()[0].getSettings();
    const words = (name, value) => (value === undefined ? `${name} unknown` : `${name} ${value ? "ON" : "off"}`);
    const parts = [
      got.sampleRate ? `${got.sampleRate / 1000} kHz` : "rate unknown",
      got.channelCount === 1 ? "mono" : got.channelCount === 2 ? "stereo" : "channels unknown",
      words("echo cancellation", got.echoCancellation),
      words("noise suppression", got.noiseSuppression),
      words("automatic gain", got.autoGainControl),
    ];
    const cleaned = got.echoCancellation || got.noiseSuppression || got.autoGainControl;
    said(
      `Microphone: ${parts.join(", ")}.` +
        (cleaned ? " What is on was made for speech and may eat other sounds; this browser did not turn it off." : "")
    );
    return stream;
  };
})();

"""A saved report: one HTML file with the sound, the pictures, the numbers, the network and the versions.

It opens offline and asks nothing of anybody; the clock of the page plays it, and the parts of it that the explanation
tells apart. Without scripts the browser's own player does. Everything from outside is escaped, and no script but the
page's own two is allowed to run.
"""

import base64
import hashlib
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile

from cnn.audio import Clip, resample
from cnn.classifier import Prediction
from cnn.labels import spoken
from cnn.pictures import percent

ASSETS = Path(__file__).resolve().parents[1] / "assets"
PLAYABLE = (8_000, 48_000)  # Hz: what every browser plays
VERSIONS = ("torch", "torchaudio", "numpy", "soxr", "soundfile", "av", "matplotlib")


@dataclass(frozen=True)
class Drawn:
    """What is seen of an answer, as HTML that is escaped already: the page's own pieces (cnn.ui.figures)."""

    verdict: str
    player: str  # the clock's buttons
    pictures: Sequence[str]  # of the sound
    layers: Sequence[str]  # of the network
    facts: str
    evidence: str = ""  # why the name, and whether to believe it


def wav(clip: Clip) -> bytes:
    """The sound as the network heard it, for browsers: WAV, 16 bits, at its own rate if that is within PLAYABLE.

    As loud as it is; turned down only as far as samples beyond full scale need.
    """
    low, high = PLAYABLE
    rate = min(max(clip.rate, low), high)
    samples = resample(clip.samples, clip.rate, rate)
    samples = samples / max(1.0, float(np.abs(samples).max()))
    file = io.BytesIO()
    soundfile.write(file, np.round(samples * 32767).astype(np.int16), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def report(
    prediction: Prediction,
    name: str,
    drawn: Drawn,
    *,
    link: str = "",
    about: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> str:
    """The whole file. `name`: the sound's, for people. `link`: the address that gives the same answer, if there is one.
    `about`: what else is known of the network, by what it is.
    """
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    script, style = (
        "".join((ASSETS / name).read_text(encoding="utf-8") for name in names)
        for names in (("clock.js", "parts.js"), ("report.css", "clock.css", "parts.css"))
    )
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; media-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'; form-action 'none'; base-uri 'none'"
    )
    sound = base64.b64encode(wav(prediction.clip)).decode()
    address = escape(link)
    same = f'<p>The same numbers again: <a href="{address}" rel="noreferrer">{address}</a></p>' if link else ""
    layers = f"<h2>What each layer makes of it</h2>{''.join(drawn.layers)}" if drawn.layers else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(name)}: what is that sound?</title>
<style>{style}</style></head>
<body><main><h1>{escape(name)}</h1>{drawn.verdict}
<div class="clock">{drawn.player}</div><audio class="clip" controls src="data:audio/wav;base64,{sound}"></audio>
{"".join(drawn.pictures)}{drawn.facts}{same}
{drawn.evidence}{layers}{_numbers(prediction)}
<h2>The network and the versions</h2>{_table(_made(prediction, about or {}, when))}
</main><script>{script}</script></body></html>
"""


def _numbers(prediction: Prediction) -> str:
    """Every class with probability and logit, and every window's likeliest."""
    if not prediction.labels:
        return ""
    rows = "".join(
        f'<tr><td>{escape(spoken(x.name))}</td><td class="number">{percent(x.probability)}</td>'
        f'<td class="number">{x.probability:.4g}</td><td class="number">{x.logit:.4f}</td></tr>'
        for x in prediction.labels
    )
    head = '<tr><th>Class</th><th></th><th class="number">Probability</th><th class="number">Logit</th></tr>'
    heard = prediction.window_probabilities.any(axis=1)
    starts = ", ".join(f"{start:.1f} s" for start in prediction.starts[heard])
    shown = prediction.starts[prediction.window]
    means = f"<p>Means over the windows that begin at {starts}; the pictures show the one at {shown:.1f} s.</p>"
    return (
        f"<h2>The numbers</h2>{means if heard.sum() > 1 else ''}<details><summary>All {len(prediction.labels)} classes"
        f"</summary><table>{head}{rows}</table></details>"
    )


def _made(prediction: Prediction, about: Mapping[str, str], when: str) -> dict[str, str]:
    """What made the answer, by what it is."""
    clip, mel = prediction.clip, prediction.mel_config
    versions = ", ".join(f"{package} {version(package)}" for package in VERSIONS)
    return {
        "Network": prediction.network,
        **about,
        "Ran on": prediction.device,
        "It hears": f"{mel.seconds:g} s at a time at {mel.sample_rate / 1000:g} kHz, {mel.n_mels} mel bins from "
        f"{mel.f_min:g} to {mel.f_max:g} Hz, one picture column every {1000 * mel.hop_length / mel.sample_rate:.3g} ms",
        "Sound": f"{len(clip.samples)} samples at {clip.rate} Hz, {clip.format}",
        "SHA-256 of the samples": hashlib.sha256(clip.samples.astype("<f4").tobytes()).hexdigest(),
        "Made": when,
        "Versions": f"Python {platform.python_version()}, {versions}",
    }


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{escape(what)}</th><td>{escape(told)}</td></tr>" for what, told in rows.items())
    return f"<table>{cells}</table>"

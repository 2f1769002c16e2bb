"""What is shown at a stop inside the network: maps, channels and their shares, kernels, gates, pyramid, head. HTML with
true alternative text; everything from outside is escaped."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.image import imsave

from cnn.anatomy import Anatomy, Field
from cnn.canvas import NARROW, WIDE, Layout
from cnn.classifier import Prediction
from cnn.inside import Channel, Look
from cnn.labels import spoken
from cnn.mel import MelConfig
from cnn.pictures import Scale, feature_map, hertz_in_words, percent, seconds_in_words, spectrogram, tap_title
from cnn.ui.figures import figure
from cnn.ui.stops import part_of
from cnn.ui.strip import asking, short

SMALL = Layout(width=292, left=38, right=58, names=0, text=11)  # four beside each other on a wide screen
OWN, LAYER, NETWORK = "own", "layer", "network"  # what a colour scale spans
Limits = tuple[float, float] | None


@dataclass(frozen=True)
class Ruler:
    """On which axes and colours everything of a clip is drawn."""

    scale: Scale
    narrow: bool
    colours: str  # OWN, LAYER or NETWORK
    widest: Limits = None  # lowest and highest cell of the whole network; needed for NETWORK

    def limits(self, look: Look) -> Limits:
        return {OWN: None, LAYER: (look.low, look.high), NETWORK: self.widest}[self.colours]

    @property
    def large(self) -> Layout:
        return NARROW if self.narrow else WIDE

    @property
    def small(self) -> Layout:
        return NARROW if self.narrow else SMALL


def signed(value: float) -> str:
    """'+1.3', '−0.042', '0': two significant digits, with its sign."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:+g}".replace("-", "−") if rounded else "0"


def plain(value: float) -> str:
    return signed(value).removeprefix("+")


def sound_picture(prediction: Prediction, ruler: Ruler) -> str:
    """The spectrogram on which the clicked cell's field is drawn."""
    mel = prediction.mel_config
    picture = spectrogram(prediction.mel, ruler.scale, floor=mel.floor_db, layout=ruler.large, height=150)
    drawn = figure(picture, scale=ruler.scale, values=prediction.mel, tap="picture", unit="dB")
    return f'<div class="sees" data-bins="{mel.n_mels}" data-frames="{mel.frames}">{drawn}</div>'


def mean_map(look: Look, ruler: Ruler) -> str:
    """Large: the mean over the channels."""
    picture = feature_map(
        look.mean, ruler.scale, title=f"{tap_title(look.tap)}, mean", shape=look.shape, layout=ruler.large, height=130,
        limits=ruler.limits(look),
    )  # fmt: skip
    said = "The mean over all channels. Click a cell: the frame on the picture above shows what it can see."
    return figure(picture, said, scale=ruler.scale, values=look.mean, tap=look.tap)


def large_channel(channel: Channel, look: Look, ruler: Ruler) -> str:
    """One channel, large, with what it says of the sound, its neighbours and a way back to the mean."""
    picture = feature_map(
        channel.values, ruler.scale, title=f"{tap_title(look.tap)}, channel {channel.index}", shape=look.shape[1:],
        layout=ruler.large, height=130, limits=ruler.limits(look),
    )  # fmt: skip
    drawn = figure(picture, scale=ruler.scale, values=channel.values, tap=look.tap, channel=channel.index)
    last = look.shape[0] - 1
    ways = [
        _button("‹ previous", channel=max(channel.index - 1, 0)),
        f'<label>channel <input type="number" min="0" max="{last}" value="{channel.index}" data-ask-number="channel">'
        f" of 0 to {last}</label>",
        _button("next ›", channel=min(channel.index + 1, last)),
        _button("show the mean", channel=None),
    ]
    return f'{drawn}<p class="figures">{_statistics(channel, look)}</p><div class="ways">{"".join(ways)}</div>'


def channels(look: Look, ruler: Ruler, opened: int | None) -> str:
    """The channels that count most, each with its share and statistics, and how far the shares can be trusted."""
    name = escape(spoken(look.label))
    cards = []
    for channel in look.channels:
        picture = feature_map(
            channel.values, ruler.scale, title=f"channel {channel.index}", shape=look.shape[1:], layout=ruler.small,
            height=70, limits=ruler.limits(look),
        )  # fmt: skip
        drawn = figure(picture, scale=ruler.scale, values=channel.values, tap=look.tap, channel=channel.index)
        pressed = "true" if channel.index == opened else "false"
        cards.append(
            f'<article class="channel" data-opened="{pressed}">{drawn}<p>'
            f"{_button('Enlarge', pressed, channel=channel.index, label=f'Enlarge channel {channel.index}')}"
            f"<span>{_statistics(channel, look)}</span></p></article>"
        )
    total, count = signed(float(look.shares.sum())), look.shape[0]
    silent = f" {look.silent} of them are silent for this sound." if look.silent else ""
    if look.exact:
        trust = (
            f"<b>Exact shares.</b> From here the score of {name} is a plain sum: all {count} shares, {total}, and the "
            f"bias, {signed(look.rest)}, make its logit, {plain(look.logit)}."
        )
    else:
        trust = (
            "<b>Estimated shares.</b> How steeply the score changes with each cell, times the cell, summed over the "
            f"map. Many steps are still to come, so the sum is rough: all {count} shares come to {total}, the logit of "
            f"{name} is {plain(look.logit)}."
        )
    return f'<p class="trust">{trust}{silent}</p>{_all_shares(look)}<div class="channels">{"".join(cards)}</div>'


def _statistics(channel: Channel, look: Look) -> str:
    side = "adds" if channel.share >= 0 else "takes"
    about = "about " if not look.exact else ""
    return (
        f"<b>{side} {about}{plain(abs(channel.share))}</b> "
        f"{'to' if channel.share >= 0 else 'from'} {escape(spoken(look.label))} · mean {plain(channel.mean)}, "
        f"{plain(channel.low)} to {plain(channel.high)} · above 0 in {100 * channel.active:.0f} % of cells"
    )


def _all_shares(look: Look) -> str:
    """One stroke per channel: up for the name, down against it."""
    shares = np.asarray(look.shares, np.float64)
    top = float(np.abs(shares).max()) or 1.0
    wide, tall = len(shares), 40
    strokes = "".join(
        f'<rect x="{k}" y="{tall / 2 - max(h, 0):.2f}" width="1" height="{abs(h):.2f}"/>'
        for k, h in enumerate((shares / top * tall / 2).tolist())
        if abs(h) > 0.05
    )
    best, worst = int(shares.argmax()), int(shares.argmin())
    alt = (
        f"Shares of all {wide} channels: from {signed(float(shares.min()))} (channel {worst}) "
        f"to {signed(float(shares.max()))} (channel {best})"
    )
    return (
        f'<figure class="shares"><svg viewBox="0 0 {wide} {tall}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(alt)}" data-pick="channel">{strokes}<line x1="0" x2="{wide}" y1="{tall / 2}" '
        f'y2="{tall / 2}" vector-effect="non-scaling-stroke"/></svg><figcaption>All {wide} channels from left to '
        f"right: up speaks for {escape(spoken(look.label))}, down against it. Click one to open it.</figcaption>"
        "</figure>"
    )


def kernels(values: np.ndarray, opened: int | None) -> str:
    """The filters of the first layer, (C, k, k), each on its own scale; grey is zero."""
    buttons = []
    for k, kernel in enumerate(values):
        most = float(np.abs(kernel).max()) or 1.0
        png = io.BytesIO()
        imsave(png, kernel, vmin=-most, vmax=most, cmap="gray", origin="lower", format="png")
        pressed = "true" if k == opened else "false"
        picture = f'<img alt="" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'
        buttons.append(_button(f"{picture}<span>{k}</span>", pressed, channel=k, label=f"Kernel of channel {k}"))
    size = values.shape[1]
    pairs = zip(values[::2], values[1::2], strict=False)
    alike = [float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs]
    twins = ""
    if alike and np.median(alike) > 0.8:
        twins = " Neighbours look alike: this network was grown from one of half its width, by doubling every channel."
    return (
        f"<h3>The {len(values)} kernels</h3><p>What each filter looks for, in {size} × {size} cells: time runs to "
        "the right, pitch upwards; white cells want sound there, black ones want quiet, grey ones do not mind. Click "
        f'one to see where it found its pattern in your sound.{twins}</p><div class="kernels">{"".join(buttons)}</div>'
    )


def gates(now: np.ndarray, average: Sequence[float] | None, tap: str, most: int = 8) -> str:
    """Which channels this sound opens and closes, (C,) in 0..1, against the average over the example clips."""
    usual = np.asarray(average, np.float64) if average is not None else None
    if usual is None:
        order, head = np.argsort(-now), "The gates that stand widest open, and those nearest to shut"
    else:
        order, head = np.argsort(usual - now), "Opened further than for most sounds, and further shut"
    picked = [order[:most], order[::-1][:most]]
    tables = "".join(
        f'<table class="gates"><caption>{title}</caption><tr><th scope="col">channel</th><th scope="col">gate now</th>'
        f'<th scope="col">{"usual" if usual is not None else ""}</th></tr>'
        + "".join(_gate(int(k), float(now[k]), None if usual is None else float(usual[k])) for k in side)
        + "</table>"
        for title, side in zip(("Opened", "Shut"), picked, strict=True)
    )
    ticks = " The tick is the average over the example clips." if usual is not None else ""
    mean = f"Over all {len(now)} channels the gates stand at {100 * float(now.mean()):.0f} % on average"
    against = f", for the example clips at {100 * float(usual.mean()):.0f} %." if usual is not None else "."
    return f'<h3>{head}</h3><p>{mean}{against}{ticks}</p><div class="gate-tables" data-tap="{tap}">{tables}</div>'


def _gate(channel: int, now: float, usual: float | None) -> str:
    tick = f'<i class="tick" style="left:{100 * usual:.1f}%"></i>' if usual is not None else ""
    return (
        f'<tr><th scope="row">{channel}</th><td><span class="bar"><i style="width:{100 * now:.1f}%"></i>{tick}</span> '
        f"{100 * now:.0f} %</td><td>{f'{100 * usual:.0f} %' if usual is not None else ''}</td></tr>"
    )


def pyramid(levels: dict[str, np.ndarray], anatomy: Anatomy, ruler: Ruler, opened: str) -> str:
    """The levels side by side, finest first, by their mean maps."""
    cards = []
    for number, (tap, values) in enumerate(levels.items(), start=1):
        picture = feature_map(
            values, ruler.scale, title=f"level {number}", shape=part_of(anatomy, tap).shape, layout=ruler.small,
            height=70,
        )  # fmt: skip
        drawn = figure(picture, scale=ruler.scale, values=values, tap=tap)
        button = _button(f"Open level {number}", "true" if tap == opened else "false", open=tap)
        state = str(tap == opened).lower()
        cards.append(f'<article class="channel" data-opened="{state}">{drawn}<p>{button}</p></article>')
    return f'<h3>The levels side by side</h3><div class="channels">{"".join(cards)}</div><h3>Inside {opened}</h3>'


def head(prediction: Prediction, look: Look, most: int = 5) -> str:
    """The likeliest names with their logits, and the channels that made the score of the one looked at."""
    rows = "".join(
        f'<tr><th scope="row">{escape(spoken(x.name))}</th><td>{plain(x.logit)}</td>'
        f'<td><span class="bar"><i style="width:{100 * x.probability:.1f}%"></i></span> '
        f"{percent(x.probability)}</td></tr>"
        for x in prediction.labels[:most]
    )
    parts = sorted(enumerate(look.shares.tolist()), key=lambda item: -abs(item[1]))[: 2 * most]
    top = max(abs(share) for _, share in parts) or 1.0
    strokes = "".join(
        f'<tr><th scope="row">channel {k}</th><td>{signed(share)}</td><td><span class="swing"><i '
        f'class="{"for" if share >= 0 else "against"}" style="width:{50 * abs(share) / top:.1f}%"></i></span></td></tr>'
        for k, share in parts
    )
    name = escape(spoken(look.label))
    kind = "bias" if look.exact else "what the estimate leaves open"
    return (
        '<div class="head-tables"><table><caption>The likeliest names</caption><tr><th scope="col">name</th>'
        f'<th scope="col">logit</th><th scope="col">probability</th></tr>{rows}</table><table><caption>What makes the '
        f'score of {name}: the {len(parts)} largest of {len(look.shares)} shares</caption><tr><th scope="col">'
        f'{escape(look.tap)}</th><th scope="col">share</th><td></td></tr>{strokes}</table></div>'
        f'<p class="trust">All shares come to {signed(float(look.shares.sum()))}; with the {kind}, '
        f"{signed(look.rest)}, that makes the logit of {name}, {plain(look.logit)}.</p>"
    )


def excites(clips: Sequence[tuple[str, str, float, float, str]], here: float, tap: str, channel: int) -> str:
    """The moments that excite a channel most: (name, what it is called, peak, its second, the sound as a data URL)."""
    heading = f"<h3>What excites channel {channel} of {escape(tap_title(tap))}</h3>"
    if not clips:
        return f"{heading}<p>Nothing in the clips that were listened to: there it never rose above 0.</p>"
    items = "".join(
        f"<li><b>{escape(name)}</b> {escape(title)}<span>peak {plain(peak)} at {seconds_in_words(at)}</span>"
        + (f'<audio controls preload="metadata" src="{sound}" aria-label="{escape(name)}, around {at:.1f} s"></audio>'
           if sound else "<span>The clip is not at hand here.</span>")
        + "</li>"
        for name, title, peak, at, sound in clips
    )  # fmt: skip
    return (
        f"{heading}<p>The clips in which it rose highest, two seconds of each around that moment. In your sound it "
        f"rose to {plain(here)}.</p>"
        f'<ol class="excites">{items}</ol>'
    )


def facts(stop: str, anatomy: Anatomy, mel: MelConfig) -> str:
    """Shape, cost and receptive field of what is open: of a stage all its parts, of the picture its axes."""
    parts = [part for part in anatomy.parts if stop in (part.stage, part.name)]
    if not parts:
        low, high = mel.centres[[0, -1]]
        rows = [("Pitch", f"{hertz_in_words(low)} to {hertz_in_words(high)}"), ("Parameters", "none")]
    else:
        last = next(p for p in parts[::-1] if p.kind != "gate" or p.name == stop)
        last = parts[0] if last.kind == "pyramid" else last
        count, *cells = last.shape
        what = f"channels of {cells[0]} × {cells[1]} cells" if cells else "names" if last.kind == "head" else "gates"
        rows = [("Output", f"{count} {what}")]
        rows.append(("Parameters", short(sum(part.parameters for part in parts))))
        rows.append(("Multiply-adds", short(sum(part.multiply_adds for part in parts))))
        seen = anatomy.fields.get(last.taps[-1]) if last.taps else None
        if seen:
            rows.append(("A cell sees", _sees(seen, anatomy, mel)))
    said = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<dl class="about">{said}</dl>'


def _sees(field: Field, anatomy: Anatomy, mel: MelConfig) -> str:
    bins, frames = anatomy.picture
    if field.size >= 2 * max(bins, frames):
        return "the whole picture"
    rows = "every row" if field.size >= 2 * bins else f"up to {min(field.size, bins)} of {bins} rows"
    seconds = min(field.size * mel.hop_length / mel.sample_rate, mel.seconds)
    return f"{rows}, up to {min(field.size, frames)} of {frames} columns ({seconds_in_words(seconds)})"


def _button(text: str, pressed: str | None = None, label: str = "", **what: object) -> str:
    state = f' aria-pressed="{pressed}"' if pressed is not None else ""
    said = f' aria-label="{escape(label)}"' if label else ""
    return f'<button type="button"{state}{said} {asking(**what)}>{text}</button>'

"""The moments that excite a channel most, cut out of their clips so that they can be played."""

import base64
import io
from functools import lru_cache
from pathlib import Path

import soundfile

from cnn.atlas import Atlas
from cnn.audio import load
from cnn.labels import spoken

AROUND = 1.0  # seconds before and after a peak
SHORTEST = 0.3  # seconds that are played at least


def moments(atlas: Atlas, tap: str, channel: int) -> list[tuple[str, str, float, float, str]]:
    """(class, title and author, peak, its second in the clip, the sound as a data URL; '' where the clip is not at
    hand), highest peak first."""
    found = []
    for number, peak, seconds in atlas.excites[tap][channel]:
        clip, path = atlas.clips[number], atlas.path(number)
        title = " by ".join(clip[key] for key in ("title", "author") if clip.get(key))
        sound = excerpt(path, round(seconds, 2)) if path.is_file() else ""
        found.append((spoken(clip["label"]), title, peak, seconds, sound))
    return found


@lru_cache(maxsize=64)
def excerpt(path: Path, seconds: float) -> str:
    """The sound around a second of a clip, as an MP3 that any browser plays, in a data URL."""
    clip = load(path)
    first = max(seconds - AROUND, 0.0)
    last = max(min(seconds + AROUND, clip.seconds), first + SHORTEST)
    samples = clip.samples[int(first * clip.rate) : int(last * clip.rate)]
    file = io.BytesIO()
    soundfile.write(file, samples, clip.rate, format="MP3")
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

"""What the JSON API takes and answers, as /v1/openapi.json describes it. Answers are written by cnn.serve.payload."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

NO_NETWORK = "This server has no network to name sounds with yet; its owner has been told."
LOCKED = "This server asks for a user and a password; send them by HTTP Basic: curl -u USER:PASSWORD."
MISTAKE = "The server made a mistake; its log has it."


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Named(_Said):
    name: str = Field(alias="class", description="In ESC-50's spelling.", examples=["crying_baby"])
    confidence: float = Field(description="0 to 1; over all classes they sum to 1.", examples=[0.8315])


class Matrix(_Said):
    """Numbers in an array of any shape, row by row: value = low + (high - low) * n / 65535."""

    shape: list[int] = Field(examples=[[128, 251]])
    low: float
    high: float
    data: str = Field(description="Base64 of one unsigned 16-bit little-endian integer n per value.")


class Spectrogram(Matrix):
    """The mel picture of the window shown, dB, (bins, frames), low frequencies first."""

    front_end: dict[str, Any] = Field(description="How it was computed: rate in Hz, FFT, mel range in Hz, seconds ...")


class Waveform(Matrix):
    """About 8,000 samples: of each stretch the lowest and the highest. Of a shorter sound, all."""

    sample_rate: int = Field(description="Of the sound, Hz.")
    duration: float = Field(description="Seconds.")


class FeatureMap(Matrix):
    """Mean over the channels of a tap, (f, t), low frequencies first, of the window shown."""

    size: list[int] = Field(description="The tap's true size: channels, f, t.", examples=[[64, 32, 63]])


class Windows(_Said):
    starts: list[float] = Field(description="Seconds; every window has the front end's length.")
    probabilities: list[list[float]] = Field(description="One row per window, all 0 where it is silent; in the order "
                                             "of the network's classes.")  # fmt: skip
    shown: int = Field(description="The window that spectrogram and maps belong to: the surest of the first name.")


class Answer(_Said):
    predictions: list[Named] = Field(description="The likeliest first; none for a silent sound.")
    verdict: str = Field(description="'named', or 'silent': there is nothing to hear.", examples=["named"])
    message: str = Field(description="One sentence for people.", examples=["crying baby (83.2 %)"])
    duration: float = Field(description="Seconds that were heard, 60 at most.", examples=[5.0])
    sample_rate: int = Field(description="Of the file, Hz.", examples=[44100])
    channels: int = Field(description="Of the file, before they were mixed.", examples=[1])
    format: str = Field(examples=["Ogg Vorbis"])
    lossy: bool = Field(description="Whether the coding loses something.")
    notes: list[str] = Field(description="Sentences for the reader: cut at a minute, file broken off, ...")
    timings: dict[str, float] = Field(description="Seconds: decode, wait, total; resample, front end and network are "
                                      "those of the batch in which the sound was heard.")  # fmt: skip
    device: str = Field(examples=["cpu"])
    network: str = Field(examples=["resnet34, 21.3 M parameters, 16 kHz"])
    model: str = Field(description="Its name in /v1/models.", examples=["resnet34"])
    weights: str = Field(description="A fingerprint: the same while weights and front end are the same.",
                         examples=["7d865e959b246691"])  # fmt: skip
    logits: dict[str, float] | None = Field(None, description="By class, full precision, mean over the windows.")
    windows: Windows | None = None
    waveform: Waveform | None = None
    spectrogram: Spectrogram | None = None
    maps: dict[str, FeatureMap] | None = Field(None, description="By tap.")


class Channel(_Said):
    index: int = Field(description="Its number, from 0.", examples=[17])
    share: float = Field(description="What it adds to the logit; below 0 it speaks against the class.", examples=[1.27])
    low: float = Field(description="Of its cells; low and high are 0 where it is silent for this sound.")
    mean: float
    high: float
    active: float = Field(description="Share of its cells above 0, 0 to 1.")
    values: Matrix = Field(description="Its map, (f, t), low frequencies first.")


class Maps(_Said):
    tap: str = Field(examples=["layer4"])
    window: int = Field(description="Which window was heard, from 0.")
    shape: list[int] | None = Field(None, description="Of the tap: channels, f, t; gates have none, nor what follows.",
                                    examples=[[512, 4, 8]])  # fmt: skip
    start: float | None = Field(None, description="Of the window, seconds into the sound.")
    label: str | None = Field(None, description="The class that shares and logit are of.", examples=["dog"])
    logit: float | None = Field(None, description="Of the label, of this window alone.")
    exact: bool | None = Field(None, description="Whether the logit is the sum of shares and rest because the head is "
                               "linear in this tap; else a share is gradient times activation.")  # fmt: skip
    rest: float | None = Field(None, description="Logit less the sum of the shares; the bias, if exact.")
    shares: list[float] | None = Field(None, description="Of every channel.")
    low: float | None = Field(None, description="Of the cells of all channels.")
    high: float | None = None
    silent: int | None = Field(None, description="Channels without a cell above 0.")
    mean: Matrix | None = Field(None, description="Over the channels, (f, t), low frequencies first.")
    channels: list[Channel] | None = Field(None, description="Those asked for, in that order; else those that matter "
                                           "most, from the one most for to the one most against.")  # fmt: skip
    gates: dict[str, list[float]] | None = Field(None, description="By tap, 0 to 1: how far each channel is let "
                                                 "through.")  # fmt: skip
    range: list[float] | None = Field(None, description="Lowest and highest cell of all maps of the network.")
    model: str = Field(examples=["resnet34"])
    network: str = Field(examples=["resnet34, 21.3 M parameters, 16 kHz"])
    weights: str


class Inside(_Said):
    model: str = Field(examples=["resnet34"])
    network: str = Field(examples=["resnet34, 21.3 M parameters, 16 kHz"])
    weights: str = Field(description="A fingerprint: the same while weights and front end are the same.")
    anatomy: dict[str, Any] | None = Field(None, description="picture: (bins, frames); parts, in the order of the "
                                           "forward pass, each with name, kind, stage, taps, shape, parameters and "
                                           "multiply_adds for a window; fields: by tap the receptive field of cell i, "
                                           "places start + i * stride and size - 1 more; totals; groups: networks side "
                                           "by side, each with its share of every map's channels.")  # fmt: skip
    kernels: Matrix | None = Field(None, description="Of the first layer: (channels, k, k).")
    atlas: dict[str, Any] | None = Field(None, description="clips; excites: by tap and channel up to three of "
                                         "[number of the clip, peak, its second], the highest first; gates: by tap the "
                                         "mean of each channel over the clips; examples: whether the clips are those "
                                         "shipped with this project. null: not known, and `why`.")  # fmt: skip
    why: str | None = None


class HeardAgain(_Said):
    confidence: float = Field(description="Of the label, 0 to 1; 0 where there is nothing to hear.", examples=[0.88])
    predictions: list[Named] = Field(description="The likeliest three.")


class Why(_Said):
    label: str = Field(examples=["dog"])
    against: str | None = Field(None, description="The class that the evidence tells the label from.")
    method: str = Field(examples=["perturbation"])
    tap: str = Field(description="The layer asked; empty for a method that asks none.", examples=["layer3"])
    window: int
    start: float = Field(description="Of the window, seconds into the sound.")
    seconds: float = Field(description="Of sound within the window.")
    area: float = Field(description="Mean of the mask over the sound, 0 to 1.")
    parts: dict[str, HeardAgain] = Field(description="original; evidence, which the mask keeps; remainder, which it "
                                         "leaves; random, which a random mask of the same area keeps.")  # fmt: skip
    random_remainder: float = Field(description="Confidence of the label in what the random mask leaves.")
    reliable: bool = Field(description="Whether the evidence beats the random masks clearly.")
    verdict: str = Field(description="One sentence on that.")
    where: str = Field(description="In words: when, at which pitch, and what becomes of the label without it.")
    mask: Matrix = Field(description="Over the mel picture, (bins, frames), low frequencies first, 0 to 1.")
    map: Matrix | None = Field(None, description="As the method gives it, (f, t).")
    audio: dict[str, str] | None = Field(None, description="By part a WAV file at the sound's own rate, base64.")
    gain: float | None = Field(None, description="With which all these files are written, so that none clips.")
    heard: dict[str, dict[str, Any] | None] | None = Field(None, description="By part the answer of /v1/classify with "
                                                           "logits, windows and spectrogram.")  # fmt: skip
    model: str
    network: str
    weights: str


class Model(_Said):
    name: str = Field(description="What ?model= takes.", examples=["resnet34"])
    default: bool = Field(description="Whether it answers when no model is named.")
    network: str = Field(examples=["resnet34, 21.3 M parameters, 16 kHz"])
    parameters: int = Field(examples=[21_299_698])
    sample_rate: int = Field(description="Hz; sound above half of it is not heard.", examples=[16000])
    classes: list[str] = Field(description="In the order of the logits.", examples=[["airplane", "breathing"]])
    accuracy: float | None = Field(description="Share of the clips of a fold that it never saw in training, of this "
                                   "very file; null where it was not measured.", examples=[0.7625])  # fmt: skip
    fold: int | None = Field(description="The fold that the accuracy is of.", examples=[5])
    data: str = Field(description="What it was trained on.", examples=["ESC-50"])
    licence: str = Field(examples=["the data is CC BY-NC 3.0: these weights are for non-commercial use"])


class Models(_Said):
    models: list[Model]


class Health(_Said):
    status: str = Field(examples=["ok"])
    loaded: bool = Field(description="Whether a network is in memory; otherwise the first sound takes some seconds.")
    waiting: int = Field(description="Sounds in the queue.", examples=[0])


class Problem(_Said):
    error: str = Field(description="One sentence that names the thing and the way out.")


def _problem(description: str, example: str) -> dict[str, Any]:
    return {
        "model": Problem,
        "description": description,
        "content": {"application/json": {"example": {"error": example}}},
    }


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _problem("What was sent is no sound, or the question is wrong.", "letter.wav is text, not a sound; choose a "
                  "sound file such as wav, flac, mp3 or m4a."),
    401: _problem("The server asks for its user and password (HTTP Basic).", LOCKED),
    408: _problem("The body stopped coming.", "Nothing came for 30 s; send the sound again."),
    413: _problem("The file is too large; told before it is read.", "The sound is larger than the 200 MB that are "
                  "read; cut it, or save it as mp3, ogg or m4a."),
    429: _problem("The queue is full; Retry-After says when to come again.", "64 sounds are waiting already; try again "
                  "in 4 s."),
    500: _problem("A bug; the server's log has its trace.", MISTAKE),
    503: _problem("There is no network.", NO_NETWORK),
    "default": _problem("Whatever else goes wrong.", MISTAKE),
}  # fmt: skip
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "A sound file of any kind, 200 MB "
                             "at most; of a long one the first minute is heard."},
                },
            },
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["audio_data"],
                "properties": {"audio_data": {"type": "string", "description": "Base64 of the bytes of such a file."}},
            },
            "example": {"audio_data": "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="},
        },
    },
}  # fmt: skip
EXAMPLE = {
    "predictions": [
        {"class": "dog", "confidence": 0.9132},
        {"class": "cat", "confidence": 0.0211},
        {"class": "rooster", "confidence": 0.0107},
    ],
    "verdict": "named", "message": "dog (91.3 %)", "duration": 5.0, "sample_rate": 44100, "channels": 1,
    "format": "Ogg Vorbis", "lossy": True, "notes": [], "device": "cpu",
    "timings": {"decode": 0.004, "wait": 0.001, "resample": 0.003, "front end": 0.004, "network": 0.06, "total": 0.072},
    "network": "resnet34, 21.3 M parameters, 16 kHz", "model": "resnet34", "weights": "7d865e959b246691",
}  # fmt: skip
_GIVEN_BY = {key: EXAMPLE[key] for key in ("model", "network", "weights")}
MAPS_EXAMPLE = {
    "tap": "layer4", "shape": [2, 1, 2], "window": 0, "start": 0.0, "label": "dog", "logit": 11.62, "exact": True,
    "rest": 0.02, "shares": [12.1, -0.5], "low": 0.0, "high": 3.1, "silent": 0,
    "mean": {"shape": [1, 2], "low": 0.2, "high": 1.9, "data": "AAD//w=="},
    "channels": [
        {"index": 0, "share": 12.1, "low": 0.0, "mean": 1.55, "high": 3.1, "active": 0.5,
         "values": {"shape": [1, 2], "low": 0.0, "high": 3.1, "data": "AAD//w=="}},
    ],
} | _GIVEN_BY  # fmt: skip
INSIDE_EXAMPLE = {
    "anatomy": {
        "network": EXAMPLE["network"], "picture": [128, 251], "parameters": 21_299_698, "multiply_adds": 2_330_000_000,
        "parts": [{"name": "conv1", "kind": "stem", "stage": "conv1", "taps": ["conv1"], "shape": [64, 32, 63],
                   "parameters": 3264, "multiply_adds": 25_288_704}],
        "fields": {"conv1": {"stride": 4, "size": 11, "start": -5}},
    },
} | _GIVEN_BY  # fmt: skip
WHY_EXAMPLE = {
    "label": "dog", "against": None, "method": "perturbation", "tap": "", "window": 0, "start": 0.0, "seconds": 5.0,
    "area": 0.08, "random_remainder": 0.71, "reliable": True,
    "parts": {
        name: {"confidence": confidence, "predictions": [{"class": first, "confidence": of_it}]}
        for name, confidence, first, of_it in (
            ("original", 0.92, "dog", 0.92), ("evidence", 0.88, "dog", 0.88), ("remainder", 0.09, "hen", 0.31),
            ("random", 0.61, "dog", 0.61),
        )
    },
    "verdict": "This is what the network goes by: the evidence alone is heard as dog with 88 %, the rest with 9 %; a "
    "random mask of the same area has 61 % and 71 %.",
    "where": "most evidence 1.2-1.6 s, 1-3 kHz; without it dog falls from 92 % to 9 %",
    "mask": {"shape": [1, 2], "low": 0.0, "high": 1.0, "data": "AAD//w=="},
} | _GIVEN_BY  # fmt: skip

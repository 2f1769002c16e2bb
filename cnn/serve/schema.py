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
    logits: dict[str, float] | None = Field(None, description="By class, full precision, mean over the windows.")
    windows: Windows | None = None
    waveform: Waveform | None = None
    spectrogram: Spectrogram | None = None
    maps: dict[str, FeatureMap] | None = Field(None, description="By tap.")


class Model(_Said):
    name: str = Field(description="What ?model= takes.", examples=["resnet34"])
    default: bool = Field(description="Whether it answers when no model is named.")
    network: str = Field(examples=["resnet34, 21.3 M parameters, 16 kHz"])
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
    "network": "resnet34, 21.3 M parameters, 16 kHz", "model": "resnet34",
}  # fmt: skip

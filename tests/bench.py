"""make bench: speed and memory as ratios measured in one run: python -m tests.bench [--model PATH] [--json PATH]

(a) the forward pass against this machine's own matrix product in the same precision, (b) the complete answer about a
WAV against the straightforward path, kept naive below, (c) start of the process to the first answer on its page, (d)
its peak memory, (e) what a visitor waits for in the tabs Inside and Why, the slowest of each. What is compared is
measured in turns, warmed up, and taken as medians. Run it on an idle machine.
"""

import argparse
import copy
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import httpx
import librosa
import matplotlib
import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from cnn import checkpoint
from cnn.classifier import Classifier
from cnn.mel import LogMel
from cnn.ui.figures import draw
from cnn.ui.inside import PAGES
from cnn.ui.panels import NETWORK, OWN

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (the naive path's own way of drawing)

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRODUCTS = (1024, 1536, 2048, 3072)  # sides of the square matrices among which the peak is sought
LAYOUTS = {torch.contiguous_format: "contiguous", torch.channels_last: "channels_last"}
SERVER_PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Row:
    """One line of the table. `met` is None where nothing is promised."""

    what: str
    value: str
    target: str = ""
    met: bool | None = None


def medians(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds per call of each job, measured in turns after one call of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            begin = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


# ---- (a) the forward pass


def served(classifier: Classifier, model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One forward pass on as many threads as the classifier would use."""
    with classifier._exact():
        return model(x)


def forward_rows(classifier: Classifier, rounds: int) -> list[Row]:
    """GFLOP/s of the network as it answers (BatchNorm folded, in the memory format that it chose), beside the peak."""
    rows = []
    memory_format = classifier._memory_format
    layout = LAYOUTS[memory_format]
    mel = classifier.mel
    picture = torch.randn(16, 1, mel.n_mels, mel.frames, generator=torch.Generator().manual_seed(0))
    for precision, dtype in PRECISIONS.items():
        jobs: dict[str, Callable[[], object]] = {}
        work: dict[str, float] = {}  # floating point operations of a job
        for side in PRODUCTS:
            a = torch.randn(side, side, generator=torch.Generator().manual_seed(side)).to(dtype)
            jobs[f"product {side}"] = partial(torch.mm, a, a, out=torch.empty_like(a))
            work[f"product {side}"] = 2.0 * side**3
        model = copy.deepcopy(classifier.model).to("cpu", dtype).to(memory_format=memory_format)
        for batch in (1, 16):
            x = picture[:batch].to(dtype).to(memory_format=memory_format)
            jobs[f"batch {batch}"] = partial(served, classifier, model, x)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(x)
            work[f"batch {batch}"] = counter.get_total_flops()
        with torch.inference_mode():
            seconds = medians(jobs, rounds)
        speed = {name: work[name] / seconds[name] / 1e9 for name in jobs}
        best = max((name for name in jobs if name.startswith("product")), key=speed.__getitem__)
        rows.append(Row(f"(a) {precision} peak, {best}", f"{speed[best]:.0f} GFLOP/s"))
        for batch in (1, 16):
            reached = speed[f"batch {batch}"]
            share = reached / speed[best]
            value = f"{reached:.0f} GFLOP/s = {share:.0%} of peak"
            goal = (">= 75 %", share >= 0.75) if batch == 16 else ("", None)
            rows.append(Row(f"(a) {precision} forward, batch {batch}, {layout}", value, *goal))
    return rows


# ---- (b) the complete answer


def our_answer(classifier: Classifier, wav: Path) -> tuple[str, dict[str, bytes]]:
    """(predictions as JSON, PNG by name) of one WAV the way the page makes them."""
    prediction = classifier.predict(wav, maps="all")
    pictures = {name: picture.png() for name, picture in draw(prediction).items()}
    return json.dumps(prediction.to_dict(top=3)), pictures


class Naive:
    """The straightforward way to the same answer, and left so: do not make it faster."""

    def __init__(self, weights: checkpoint.Checkpoint) -> None:
        self.labels = weights.labels
        self.mel = weights.mel
        self.front_end = LogMel(weights.mel)  # torchaudio's MelSpectrogram
        self.model = weights.build()

    def answer(self, wav: Path) -> tuple[str, dict[str, bytes]]:
        samples, rate = librosa.load(wav, sr=self.mel.sample_rate)
        window = torch.from_numpy(librosa.util.fix_length(samples, size=self.mel.samples))[None]
        with torch.no_grad():
            db = self.front_end.db(window)
            logits, taps = self.model(self.front_end.standardise(db), return_feature_maps=True)
        best = logits.softmax(1)[0].topk(3)
        names = [self.labels[i] for i in best.indices]
        maps = {tap: values.mean(1)[0].tolist() for tap, values in taps.items()}
        answer = {
            "predictions": [{"class": n, "confidence": p} for n, p in zip(names, best.values.tolist(), strict=True)],
            "visualization": {tap: {"shape": list(taps[tap].shape), "values": maps[tap]} for tap in maps},
            "input_spectrogram": {"shape": list(db[0].shape), "values": db[0].tolist()},
            "waveform": {"values": samples.tolist(), "sample_rate": rate, "duration": len(samples) / rate},
        }
        text = json.dumps(answer)
        pictures = {"bars": self.figure("prediction", lambda: plt.barh(names[::-1], best.values.tolist()[::-1]))}
        time_axis = np.arange(len(samples)) / rate
        pictures["waveform"] = self.figure("Waveform", lambda: plt.plot(time_axis, samples))
        pictures["spectrogram"] = self.figure("Mel spectrogram", partial(self.image, db[0].tolist()))
        for tap, values in maps.items():
            pictures[tap] = self.figure(tap, partial(self.image, values))
        return text, pictures

    def image(self, values: list[list[float]]) -> None:
        plt.imshow(values, origin="lower", aspect="auto", cmap="magma", extent=(0, self.mel.seconds, 0, self.mel.f_max))
        plt.colorbar()

    def figure(self, title: str, draw: Callable[[], object]) -> bytes:
        plt.figure(figsize=(8.4, 1.5), dpi=200)  # the pixels of the page's pictures
        draw()
        plt.title(title)
        file = io.BytesIO()
        plt.savefig(file)
        plt.close()
        return file.getvalue()


def answer_rows(classifier: Classifier, weights: checkpoint.Checkpoint, wav: Path, rounds: int) -> list[Row]:
    naive = Naive(weights)
    ours, theirs = our_answer(classifier, wav), naive.answer(wav)
    if ours[1].keys() != theirs[1].keys():
        raise RuntimeError(f"the two paths draw different pictures: {ours[1].keys() ^ theirs[1].keys()}")
    first, second = (json.loads(text)["predictions"][0] for text, _ in (ours, theirs))
    apart = abs(first["confidence"] - second["confidence"])
    if first["class"] != second["class"] or apart > 0.01:
        raise RuntimeError(f"the two paths disagree: {first} and {second}")
    jobs = {"ours": lambda: our_answer(classifier, wav), "naive": lambda: naive.answer(wav)}
    seconds = medians(jobs, rounds)
    ratio = seconds["naive"] / seconds["ours"]
    return [
        Row(f"(b) complete answer, {len(ours[1])} pictures", f"{seconds['ours'] * 1000:.0f} ms"),
        Row("(b) the naive path", f"{seconds['naive'] * 1000:.0f} ms; top probability {apart:.1g} apart"),
        Row("(b) times faster", f"{ratio:.1f}", ">= 10", ratio >= 10),
    ]


# ---- (c) and (d) the server


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def peak_bytes(pid: int) -> int | None:
    """Largest resident size so far of a process; None where /proc does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Visitor:
    """A browser tab, as far as the server can tell: events of the page, one after the other."""

    def __init__(self, server: httpx.Client) -> None:
        self.server, self.session = server, uuid.uuid4().hex
        self.events = {d["api_name"]: d["id"] for d in server.get("/config").raise_for_status().json()["dependencies"]}

    def ask(self, event: str, data: list[object], wanted: str, clicked: object = None) -> float:
        """Seconds until the event's answer is here. Raises RuntimeError if that does not hold what is wanted."""
        begin = time.perf_counter()
        body = {"data": data, "fn_index": self.events[event], "session_hash": self.session, "event_data": clicked}
        self.server.post("/gradio_api/queue/join", json=body).raise_for_status()
        told = []
        with self.server.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                told.append(line)
                if '"process_completed"' in line:
                    break
        seconds = time.perf_counter() - begin
        page = "".join(told)
        if not json.loads(told[-1].removeprefix("data:"))["success"] or wanted not in page:
            raise RuntimeError(f"the page did not answer {event}: {page[-500:]}")
        return seconds

    def hear(self, wav: Path) -> None:
        """What a visitor's browser does with a chosen file: upload it, start the page's own event, await its answer."""
        with wav.open("rb") as file:
            told = self.server.post("/gradio_api/upload", files={"files": (wav.name, file)})
        path = told.raise_for_status().json()[0]
        sound = {"path": path, "orig_name": wav.name, "meta": {"_type": "gradio.FileData"}}
        self.ask("hear", [sound, False, False], "Feature map layer4")

    def look_around(self) -> dict[str, float]:
        """Seconds of the slowest interaction of a kind, with the sound in hand."""
        entered = self.ask("inside", [None, None, PAGES, None, OWN, False, True], "layer4.block0")
        looks = [
            self.ask("inside_look", [None, "dog", scale, False], " is open.", {"open": stop})
            for scale in (OWN, NETWORK)
            for stop in ("conv1", "layer1", "layer3.block0", "layer4", "head")
        ]
        explained = self.ask("why", [None, None, False, True], "random mask")
        return {"(e) a click in Inside": max(entered, *looks), "(e) an explanation in Why": explained}


def first_answer(model: Path, wav: Path, minute: Path) -> tuple[float, int | None, dict[str, float]]:
    """Seconds from the start of `python app.py` to the first answer on its page, all maps kept and the pictures drawn;
    its peak memory after a minute of sound as well; what visitors wait for in the other tabs."""
    port = free_port()
    command = [sys.executable, "app.py", "--port", str(port)]
    environment = os.environ | {"AUDIO_CNN_MODEL": str(model)}  # --model would be opened before the page is served
    begin = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if server.poll() is not None or time.perf_counter() - begin > SERVER_PATIENCE:
                        raise RuntimeError("app.py did not open its port") from None
                    time.sleep(0.02)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SERVER_PATIENCE) as client:
                visitor = Visitor(client)
                visitor.hear(wav)
                seconds = time.perf_counter() - begin
                waits = visitor.look_around()
                visitor.hear(minute)
            return seconds, peak_bytes(server.pid), waits
        finally:
            server.terminate()


def server_rows(model: Path, wav: Path, minute: Path, rounds: int) -> list[Row]:
    first_answer(model, wav, minute)  # reads the disk once
    runs = [first_answer(model, wav, minute) for _ in range(rounds)]
    seconds = statistics.median(run[0] for run in runs)
    rows = [Row("(c) process start to first answer", f"{seconds:.1f} s", "< 12 s", seconds < 12)]
    for what, most in (("(e) a click in Inside", 1.0), ("(e) an explanation in Why", 2.0)):
        waited = statistics.median(run[2][what] for run in runs)
        rows.append(Row(what, f"{waited:.2f} s", f"< {most:g} s", waited < most))
    if runs[0][1] is None:
        return [*rows, Row("(d) peak memory", "not told by this system", "< 1.5 GB")]
    peak = max(run[1] for run in runs)
    return [*rows, Row("(d) peak memory, a minute of sound", f"{peak / 1e9:.2f} GB", "< 1.5 GB", peak < 1.5e9)]


# ---- all together


def show(rows: list[Row]) -> None:
    columns = zip(*((row.what, row.value, row.target) for row in rows), strict=True)
    wide = [max(map(len, column)) for column in columns]
    for row in rows:
        met = {None: "", True: "yes", False: "NO"}[row.met]
        print(f"{row.what:<{wide[0]}}  {row.value:<{wide[1]}}  {row.target:<{wide[2]}}  {met}".rstrip(), flush=True)


def sounds(folder: Path) -> tuple[Path, Path]:
    """A WAV of five seconds at 44.1 kHz and one of a minute, from an example clip."""
    samples, rate = soundfile.read(ROOT / "assets" / "examples" / "dog.ogg")
    paths = folder / "five.wav", folder / "minute.wav"
    soundfile.write(paths[0], samples[: 5 * rate], rate)
    soundfile.write(paths[1], np.resize(samples, 60 * rate), rate)
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Speed and memory, as ratios.")
    parser.add_argument("--model", metavar="PATH", help="a best_model.pth (default: the network in the box)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each thing (default: %(default)s)")
    parser.add_argument("--json", metavar="PATH", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    model = checkpoint.find(args.model).resolve()
    weights = checkpoint.load(model)
    classifier = Classifier(weights, device="cpu")
    threads = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores"
    print(f"{classifier.network}; {platform.machine()}, {threads}; torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wav, minute = sounds(Path(folder))
        rows = forward_rows(classifier, args.rounds)
        rows += answer_rows(classifier, weights, wav, args.rounds)
        rows += server_rows(model, wav, minute, max(1, args.rounds // 3))
    show(rows)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    missed = [row.what for row in rows if row.met is False]
    print(f"Targets missed: {', '.join(missed)}" if missed else "All targets met.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""make load: many clients at once against the real server: python -m tests.load [--seconds 60] [--clients 50]

Good and bad files in turn, from as many connections as there are clients. Every answer is compared with the one
computed beforehand for that very file; nothing may be lost, and no client be left with refusals; memory and queue stay
bounded; and the server, client costs
excluded, reaches at least 80 % of the throughput that decoding, front end and network allow, each timed alone on the
same cores. Once with batches and once without. Run it on an idle machine.
"""

import argparse
import asyncio
import gc
import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from cnn import checkpoint
from cnn.audio import AudioError, load
from cnn.classifier import Classifier
from cnn.serve.api import DECODERS
from tests.bench import ROOT, SERVER_PATIENCE, Row, free_port, show
from tests.fuzz import PEAK

BATCH = 8
BAD_SHARE = 0.15  # of the requests
CLOSE = 1e-4  # by which a logit may differ from the one computed alone
PATIENCE = 60.0  # seconds for an answer, the refusals before it included; later it counts as lost
GROWTH = 150_000_000  # bytes by which the server may grow between a third of the time and the end
PATH = "/v1/classify?top=3&include=logits"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Item:
    """A file, the request that sends it, and what must come back: logits, or the sentence of a refusal."""

    name: str
    data: bytes
    request: bytes
    logits: np.ndarray | None
    refusal: str = ""


@dataclass
class Tally:
    seconds: list[float] = field(default_factory=list)  # per good answer, retries included
    good: int = 0
    bad: int = 0
    busy: int = 0  # 429, asked again
    unserved: int = 0  # clients that had nothing but 429 in all the time
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    tally: Tally
    elapsed: float
    client: float  # seconds of processor time
    server: float
    memory: list[int]  # bytes the server held, twice a second
    queue: int  # the longest seen


# ---- what is sent


def files() -> Iterator[tuple[str, bytes]]:
    """Five-second sounds in several formats, no two alike, and files that are none."""
    sounds = sorted((ROOT / "assets" / "examples").glob("*.ogg"))
    formats = (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"))
    for number in range(24):
        samples, rate = soundfile.read(sounds[number % len(sounds)])
        form, subtype = formats[number % len(formats)]
        file = io.BytesIO()
        turned = np.roll(samples[: 5 * rate], number * rate // 7) * (0.5 + number / 48)
        soundfile.write(file, turned, rate, format=form, subtype=subtype)
        yield f"{number}.{form.lower()}", file.getvalue()
    yield "letter.wav", b"Dear server, this is no sound.\n" * 50
    yield "empty.wav", b""
    yield "noise.mp3", random.Random(0).randbytes(20_000)
    yield "page.ogg", b"<!doctype html><html></html>"


def request(name: str, data: bytes) -> bytes:
    edge = "x7b1f9c04e"
    body = (
        f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + data
        + f"\r\n--{edge}--\r\n".encode()
    )
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary={edge}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def items(classifier: Classifier) -> list[Item]:
    found = []
    for name, data in files():
        try:
            logits, refusal = classifier.predict(load(data, name=name)).logits, ""
        except AudioError as error:
            logits, refusal = None, str(error)
        found.append(Item(name, data, request(name, data), logits, refusal))
    return found


# ---- each step alone


def alone(classifier: Classifier, good: list[Item], rounds: int) -> dict[str, float]:
    """Seconds per clip of decoding (on as many threads as the server), of the front end with resampling, and of the
    network alone and in batches; medians."""
    seconds: dict[str, list[float]] = {"decode": [], "front end": [], "network, one": [], f"network, {BATCH}": []}
    clips = [load(item.data) for item in good]
    with ThreadPoolExecutor(DECODERS) as threads:
        for turn in range(rounds + 1):
            begin = time.perf_counter()
            list(threads.map(lambda item: load(item.data), good))
            told = {"decode": (time.perf_counter() - begin) / len(good)}
            for size in (1, BATCH):
                batches = [clips[k : k + size] for k in range(0, len(clips), size)]
                timings = [classifier.predict_batch(batch)[0].timings for batch in batches]
                told[f"network, {'one' if size == 1 else size}"] = sum(t["network"] for t in timings) / len(clips)
                told["front end"] = sum(t["resample"] + t["front end"] for t in timings) / len(clips)
            if turn:
                for step, value in told.items():
                    seconds[step].append(value)
    return {step: statistics.median(values) for step, values in seconds.items()}


# ---- the server


@contextmanager
def serving(model: Path, batch: int) -> Iterator[tuple[int, int]]:
    """`python app.py` with its network loaded: its port and process."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AUDIO_CNN_")}
    environment |= {"AUDIO_CNN_MODEL": str(model), "AUDIO_CNN_DEVICE": "cpu", "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, "app.py", "--port", str(port), "--batch", str(batch)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + SERVER_PATIENCE
            while not asyncio.run(is_loaded(port)):
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("app.py did not become ready")
                time.sleep(0.2)
            yield port, server.pid
        finally:
            server.terminate()


async def is_loaded(port: int) -> bool:
    try:
        connection = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    status, _, body = await ask(*connection, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    connection[1].close()
    return status == 200 and json.loads(body)["loaded"]


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def held_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- the clients


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer. A client library would take a third of the processor for itself."""
    writer.write(sent)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head.split(b" ", 2)[1]), head, await reader.readexactly(length)


async def client(port: int, kinds: list[Item], number: int, until: float, tally: Tally) -> None:
    """Asks one question after the other until the time is over. A refused one is asked again, but not beyond it."""
    rng = random.Random(number)
    good, bad = [i for i in kinds if i.logits is not None], [i for i in kinds if i.logits is None]
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    served = False
    while time.perf_counter() < until:
        item = rng.choice(bad if rng.random() < BAD_SHARE else good)
        begin = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE):
                connection = connection or await asyncio.open_connection("127.0.0.1", port)
                while (reply := await ask(*connection, item.request))[0] == 429 and time.perf_counter() < until:
                    tally.busy += 1
                    pause = int(reply[1].partition(b"retry-after:")[2].partition(b"\r\n")[0]) * rng.random()
                    await asyncio.sleep(max(0.0, min(pause, until - time.perf_counter())))
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            tally.lost.append(f"{item.name}: {error!r}")  # TimeoutError is an OSError
            if connection:
                connection[1].close()
                connection = None
            await asyncio.sleep(0.1)  # where nobody listens any more
            continue
        if reply[0] == 429:
            break
        served = True
        check(item, kinds, reply[0], reply[2], tally)
        if item.logits is not None:
            tally.seconds.append(time.perf_counter() - begin)
    tally.unserved += not served
    if connection:
        connection[1].close()


def check(item: Item, kinds: list[Item], status: int, body: bytes, tally: Tally) -> None:
    """An answer is right if it is the one for this very file."""
    told = f"{item.name}: {status} {body[:200].decode(errors='replace')}"
    try:
        answer = json.loads(body)
        logits = None if item.logits is None else np.array(list(answer["logits"].values()), float)
    except (ValueError, KeyError, TypeError, AttributeError):
        answer = logits = None
    if item.logits is None:
        tally.bad += 1
        if (status, answer) != (400, {"error": item.refusal}):
            tally.wrong.append(told)
        return
    tally.good += 1
    if status != 200 or logits is None or logits.shape != item.logits.shape:
        tally.wrong.append(told)
        return
    apart = np.abs(logits - item.logits).max()
    if not apart <= CLOSE:
        others = [o.name for o in kinds if o.logits is not None and np.abs(logits - o.logits).max() <= CLOSE]
        whose = f", the answer to {others[0]}" if others else ""
        tally.wrong.append(f"{item.name}: logits {apart:.1g} apart{whose}")


async def crowd(port: int, pid: int, kinds: list[Item], clients: int, seconds: float) -> Run:
    tally, memory, longest = Tally(), [held_bytes(pid)], 0
    done = asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        connection = await asyncio.open_connection("127.0.0.1", port)
        while not done.is_set():
            try:
                async with asyncio.timeout(PATIENCE):
                    reply = await ask(*connection, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            except (OSError, asyncio.IncompleteReadError) as error:
                tally.lost.append(f"/healthz: {error!r}")
                break
            longest = max(longest, json.loads(reply[2])["waiting"])
            memory.append(held_bytes(pid))
            await asyncio.sleep(0.5)
        connection[1].close()

    watching = asyncio.create_task(watch())
    before = time.process_time(), processor_seconds(pid)
    begin = time.perf_counter()
    await asyncio.gather(*(client(port, kinds, n, begin + seconds, tally) for n in range(clients)))
    elapsed = time.perf_counter() - begin
    after = time.process_time(), processor_seconds(pid)
    done.set()
    await watching
    memory.append(held_bytes(pid))
    return Run(tally, elapsed, after[0] - before[0], after[1] - before[1], memory, longest)


# ---- all together


def rows_of(run: Run, batch: int, step: dict[str, float]) -> list[Row]:
    tally, cores = run.tally, len(os.sched_getaffinity(0))
    name = f"batches of {batch}" if batch > 1 else "one at a time"
    ranked = sorted(tally.seconds) or [0.0]
    p50, p95 = (ranked[min(int(len(ranked) * share), len(ranked) - 1)] for share in (0.5, 0.95))
    pace = tally.good / (run.elapsed - run.client / cores)  # the clients' share of the cores given back
    allowed = 1 / (step["decode"] + step["front end"] + step[f"network, {batch if batch > 1 else 'one'}"])
    third, last = run.memory[len(run.memory) // 3], run.memory[-1]
    answers = f"{tally.good:,} good, {tally.bad:,} bad, {tally.busy:,} told to wait"
    return [
        Row(f"{name}: answers", answers, "> 0", tally.good > 0),
        Row(f"{name}: wrong", str(len(tally.wrong)), "0", not tally.wrong),
        Row(f"{name}: lost", str(len(tally.lost)), "0", not tally.lost),
        Row(f"{name}: clients that were only told to wait", str(tally.unserved), "0", tally.unserved == 0),
        Row(f"{name}: time of a good answer", f"p50 {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms"),
        Row(f"{name}: throughput, client costs excluded", f"{pace:.1f} clips/s"),
        Row(f"{name}: of what the steps allow", f"{pace / allowed:.0%} of {allowed:.1f} clips/s", ">= 80 %",
            pace >= 0.8 * allowed if batch > 1 else None),
        Row(f"{name}: processor", f"server {run.server:.1f} s, clients {run.client:.1f} s in {run.elapsed:.1f} s"),
        Row(f"{name}: longest queue", str(run.queue), "<= 64", run.queue <= 64),
        Row(f"{name}: memory before, at the end", f"{run.memory[0] / 1e6:.0f}, {last / 1e6:.0f} MB",
            f"+ {GROWTH / 1e6:.0f} MB", last - third < GROWTH),
        Row(f"{name}: memory at the peak", f"{max(run.memory) / 1e6:.0f} MB", f"< {PEAK / 1e9:.1f} GB",
            max(run.memory) < PEAK),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description="Many clients against the real server.")
    parser.add_argument("--seconds", type=float, default=60, help="with batches, and again without (default: 60)")
    parser.add_argument("--clients", type=int, default=50, help="at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each step alone (default: %(default)s)")
    parser.add_argument("--model", metavar="PATH", help="a best_model.pth (default: the network in the box)")
    parser.add_argument("--json", metavar="PATH", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    model = checkpoint.find(args.model).resolve()
    classifier = Classifier.open(model, device="cpu")
    kinds = items(classifier)
    step = alone(classifier, [item for item in kinds if item.logits is not None], args.rounds)
    cores = len(os.sched_getaffinity(0))
    print(f"{classifier.network}; {cores} cores; {args.clients} clients, {args.seconds:g} s each", flush=True)
    rows = [Row(f"alone: {name}", f"{seconds * 1000:.1f} ms a clip") for name, seconds in step.items()]
    del classifier
    gc.collect()
    faults = []
    for batch in (BATCH, 1):
        with serving(model, batch) as (port, pid):
            asyncio.run(crowd(port, pid, kinds, args.clients, min(args.seconds / 10, 3)))  # warms it up
            run = asyncio.run(crowd(port, pid, kinds, args.clients, args.seconds))
        rows += rows_of(run, batch, step)
        faults += run.tally.wrong + run.tally.lost
    show(rows)
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    missed = [row.what for row in rows if row.met is False]
    print(f"Targets missed: {', '.join(missed)}" if missed else "All targets met.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""make fuzz: thousands of damaged files through the decoders and the JSON API: python -m tests.fuzz [--files 2000]

Every format that the tests make, each damaged in a way that its number in the seeded order decides. They are heard in a
child process: a crash of a C library, a hang or a growing memory is seen and named, and the file that caused it kept.
"""

import argparse
import faulthandler
import gc
import json
import os
import queue
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent
CHILD = (sys.executable, "-m", "tests.fuzz", "--child")
START = 180.0  # seconds that a child may need to begin
GROWTH = 64_000_000  # bytes that a child may grow by between a third of the files and the last
PEAK = 1_500_000_000  # bytes that it may ever hold


# ---- damage


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 10, 100))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_in_the_head(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 5, 20))):
        data[rng.randrange(min(len(data), 200))] = rng.randrange(256)


def cut_off(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def behead(data: bytearray, rng: random.Random) -> None:
    del data[: rng.randrange(1, min(len(data), 300))]


def swap(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((4, 16, 256, 2000))
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    first, second = data[a : a + size], data[b : b + size]
    data[b : b + size] = first
    data[a : a + size] = second


def repeat(data: bytearray, rng: random.Random) -> None:
    a = rng.randrange(len(data))
    data[a:a] = data[a : a + rng.choice((1, 7, 500, 5000))] * rng.choice((1, 3, 50))


def remove(data: bytearray, rng: random.Random) -> None:
    a = rng.randrange(len(data))
    del data[a : a + rng.choice((1, 7, 500, 5000))]


def promise(data: bytearray, rng: random.Random) -> None:
    """A number in the head, in one byte order or the other, becomes huge."""
    for _ in range(rng.choice((1, 1, 4))):
        at = rng.randrange(min(len(data), 160))
        size, huge = rng.choice(
            (("H", 0xFFFF), ("I", 0x7FFFFFFF), ("I", 0xFFFFFFFF), ("I", 0xFFFFFFF0), ("Q", 2**63 - 1))
        )
        number = struct.pack(rng.choice("<>") + size, huge)
        data[at : at + len(number)] = number


def fill(data: bytearray, rng: random.Random) -> None:
    a, size = rng.randrange(len(data)), rng.choice((16, 1000, 20_000))
    data[a : a + size] = bytes([rng.choice((0, 0x7F, 0xFF))]) * size


def nothing(data: bytearray, rng: random.Random) -> None:
    """As it was made: what is whole must be heard."""


DAMAGE: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip, flip_in_the_head, cut_off, behead, swap, repeat, remove, promise, fill, nothing,
)  # fmt: skip


@cache
def seeds() -> dict[str, bytes]:
    """Every kind of file that the tests make, good and bad, by its name."""
    from tests.test_audio import BAD_FILES, FORMATS

    good = {name: make(seconds=0.3) for name, (make, *_) in FORMATS.items()}
    return good | {f"bad {kind}": made for kind, (make, _) in BAD_FILES.items() if (made := make()[:200_000])}


def damaged(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(what it is, the file): every kind in turn, each with another damage or two; the same for the same seed."""
    kinds = sorted(seeds().items())
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        kind, whole = kinds[number % len(kinds)]
        done, data = [], bytearray(whole)
        if rng.random() < 0.1:
            other, more = rng.choice(kinds)
            done.append(f"then {other}")
            data[rng.randrange(len(data)) :] = more[rng.randrange(len(more)) :]
        for damage in rng.sample(DAMAGE, rng.choice((1, 1, 2))):
            if data:
                damage(data, rng)
                done.append(damage.__name__)
        yield f"{number} {kind}: {', '.join(done)}", bytes(data)


# ---- the child: hears one file after the other


def hear_all(files: BinaryIO, answers: BinaryIO) -> None:
    """Each file comes as its length in four bytes and itself; each answer is a line of JSON."""
    import torch
    from fastapi.testclient import TestClient

    from cnn.audio import AudioError, load
    from cnn.checkpoint import Checkpoint
    from cnn.classifier import Classifier
    from cnn.labels import ESC50
    from cnn.mel import MEL_16K
    from cnn.model import AudioCNN, ModelConfig
    from cnn.serve.api import build_api
    from cnn.serve.service import Service

    torch.manual_seed(0)
    config = ModelConfig(width=4)
    network = Classifier(Checkpoint(config, MEL_16K, ESC50, AudioCNN(config).state_dict()), device="cpu")
    service = Service(network)
    client = TestClient(build_api({"tiny": lambda: service}, "tiny"))  # raises what would be a 500

    def hear(data: bytes) -> str:
        try:
            load(data, name="damaged")
            outcome, expected = "heard", 200
        except AudioError as error:
            outcome, expected = "refused", 400
            told = str(error)
            if not (told.startswith("damaged ") and told.endswith(".")) or "\n" in told:
                raise RuntimeError(f"no sentence: {told}") from error
        reply = client.post("/v1/classify", files={"file": ("damaged", data)})
        if reply.status_code != expected or (expected == 400 and reply.json()["error"] != told):
            raise RuntimeError(f"the API answers {reply.status_code} {reply.text[:300]} to what is {outcome}")
        form = {"content-type": "multipart/form-data; boundary=x"}
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        rng = random.Random(data)
        for body, headers in ((data, {}), (data, form), (head + data + b"\r\n--x--\r\n", form)):  # a damaged question
            broken = bytearray(body[:2000])
            if broken:
                flip_in_the_head(broken, rng)
            status = client.post("/v1/classify", content=bytes(broken), headers=headers).status_code
            if status not in (200, 400):
                raise RuntimeError(f"the API answers {status} to a damaged body")
        return outcome

    def tell(**said: object) -> None:
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()

    tell(outcome="ready")
    while len(size := files.read(4)) == 4:
        data = files.read(struct.unpack("<I", size)[0])
        try:
            outcome, told = hear(data), ""
        except Exception:
            outcome, told = "BUG", traceback.format_exc()
        gc.collect()
        tell(outcome=outcome, told=told, **memory())
    service.close()


def memory() -> dict[str, int]:
    """Bytes that this process holds, and the most it ever held; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {"holds": 0, "peak": 0}
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"holds": kilobytes["VmRSS"] * 1024, "peak": kilobytes["VmHWM"] * 1024}


# ---- the parent


@dataclass(frozen=True)
class Fault:
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class Child:
    """A process that hears files. `hear` gives its answer, or what became of it: 'died of SIGSEGV', 'hung'."""

    def __init__(self, command: Sequence[str] = CHILD, limit: float = 30.0) -> None:
        self.limit = limit
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if (first := self._next(START)).get("outcome") != "ready":
            raise RuntimeError(f"the child did not begin: {first}")

    def hear(self, data: bytes) -> dict:
        try:
            self._process.stdin.write(struct.pack("<I", len(data)) + data)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is told below
        return self._next(self.limit)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._errors.close()

    def _read(self) -> None:
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(b"")

    def _next(self, limit: float) -> dict:
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            return {"outcome": "DEAD", "told": f"hung: no answer within {limit:g} s"}
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read()[-1500:].decode(errors="replace")
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return {"outcome": "DEAD", "told": f"{how}\n{last}"}


def run(
    files: int, seed: int = 0, *, limit: float = 30.0, keep: Path | None = None, command: Sequence[str] = CHILD
) -> tuple[list[Fault], Counter[str], dict[str, int]]:
    """The faults, how many files were heard, refused and so on, and the memory in bytes (start, end, peak)."""
    faults, counts, memory_told = [], Counter(), {"start": 0, "end": 0, "peak": 0}
    child = Child(command, limit)
    calm = files // 3  # files after which the libraries have taken what they keep
    try:
        for number, (name, data) in enumerate(damaged(files, seed)):
            answer = child.hear(data)
            counts[answer["outcome"]] += 1
            if answer["outcome"] in ("BUG", "DEAD"):
                faults.append(Fault(name, answer["told"]))
                if keep:
                    (keep / f"{seed}-{name.split()[0]}.bin").write_bytes(data)
            if answer["outcome"] == "DEAD":
                child.close()
                child, calm = Child(command, limit), max(calm, number + files // 3)
                continue
            if number == min(calm, files - 1):
                memory_told["start"] = answer["holds"]
            memory_told["end"] = answer["holds"]
            memory_told["peak"] = max(memory_told["peak"], answer["peak"])
    finally:
        child.close()
    if memory_told["start"] and memory_told["end"] - memory_told["start"] > GROWTH:
        grown = (memory_told["end"] - memory_told["start"]) / 1e6
        faults.append(Fault("all", f"the process grew by {grown:.0f} MB"))
    if memory_told["peak"] > PEAK:
        faults.append(Fault("all", f"the process held {memory_told['peak'] / 1e9:.2f} GB at its peak"))
    return faults, counts, memory_told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Damaged files, decoded and asked about.")
    parser.add_argument("--files", type=int, default=2000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other files (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for a file (default: %(default)s)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="where files that do harm are kept (default: a new one)"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        faulthandler.enable()  # names the line on which a C library crashes
        answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # whatever a library prints is no answer
        hear_all(sys.stdin.buffer, answers)
        return 0
    keep = args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    faults, counts, held = run(args.files, args.seed, limit=args.limit, keep=keep)
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.most_common())
    print(f"{args.files:,} files in {time.monotonic() - begin:.0f} s: {told}.")
    print(", ".join(f"{when} {size / 1e6:.0f} MB" for when, size in held.items()))
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print(f"{len(faults)} faults; the files are in {keep}", file=sys.stderr)
    elif not args.keep:
        keep.rmdir()
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

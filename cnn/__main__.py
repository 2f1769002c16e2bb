"""Name sounds in the terminal: python -m cnn clip.wav [more files] [--top 5] [--json] [--maps none|stages|all]

Exit code: 0 every file was answered, 1 some file was not, 2 the command or the network is wrong.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:  # torch is loaded only once the command line is known to be right
    from cnn.classifier import Classifier, Prediction

STDIN = "-"
BAR = 24  # characters for 100 %


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cnn",
        description="Name the sound in each file.",
        epilog="Exit code: 0 every file was answered, 1 some file was not, 2 the command or the network is wrong.",
    )
    p.add_argument("files", nargs="+", metavar="FILE", help="an audio file of any kind; - reads standard input")
    p.add_argument("--top", type=positive, default=3, metavar="N", help="how many classes to show (default: 3)")
    p.add_argument("--json", action="store_true", help="one JSON object per file and line")
    p.add_argument(
        "--maps", choices=("none", "stages", "all"), default="none", help="feature maps to add (default: none)"
    )
    p.add_argument("--model", metavar="PATH", help="a best_model.pth, or the name of a network in the box")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    return p


def say(stream: TextIO, *lines: str) -> None:
    """Print lines with nothing in them that could steer a terminal or pass for another line (file names are strangers'
    text)."""
    safe = ("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines)
    encoding = stream.encoding or "utf-8"
    print("\n".join(safe).encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def bar(share: float, encoding: str) -> str:
    """A bar of eighths of a character, or of # where the terminal has no block characters."""
    eighths = round(share * BAR * 8)
    blocks = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]
    try:
        blocks.encode(encoding)
    except UnicodeEncodeError:
        return "#" * round(share * BAR)
    return blocks.rstrip()


def text(name: str, prediction: "Prediction", top: int, encoding: str) -> list[str]:
    """The answer as a person reads it, line by line."""
    from cnn.audio import duration
    from cnn.labels import spoken

    clip = prediction.clip
    source = [duration(clip.seconds), f"{clip.rate / 1000:g} kHz", clip.format]
    lines = [f"{name}  ({', '.join(filter(None, source))})"]
    if prediction.verdict == "silent":
        lines.append(f"  {prediction.message}")
    for label in prediction.labels[:top]:
        share = label.probability
        lines.append(f"  {spoken(label.name):<18} {share:>6.1%}  {bar(share, encoding)}".rstrip())
    lines += [f"  {note}" for note in clip.notes]
    for tap, values in prediction.maps.items():
        channels, f, t = prediction.shapes[tap]
        lines.append(f"  {tap:<20} {channels} x {f} x {t}, channel mean {values.min():.3g} to {values.max():.3g}")
    lines.append(f"  {prediction.timings['total'] * 1000:.0f} ms on {prediction.device}, {prediction.network}")
    return lines


def answer(classifier: "Classifier", file: str, args: argparse.Namespace) -> bool:
    """Print the answer about one file, or what is wrong with it; False in the second case."""
    from cnn import audio

    name = "standard input" if file == STDIN else file
    try:
        sound = file
        if file == STDIN:  # one byte too many is enough for load() to refuse it
            sound = audio.load(sys.stdin.buffer.read(audio.MAX_BYTES + 1), name=name)
        prediction = classifier.predict(sound, maps=args.maps)
    except audio.AudioError as error:
        if args.json:
            say(sys.stdout, json.dumps({"file": file, "error": str(error)}))
        else:
            message = str(error)  # it begins with the file's name, which lacks the folders
            say(sys.stderr, message if message.startswith(name) else f"{name}: {message}")
        return False
    if args.json:
        payload = {"file": file} | prediction.to_dict(top=args.top, maps=args.maps)
        say(sys.stdout, json.dumps(payload, allow_nan=False))
    else:
        say(sys.stdout, *text(name, prediction, args.top, sys.stdout.encoding or "utf-8"))
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Answer about every file; returns the exit code (argparse itself exits with 2)."""
    args = parser().parse_args(argv)
    from cnn.classifier import Classifier

    try:
        classifier = Classifier.open(args.model, device=args.device)
    except ValueError as error:  # CheckpointError is one; the other kind is a device that is not here
        say(sys.stderr, str(error))
        return 2
    answered = [answer(classifier, file, args) for file in args.files]
    return 0 if all(answered) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader (head, less) has gone: nothing is left to say, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

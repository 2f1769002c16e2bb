"""Name sounds in the terminal, or say why: python -m cnn clip.wav [more files] [--top 5] [--json] [--maps stages]

    python -m cnn clip.wav --explain [--class dog] [--against cat] [--method hirescam] [--tap layer3] [--out DIR]

Exit code: 0 every file was answered, 1 some file was not, 2 the command or the network is wrong.
"""

import argparse
import errno
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:  # torch is loaded only once the command line is known to be right
    from cnn.audio import Clip
    from cnn.classifier import Classifier, Prediction
    from cnn.explain import Explanation

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
    why = p.add_argument_group("why", "What in the sound speaks for a class, and whether to believe it.")
    why.add_argument("--explain", action="store_true", help="say why instead of naming")
    why.add_argument("--class", dest="label", metavar="NAME", help="the class to explain (default: the likeliest)")
    why.add_argument("--against", metavar="NAME", help="why this class and not that one")
    why.add_argument("--method", help="how the evidence is found, such as hirescam")
    why.add_argument("--tap", help="the layer that is asked, such as layer3")
    why.add_argument("--out", metavar="DIR", help="write original.wav, evidence.wav, remainder.wav and map.png there")
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


def why(name: str, explanation: "Explanation", clip: "Clip") -> list[str]:
    """The explanation as a person reads it, line by line."""
    from cnn.audio import duration
    from cnn.labels import spoken

    source = [duration(clip.seconds), f"{clip.rate / 1000:g} kHz", clip.format]
    end = explanation.start + explanation.original.clip.seconds
    rather = f" rather than {spoken(explanation.against)}" if explanation.against else ""
    how = " on ".join(filter(None, (explanation.method, explanation.tap)))
    return [
        f"{name}  ({', '.join(filter(None, source))})",
        f"  why {spoken(explanation.label)}{rather}: {how}, {explanation.start:.3g} to {end:.3g} s",
        f"  {explanation.numbers}",
        f"  {explanation.verdict}",
        f"  {explanation.where}",
        *(f"  {note}" for note in clip.notes),
    ]


class Unwritable(Exception):
    """The folder of --out does not take the files; the message says why."""


def keep(files: dict[str, bytes], folder: str) -> None:
    """Write all files into the folder, which is made if need be, or none. Raises OSError."""
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".explain-", dir=folder) as place:
        for name, data in files.items():
            if os.path.isdir(target := os.path.join(folder, name)):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
            with open(os.path.join(place, name), "wb") as file:
                file.write(data)
        for name in files:
            os.replace(os.path.join(place, name), os.path.join(folder, name))


def wanted(args: argparse.Namespace) -> dict[str, str]:
    """What `explain` is asked for beyond its defaults; classes may be written as people do: 'crying baby'."""
    given = {"method": args.method, "tap": args.tap}
    given |= {key: name and name.replace(" ", "_") for key, name in (("label", args.label), ("against", args.against))}
    return {key: value for key, value in given.items() if value is not None}


def explained(classifier: "Classifier", clip: "Clip", file: str, name: str, args: argparse.Namespace) -> list[str]:
    """The lines to print about why. Raises AudioError where there is nothing to hear, Unwritable."""
    from cnn.explain import explain

    explanation = explain(classifier, clip, **wanted(args))
    if args.out is not None:
        try:
            keep(explanation.files(), args.out)
        except OSError as error:
            reason = (error.strerror or "input/output error").lower()
            raise Unwritable(f"{args.out} cannot be written ({reason}): choose another folder") from error
    if args.json:
        return [json.dumps({"file": file} | explanation.to_dict(top=args.top), allow_nan=False)]
    return why(name, explanation, clip)


def answer(classifier: "Classifier", file: str, args: argparse.Namespace) -> bool:
    """Print the answer about one file, or what is wrong with it; False in the second case. Raises Unwritable."""
    from cnn import audio

    name = "standard input" if file == STDIN else file
    try:
        sound = file
        if file == STDIN:  # one byte too many is enough for load() to refuse it
            sound = audio.load(sys.stdin.buffer.read(audio.MAX_BYTES + 1), name=name)
        if args.explain:
            clip = sound if isinstance(sound, audio.Clip) else audio.load(sound)
            say(sys.stdout, *explained(classifier, clip, file, name, args))
            return True
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
    arguments = parser()
    args = arguments.parse_args(argv)
    given = [args.label, args.against, args.method, args.tap, args.out]
    if not args.explain and any(value is not None for value in given):
        arguments.error("--class, --against, --method, --tap and --out say how to --explain: add that")
    if args.explain and args.maps != "none":
        arguments.error("--explain has a map of its own and takes no --maps")
    if args.out is not None and len(args.files) > 1:
        arguments.error(
            "--explain --out is for one FILE: the next one's sounds would take the place of the first one's"
        )
    from cnn.classifier import Classifier

    try:
        classifier = Classifier.open(args.model, device=args.device)
        if args.explain:
            from cnn.explain import check

            check(classifier, **wanted(args))
    except ValueError as error:  # CheckpointError is one; or a device, class, method or tap that is not here
        say(sys.stderr, str(error))
        return 2
    try:
        answered = [answer(classifier, file, args) for file in args.files]
    except Unwritable as error:
        say(sys.stderr, str(error))
        return 2
    return 0 if all(answered) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader (head, less) has gone: nothing is left to say, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

"""The door: python app.py [--host 127.0.0.1] [--port 7860] [--share] [--model PATH] [--device auto|cpu|cuda]"""

import argparse
import sys
import threading

from cnn.checkpoint import CheckpointError
from cnn.ui.page import Opener, build_page
from cnn.ui.theme import serving

classifier = Opener()
demo = build_page(classifier)  # loads no weights


def warm_up() -> None:
    """Open the network while the visitor still looks for a sound. What is wrong, the page says too."""
    try:
        classifier()
    except (CheckpointError, ValueError) as error:
        print(f"The page cannot name sounds yet: {error}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Open the page that names sounds.")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="also through a temporary public link of Gradio's")
    parser.add_argument("--model", metavar="PATH", help="a best_model.pth (default: the network in the box)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args()
    classifier.model, classifier.device = args.model, args.device
    try:
        demo.launch(
            server_name=args.host, server_port=args.port, share=args.share, prevent_thread_lock=True, **serving()
        )
    except OSError as error:
        parser.exit(1, f"No free port to serve on; choose another with --port. ({error})\n")
    threading.Thread(target=warm_up, daemon=True).start()
    demo.block_thread()


if __name__ == "__main__":
    main()

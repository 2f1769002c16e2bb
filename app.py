"""The door.

    python app.py [--host 127.0.0.1] [--port 7860] [--share] [--model PATH] [--device auto|cpu|cuda]
    modal serve app.py      # the same page on Modal while you try it; modal deploy app.py: for good
"""

import argparse
import sys
import threading
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from cnn.ui.page import Opener, build_page
from cnn.ui.theme import ASSETS, serving

classifier = Opener()
demo = build_page(classifier)  # loads no weights


def warm_up() -> None:
    """Open the network while the visitor still looks for a sound. What is wrong, only the log says in full."""
    try:
        classifier()
    except ValueError as error:  # CheckpointError is one; the other kind is a device that is not here
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
    if args.model or args.device != "auto":  # who asks for something learns at once that it cannot be had
        try:
            classifier()
        except ValueError as error:
            parser.exit(2, f"{error}\n")
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
else:  # on Modal, where app.py is imported; a plain start spares itself a second
    import modal

    app = modal.App("audio-cnn")
    image = (
        modal.Image.debian_slim(python_version="3.11")
        .pip_install_from_requirements(str(Path(__file__).with_name("requirements.txt")))
        .add_local_dir(str(ASSETS), "/root/assets")
        .add_local_python_source("cnn")
    )

    @app.function(image=image, cpu=2, memory=4096, max_containers=1, scaledown_window=300)
    @modal.concurrent(max_inputs=100)
    @modal.asgi_app()
    def page() -> FastAPI:
        """The page and its network on a CPU, in one container: what visitors have in hand lives in its process."""
        threading.Thread(target=warm_up, daemon=True).start()
        return gr.mount_gradio_app(FastAPI(), demo, path="/", **serving())

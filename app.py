"""The door: the page, and beside it on the same port the JSON API.

    python app.py [--host 127.0.0.1] [--port 7860] [--share] [--auth USER:PASSWORD] [--model PATH] [--device auto]
    modal serve app.py      # the same page on Modal while you try it; modal deploy app.py: for good
"""

import argparse
import os
import sys
import threading
from functools import cache
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from huggingface_hub import constants
from starlette.routing import Route

from cnn.checkpoint import DEFAULT, NAMES, in_box
from cnn.serve.api import build_api
from cnn.serve.remote import remote_first
from cnn.serve.service import Opener
from cnn.ui.page import build_page
from cnn.ui.theme import ASSETS, guarded, serving

constants.HF_HUB_DISABLE_TELEMETRY = True  # or Gradio's MCP server has a list fetched from huggingface.co
classifier = Opener()  # this machine's network, the page's and the API's
page_network = remote_first(classifier)  # the page's; elsewhere if AUDIO_CNN_REMOTE says so


def boxed(name: str) -> Opener:
    """A network in the box, the very one that the API serves."""
    return networks()[0][name]


demo = build_page(page_network, boxed)  # loads no weights


def warm_up() -> None:
    """Open the network while the visitor still looks for a sound. What is wrong, only the log says in full."""
    try:
        page_network()
    except ValueError as error:  # CheckpointError is one; others are a device or an address that is none
        print(f"The page cannot name sounds yet: {error}", file=sys.stderr)


@cache  # of flags that have been read by then
def networks() -> tuple[dict[str, Opener], str]:
    """What ?model= chooses among: the page's network and those in the box, by their folders. Second: the name of the
    page's, 'given' unless it is one of them."""
    there = [path.parent.name for path in in_box()]
    wanted = classifier.model or os.environ.get("AUDIO_CNN_MODEL")
    if not wanted and not any(Path(name).is_file() for name in NAMES):
        wanted = DEFAULT.parent.name
    default = wanted if wanted in there else "given"
    others = {name: Opener(name, classifier.device) for name in there if name != default}
    return {default: classifier} | others, default


def user_and_password(text: str) -> tuple[str, str]:
    user, _, password = text.partition(":")
    if not user or not password:
        raise argparse.ArgumentTypeError("must be USER:PASSWORD")
    return user, password


def arguments() -> argparse.ArgumentParser:
    """The flags, each also an environment variable: AUDIO_CNN_HOST, AUDIO_CNN_PORT, ..."""

    def given(flag: str) -> str | None:
        return os.environ.get(f"AUDIO_CNN_{flag}") or None

    parser = argparse.ArgumentParser(
        description="Open the page that names sounds, and the JSON API beside it.",
        epilog="Every flag can be given as an environment variable: AUDIO_CNN_HOST, AUDIO_CNN_PORT, AUDIO_CNN_SHARE=1 "
        "... A password is better given there: others on the machine can read a command line.",
    )
    parser.add_argument("--host", default=given("HOST"), help="0.0.0.0 lets other machines in (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=given("PORT"), help="default: the first free one from 7860 on")
    parser.add_argument(
        "--share", action="store_true", default=(given("SHARE") or "").lower() in ("1", "true", "yes", "on"),
        help="also through a temporary public link of Gradio's",
    )  # fmt: skip
    parser.add_argument(
        "--auth", type=user_and_password, metavar="USER:PASSWORD", default=given("AUTH"),
        help="let in only who knows these: a form on the page, HTTP Basic for the API",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="PATH|HUB-ID",
        help="a best_model.pth, the name of a network in the box, or OWNER/NAME on the Hugging Face Hub",
    )  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=given("DEVICE") or "auto")
    parser.add_argument("--batch", type=int, default=given("BATCH") or 8, help="sounds heard at once (default: 8)")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if args.batch < 1:
        parser.error("argument --batch: must be 1 or more")
    classifier.model, classifier.device, classifier.batch = args.model, args.device, args.batch
    if args.model or args.device != "auto":  # who asks for something learns at once that it cannot be had
        try:
            classifier()
        except ValueError as error:
            parser.exit(2, f"{error}\n")
    api = build_api(*networks(), auth=args.auth)
    try:
        demo.launch(
            server_name=args.host,  # without one, Gradio takes what a Space has set, or this machine alone
            server_port=args.port,
            share=args.share,
            auth=args.auth,
            prevent_thread_lock=True,
            app_kwargs=guarded(Route("/v1/{rest:path}", api), Route("/healthz", api)),
            **serving(mcp=args.auth is None),
        )
    except OSError as error:
        parser.exit(1, f"No free port to serve on; choose another with --port. ({error})\n")
    threading.Thread(target=warm_up, daemon=True).start()
    demo.block_thread()


if __name__ == "__main__":
    main()
else:  # on Modal, where app.py is imported; a plain start spares itself a second
    import modal

    from cnn.serve import modal_network
    from cnn.serve.remote import WithFallback

    app = modal.App("audio-cnn").include(modal_network.app)

    @app.function(cpu=2, memory=4096, max_containers=1, **modal_network.SETTINGS)
    @modal.concurrent(max_inputs=100)
    @modal.asgi_app()
    def page() -> FastAPI:
        """The page in one container, in whose process lives what visitors have in hand. It asks AudioClassifier, and
        while no GPU is awake its own network on the CPU; that one alone answers /v1, programs have AudioClassifier's.
        """
        if given := modal_network.weights():
            classifier.model = str(given)
        threading.Thread(target=warm_up, daemon=True).start()
        network = WithFallback(modal_network.ModalClassifier(), classifier)
        shown, address = build_page(lambda: network, boxed), None if modal.is_local() else page.get_web_url()
        api = gr.mount_gradio_app(
            build_api(*networks()), shown, path="/", app_kwargs=guarded(), **serving(mcp=address is not None)
        )
        if address:  # MCP calls the page itself: without this, at whatever address a visitor's headers say that it has
            shown.mcp_server_obj._local_url = address
        return api

    @app.local_entrypoint()
    def name(file: str = str(ASSETS / "examples" / "dog.ogg")) -> None:
        """Name a sound file on a GPU (default: a dog), and print what a program would get of it."""
        modal_network.print_answer(file)

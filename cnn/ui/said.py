"""How the Inside tab comes to the page's network, says what it is doing and what went wrong."""

import sys
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import gradio as gr

from cnn.serve.remote import Network
from cnn.ui.endpoints import NO_NETWORK, TOLD, NoNetwork
from cnn.ui.glass import Glass, NotAtHand, glass

FORGOTTEN = "The sound in hand is kept for an hour only; hear it again on the Listen tab."


class NoSuch(ValueError):
    """A stop, a channel or a choice that there is not. The message is for people."""


def busy(text: str) -> str:
    return f'<p role="status" class="busy">{escape(text)} …</p>'


def alert(text: str) -> str:
    return f'<p role="alert">{escape(text)}</p>'


def told(work: Callable[[], dict[Any, Any]], status: gr.HTML) -> Iterator[dict[Any, Any]]:
    """What `work` updates, once, and the status emptied; or in the status, in words, why it did not."""
    try:
        yield {status: ""} | work()
    except (*TOLD, NotAtHand, NoSuch) as error:
        yield {status: alert(str(error))}
    except Exception:
        yield {status: alert("The app made a mistake. The server has noted it; try something else.")}
        raise


def page_glass(classifier: Callable[[], Network]) -> Glass:
    """To look into the page's network. Raises NoNetwork and NotAtHand."""
    try:
        return glass(classifier())
    except ValueError as error:  # CheckpointError is one
        print(f"The page cannot look inside: {error}", file=sys.stderr)
        raise NoNetwork(NO_NETWORK) from error

"""How the tabs Inside and Why come to the page's network, say what they are doing and what went wrong."""

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import gradio as gr

from cnn.classifier import Prediction
from cnn.serve.glass import Glass, Network, NotAtHand
from cnn.ui.endpoints import TOLD, opened
from cnn.ui.glass import view

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


def page_view(classifier: Callable[[], Network], prediction: Prediction) -> tuple[Glass, Prediction]:
    """To look into the page's network that `prediction` is of, and `prediction`; where that network has gone away, into
    the one here, and what that one says of the sound. Raises NoNetwork, NotAtHand, AudioError, Busy."""
    return view(opened(classifier), prediction)

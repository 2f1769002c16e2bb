"""The page: what it is called and which tabs it has. The network is opened when it is first needed."""

import threading
from collections.abc import Callable
from typing import Any

import gradio as gr

from cnn.classifier import Classifier
from cnn.ui.listen import SEND_ONE, build_listen_tab

TITLE = "What is that sound?"


class Opener:
    """Calling it gives the classifier, opened once, at the first call: importing the page loads no weights."""

    def __init__(self, model: str | None = None, device: str = "auto") -> None:
        self.model, self.device = model, device  # may be changed until the first call
        self._lock = threading.Lock()
        self._classifier: Classifier | None = None

    def __call__(self) -> Classifier:
        with self._lock:
            if self._classifier is None:
                self._classifier = Classifier.open(self.model, self.device)
            return self._classifier


class Page(gr.Blocks):
    """Blocks that answer a call of /classify without any input in words; Gradio's own answer is a traceback."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if block_fn.api_name == "classify" and not inputs:
            raise gr.Error(SEND_ONE, print_exception=False)
        super().validate_inputs(block_fn, inputs)


def build_page(classifier: Callable[[], Classifier]) -> gr.Blocks:
    """The whole page. Uploads older than an hour are deleted. Serve it with the arguments of cnn.ui.theme.serving."""
    with Page(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Record or upload a sound. A neural network trained from scratch names it and shows "
            "what it saw.</p>",
            elem_id="title",
        )
        build_listen_tab(classifier)
    return page.queue(max_size=64)

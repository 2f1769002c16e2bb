"""The page: what it is called, which tabs it has, what it takes. The network is opened when it is first needed."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from cnn.serve.remote import Network
from cnn.serve.service import Opener
from cnn.ui.endpoints import SEND_ONE, offer_endpoints
from cnn.ui.inside import build_inside_tab
from cnn.ui.listen import build_listen_tab
from cnn.ui.uploads import mend_uploads, no_room, only_uploads, uploaded
from cnn.ui.why import build_why_tab

TITLE = "What is that sound?"


class Page(gr.Blocks):
    """Blocks that take files only as uploads, and tell who calls /classify without one in words, not by a traceback."""

    @property
    def mcp_server_obj(self) -> Any:  # what Gradio sets when it is asked to serve MCP
        return self._mcp

    @mcp_server_obj.setter
    def mcp_server_obj(self, server: Any) -> None:
        self._mcp = server and only_uploads(server)

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if block_fn.api_name in ("classify", "maps", "explain") and not inputs:
            raise gr.Error(SEND_ONE, print_exception=False)
        super().validate_inputs(block_fn, inputs)

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **how: Any) -> list[Any]:
        return await super().preprocess_data(block_fn, uploaded(inputs), *args, **how)

    async def postprocess_data(self, *answer: Any, **how: Any) -> Any:
        try:
            return await super().postprocess_data(*answer, **how)
        except OSError as error:  # the copy of an example finds no room
            raise gr.Error(no_room(error), print_exception=False) from error


def build_page(classifier: Callable[[], Network], box: Callable[[str], Callable[[], Network]] = Opener) -> gr.Blocks:
    """The whole page. Uploads older than an hour are deleted. Serve it with the arguments of cnn.ui.theme.serving.

    `box`: what opens a network in the box, by its folder, to compare with; the JSON API's own, where it stands beside.
    """
    mend_uploads()
    with Page(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Record or upload a sound. A neural network trained from scratch names it and shows "
            "what it saw.</p>",
            elem_id="title",
        )
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Listen", id="listen"):
                hand = build_listen_tab(classifier)
            with gr.Tab("Inside", id="inside") as tab:
                build_inside_tab(classifier, hand, tab, box)
            with gr.Tab("Why", id="why") as tab:
                build_why_tab(classifier, hand, tab)
        offer_endpoints(classifier)
    return page.queue(max_size=64)

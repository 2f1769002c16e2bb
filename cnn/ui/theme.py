"""How the page looks, and how it is served: one dictionary for launch() and for mount_gradio_app()."""

import base64
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from cnn.audio import MAX_BYTES
from cnn.serve.gate import MAX_FORM, TOO_LARGE, ApiError, Gate

ASSETS = Path(__file__).resolve().parents[2] / "assets"
TYPEFACE = "Atkinson Hyperlegible Next"
SCRIPTS = ("microphone.js", "upload.js", "clock.js", "link.js", "inside.js", "parts.js", "why.js")
STYLES = ("page.css", "clock.css", "inside.css", "parts.css", "why.css")
MAX_CALL = 2**20  # bytes of a body that is no upload: a call, an event of the page, a tool of MCP
CALL_TOO_LARGE = "What was sent is larger than the 1 MB of a call; a sound goes to POST /gradio_api/upload first."
# of Gradio's own, what no page here needs: one runs ffmpeg on a visitor's file, one keeps his session on the disk
CLOSED = ("/gradio_api/process_recording", "/gradio_api/deep_link")

# one accent, from the middle of the pictures' own colour map
_ACCENT = gr.themes.Color(
    name="accent",
    c50="#fdf3fa", c100="#fae4f3", c200="#f5cbe6", c300="#f3aed3", c400="#f084b4", c500="#b8398f", c600="#9c2e7f",
    c700="#82256a", c800="#661d54", c900="#4a153d", c950="#2e0d26",
)  # fmt: skip


def _fonts() -> str:
    """The typeface inside the stylesheet: wherever the app is mounted, nothing is asked of any other server."""
    rules = []
    for weight in (400, 700):
        data = base64.b64encode((ASSETS / "fonts" / f"AtkinsonHyperlegibleNext-{weight}.ttf").read_bytes()).decode()
        rules.append(
            f'@font-face {{ font-family: "{TYPEFACE}"; font-weight: {weight}; font-display: swap; '
            f'src: url("data:font/ttf;base64,{data}") format("truetype"); }}'
        )
    return "\n".join(rules)


def _theme() -> gr.themes.Base:
    family = (TYPEFACE, "system-ui", "sans-serif")
    theme = gr.themes.Base(
        primary_hue=_ACCENT, secondary_hue=_ACCENT, neutral_hue="slate", font=family, font_mono=family
    )
    return theme.set(
        body_background_fill="#fbfafc",
        body_background_fill_dark="#14161d",
        background_fill_primary_dark="#1b1e27",
        block_background_fill_dark="#1b1e27",
        block_border_color_dark="#343947",
        body_text_color="#1f2330",
        body_text_color_dark="#e8eaf0",
        body_text_color_subdued="#565d70",
        body_text_color_subdued_dark="#a9b0c1",
        block_label_text_color="#565d70",
        block_label_text_color_dark="#a9b0c1",
        block_label_background_fill_dark="#1b1e27",
        block_radius="10px",
        button_large_radius="8px",
        button_small_radius="8px",
    )


def serving(*, mcp: bool = True) -> dict[str, Any]:
    """Arguments that launch() and mount_gradio_app() share. `mcp`: whether language models may call it; they cannot
    where there is a password, for which MCP has no way to ask."""
    scripts, styles = ("".join((ASSETS / name).read_text(encoding="utf-8") for name in names)
                       for names in (SCRIPTS, STYLES))  # fmt: skip
    return {
        "theme": _theme(),
        "css": _fonts() + styles,
        "head": f"<script>{scripts.replace('$MAX_BYTES', str(MAX_BYTES))}</script>",
        "allowed_paths": [str(ASSETS / "examples")],  # a clicked example; the working directory may be elsewhere
        "max_file_size": MAX_BYTES,
        "show_error": False,  # what visitors can mend, the page says itself; a bug belongs into the log
        "ssr_mode": False,  # server-side rendering would drop the microphone's script
        "run_history": False,  # nobody's recordings are kept in a browser
        "footer_links": ["api"],
        "enable_monitoring": False,  # nobody's calls are counted
        "mcp_server": mcp,
    }


def guarded(*routes: BaseRoute) -> dict[str, Any]:
    """The app_kwargs of launch() and of mount_gradio_app(): these routes before the page's own, and all behind a Gate.
    """
    return {"routes": list(routes), "middleware": [Middleware(Gate, rule=_let_in)]}


def _let_in(path: str) -> tuple[int, str] | None:
    """Gate's rule for a page that may have the JSON API beside it. Raises ApiError."""
    if path.startswith("/v1/") or path == "/healthz":
        return None  # the API counts its own
    if "://" in path:  # Gradio would fetch /gradio_api/file=https://...
        raise ApiError(403, "Nothing is fetched from elsewhere; post the sound itself to /gradio_api/upload.")
    if path in CLOSED:
        raise ApiError(404, "That is not answered here.")
    return (MAX_FORM, TOO_LARGE) if path == "/gradio_api/upload" else (MAX_CALL, CALL_TOO_LARGE)

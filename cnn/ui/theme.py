"""How the page looks, and how it is served: one dictionary for launch() and for mount_gradio_app()."""

import base64
from pathlib import Path
from typing import Any

import gradio as gr

from cnn.audio import MAX_BYTES

ASSETS = Path(__file__).resolve().parents[2] / "assets"
TYPEFACE = "Atkinson Hyperlegible Next"

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


def serving(*, locked: bool = False) -> dict[str, Any]:
    """Arguments that launch() and mount_gradio_app() share. `locked`: with a password, which MCP has no way to ask for.
    """
    scripts = "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("microphone.js", "upload.js"))
    return {
        "theme": _theme(),
        "css": _fonts() + (ASSETS / "page.css").read_text(encoding="utf-8"),
        "head": f"<script>{scripts.replace('$MAX_BYTES', str(MAX_BYTES))}</script>",
        "allowed_paths": [str(ASSETS / "examples")],  # a clicked example; the working directory may be elsewhere
        "max_file_size": MAX_BYTES,
        "show_error": False,  # what visitors can mend, the page says itself; a bug belongs into the log
        "ssr_mode": False,  # server-side rendering would drop the microphone's script
        "run_history": False,  # nobody's recordings are kept in a browser
        "footer_links": ["api"],
        "mcp_server": not locked,
    }

"""For people: the page, one module per tab. The only place under cnn that knows Gradio."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before Gradio is imported: it then asks nobody

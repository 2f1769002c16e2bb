"""Visitors' files: nothing else of theirs is read, a full disk is said in words, and none is kept for longer than told.

Gradio's own handling is mended where it would fetch an address, answer 500 without a word, or stop deleting for good.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gradio as gr
from fastapi import HTTPException
from gradio import route_utils, routes
from gradio.utils import get_upload_folder, is_in_or_equal
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from starlette.datastructures import FormData

NO_ADDRESS = "Only uploads are heard, no addresses and no files of the server: post yours to /gradio_api/upload first."
GONE = "That upload is no longer kept; send the sound again."
NO_ROOM = "The server has no room to keep a file; its owner has been told. Try a shorter sound, or again later."
FILE = "/gradio_api/file="


def uploaded(data: Any) -> Any:
    """What a visitor sends, its files being uploads of this server. Gradio itself would fetch any address, and on a
    page that is mounted read any file. The address that this server gives an upload stands for it; another is refused.
    """
    return traverse(data, _upload, is_file_obj_with_meta)


def _upload(file: dict[str, Any]) -> dict[str, Any]:
    path = file["path"]
    if is_http_url_like(path):
        path = unquote(path.partition(FILE)[2])
    if not path or "\0" in path or not is_in_or_equal(path, get_upload_folder()) or os.path.isdir(path):
        raise gr.Error(NO_ADDRESS, print_exception=False)
    if not os.path.isfile(path):
        raise gr.Error(GONE, print_exception=False)
    return file | {"path": path}


def only_uploads(server: Any) -> Any:
    """Gradio's MCP server, refusing what it would decode to a file that nobody deletes."""
    convert = server.convert_strings_to_filedata

    def refusing(arguments: dict[str, Any], places: list) -> Any:
        if any(isinstance(value, str) and value.startswith("data:") for value in arguments.values()):
            raise ValueError(NO_ADDRESS)
        return convert(arguments, places)

    server.convert_strings_to_filedata = refusing
    return server


def no_room(error: OSError) -> str:
    """The sentence for visitors; what is wrong is for the log."""
    print(f"No file can be kept in {get_upload_folder()}: {error}", file=sys.stderr)
    return NO_ROOM


class _Reader(route_utils.GradioMultiPartParser):
    """Gradio's reader of uploads, but for what it leaves on a full disk: the part that has been written."""

    async def parse(self) -> FormData:
        try:
            return await super().parse()
        except OSError:
            for file in self._files_to_close_on_error:
                with suppress(OSError):  # what is still to be written finds no room either
                    file.close()
                Path(file.name).unlink(missing_ok=True)
            raise


async def _receive(*request: Any, **how: Any) -> Any:
    try:
        return await route_utils.upload_fn(*request, **how)
    except OSError as error:
        raise HTTPException(507, no_room(error)) from error


def _delete(blocks: gr.Blocks, age: int | None) -> None:
    """What has been kept for `age` seconds, with its folder; everything without one. Gradio's own ends, and with it
    all deleting, at the first file that cannot be deleted or that comes in meanwhile."""
    lasting = {file for block in blocks.blocks.values() for file in getattr(block, "keep_in_cache", ())}
    for files in blocks.temp_file_sets:
        for file in set(files) - lasting:
            try:
                if age is not None and time.time() - os.lstat(file).st_ctime <= age:
                    continue
                os.remove(file)
            except FileNotFoundError:
                pass
            except OSError as error:
                print(f"Not deleted: {error}", file=sys.stderr)
                continue
            files.discard(file)
            with suppress(OSError):  # holds another file, or has gone
                os.rmdir(os.path.dirname(file))


def mend_uploads() -> None:
    """Put these in the place of Gradio's own."""
    route_utils.GradioMultiPartParser = _Reader
    routes.upload_fn = _receive
    route_utils.delete_files_created_by_app = _delete

#!/usr/bin/env python3
"""What Gradio's share links go through, without the way out: a second port of this machine that leads to the first.

Copied to $HF_HOME/gradio/frpc/, under the name of Gradio's own program; GRADIO_SHARE_SERVER_ADDRESS must be set.
"""

import socket
import sys
import threading


def pipe(source: socket.socket, drain: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            drain.sendall(data)
        drain.shutdown(socket.SHUT_WR)
    except OSError:  # either side has hung up
        source.close()
        drain.close()


def main() -> None:
    host, port = (sys.argv[sys.argv.index(flag) + 1] for flag in ("-i", "-l"))
    outside = socket.create_server(("127.0.0.1", 0))
    print(f"[I] start proxy success: http://127.0.0.1:{outside.getsockname()[1]}", flush=True)
    while True:
        visitor = outside.accept()[0]
        inside = socket.create_connection((host, int(port)))
        for ends in ((visitor, inside), (inside, visitor)):
            threading.Thread(target=pipe, args=ends, daemon=True).start()


if __name__ == "__main__":
    main()

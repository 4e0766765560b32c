"""Hand frames to edged over its local socket, with nothing but Python's standard library: feeder.py SOCKET MODEL FILE …

Each file (.npy, .png, .bs2, .bin, .dat, .aedat) is one frame; its name is its key, so running this again stores nothing
twice. The answer comes when the result is stored. docs/feeders.md says the rest.
"""

import http.client
import json
import pathlib
import socket
import struct
import sys
import time


class Daemon(http.client.HTTPConnection):
    """HTTP over a Unix socket, patient."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        """What http.client calls to get a socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def ask(self, method, path, body=None, **headers):
        """Status and answer. 503, or none at all: busy, starting, stopping; the same id makes it safe to ask again."""
        while True:
            try:
                self.request(method, path, body, headers)
                answer = self.getresponse()
                told = json.load(answer)
                if answer.status != 503:
                    return answer.status, told
            except (OSError, http.client.HTTPException):
                self.close()
            time.sleep(1)


def main(path, model, *files):
    """Hand in file after file."""
    daemon = Daemon(path)
    takes = daemon.ask("GET", f"/v2/models/{model}")[1]["inputs"][0]["name"]
    for file in map(pathlib.Path, files):
        data = file.read_bytes()
        binary = struct.pack("<I", len(data)) + data
        how = {"content_type": file.suffix[1:], "binary_data_size": len(binary)}
        tensor = {"name": takes, "shape": [1], "datatype": "BYTES", "parameters": how}
        head = json.dumps({"id": file.name, "inputs": [tensor]}).encode()
        length = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": len(head)}
        status, told = daemon.ask("POST", f"/v2/models/{model}/infer", head + binary, **length)
        print(file.name, told["outputs"][0]["data"][0] if status == 200 else f"refused: {told['error']}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

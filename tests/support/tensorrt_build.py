"""``python -m tests.support.tensorrt_build PACKAGE FOLDER``: parse and build every plan of a folder, by our adapter.

One line of JSON for each: whether it was built. Everything is parsed first, without a limit of time. The window of a
random graph is built as the worker does it, in a process that is ended when its time is over; the worker has more
patience. Everything else is built here, however long it takes.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edged.engines.worker.engine import ModelRefused
from edged.engines.worker.tensorrt.api import Api, Options, PlanFailed
from edged.engines.worker.tensorrt.build import GivenUp, build

LARGEST = 8
WINDOW_S = 20.0  # most take a second or two on an idle machine, the worst two minutes


def main() -> None:
    """All of them."""
    package, folder = sys.argv[1], Path(sys.argv[2])
    api = Api(package)
    paths = sorted(folder.glob("*.onnx"))
    for path in paths:
        network = api.trt.Builder(api._log).create_network(api._network_flags())
        api._parse(network, path.read_bytes())
    with ThreadPoolExecutor(2) as pool:
        for path, result in zip(paths, pool.map(lambda path: _result(api, path), paths), strict=True):
            print(json.dumps({"plan": path.name, "result": result}), flush=True)


def _result(api: Api, path: Path) -> str:
    options = Options(LARGEST, int8="int8" in path.name, timings=b"")
    try:
        if path.name.startswith("random") and "window" in path.name:
            made = build(api.package, path, options, "test", time.monotonic() + WINDOW_S, lambda _: None)
        else:
            made = api.build(path.read_bytes(), options, lambda _: None)
    except GivenUp:
        return "took too long"
    except (ModelRefused, PlanFailed) as error:
        return str(error)
    return "built" if made.plan else "empty"


if __name__ == "__main__":
    main()

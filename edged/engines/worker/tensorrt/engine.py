"""What the TensorRT engines have in common: a GPU is looked for first, then the package, then a bundle is loaded."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from edged.engines.wire import Load
from edged.engines.worker.tensorrt.api import Api
from edged.engines.worker.tensorrt.cuda import Cuda
from edged.engines.worker.tensorrt.model import Model


class TensorRt:
    """One package of TensorRT on the first GPU, in the numbers that a subclass names."""

    package = "tensorrt"
    precision = "f32"

    def __init__(self) -> None:
        """Raises NoGpu before it touches TensorRT, which may crash without one; ImportError."""
        self._cuda = Cuda()
        self._api = Api(self.package)
        device = self._cuda.device
        self.version: str = f"{self._api.version} on {device.name} (sm_{device.sm})"

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Model:
        """Build the plans, or read them from the cache. Raises ModelRefused, PlanFailed, CudaError."""
        return Model(self._cuda, self._api, self.precision, load, memory, progress)

"""The only file of the converter that knows ONNX Runtime: one thread, so that a sum has one order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from cloud_sync.convert.network import Floats

_BATCH = 256
_NUMBERS = 1 << 26  # 256 MiB of activations at a time: an image of a large network has millions


def batch_size(numbers: int) -> int:
    """How many samples to run at once where one brings so many numbers to look at."""
    return max(1, min(_BATCH, _NUMBERS // max(1, numbers)))


class Runtime:
    """A session of a model whose inner ``taps`` can be fetched too. Inputs and outputs are (B, …) float32."""

    def __init__(self, model: onnx.ModelProto, taps: Sequence[str] = ()) -> None:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types

        tapped = onnx.ModelProto()
        tapped.CopyFrom(model)
        outside = {value.name for value in (*model.graph.output, *model.graph.input)}
        tapped.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tap) for tap in taps if tap not in outside)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._inputs = {value.name for value in model.graph.input}
        self._session = onnxruntime.InferenceSession(
            tapped.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, feeds: Mapping[str, Floats], fetches: Sequence[str]) -> list[Floats]:
        """The fetched tensors, in order; an input may be fetched and comes back as it is."""
        made = [name for name in fetches if name not in self._inputs]
        found = dict(zip(made, self._session.run(made, dict(feeds)), strict=True)) if made else {}
        return [found[name] if name in found else feeds[name] for name in fetches]

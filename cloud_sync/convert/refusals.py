"""Why an operator that ``operators`` does not know has no spiking form here, and what to do: one line a family.

What is in no family is refused as unknown. A new operator needs no change here: ``operators`` is asked first.
"""

from __future__ import annotations

from collections.abc import Mapping

_Why = tuple[str, str]


def _family(ops: str, reason: str, hint: str) -> Mapping[str, _Why]:
    return dict.fromkeys(ops.split(), (reason, hint))


_FAMILIES: Mapping[str, _Why] = {
    **_family(
        "LSTM GRU RNN",
        "it is recurrent: its next value depends on its last, while a converted neuron's rate needs time to settle",
        "train it as a spiking network, or cut before it with --until",
    ),
    **_family(
        "Loop Scan If",
        "it is dynamic control flow: which nodes run is decided at run time",
        "export the network with fixed shapes and no branches",
    ),
    **_family(
        "NonMaxSuppression TopK NonZero RoiAlign MaxRoiPool Unique Compress",
        "it is detection post-processing: it sorts or selects results, which is no sum of spikes",
        "cut before it with --until, and select on the host",
    ),
    **_family("ArgMax ArgMin", "it takes the winner, and a bundle puts out scores", "cut before it with --until"),
    **_family(
        "Erf Gelu Sigmoid Tanh HardSigmoid HardSwish Swish Elu Selu Celu Softplus Softsign Mish",
        "a neuron's rate is a straight line with a floor and a ceiling, which this function is not",
        "train with Relu, ReLU6 or LeakyRelu",
    ),
    **_family(
        "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger",
        "the network is quantised already, and thresholds need its activations as they were",
        "export the float32 network; --weights int8 keeps the weights in 8 bits",
    ),
    **_family(
        "LayerNormalization InstanceNormalization GroupNormalization LpNormalization LRN",
        "it divides by a statistic of the very activations that it normalises",
        "train with BatchNormalization, which folds into the weights",
    ),
}


def why(op: str) -> _Why:
    """Reason and hint for an operator that is not known."""
    return _FAMILIES.get(op, ("this operator is not supported", "docs/conversion.md lists those that are"))

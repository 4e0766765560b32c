"""Finds what must run step after step in a canonical graph, and in which order everything can be computed over time.

The graph with its state back-edges is cut into strongly connected components. A component that holds a state is a
*region*: it runs step by step. A state outside any cycle only *shifts* a tensor by one step. Everything else is
stateless and runs for all steps at once. Decides nothing about how a plan is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from edged.bundle.graph.spec import GraphSpec, StateSpec


@dataclass(frozen=True)
class Stateless:
    """One node that needs no other step than its own."""

    node: onnx.NodeProto


@dataclass(frozen=True)
class Shift:
    """A state without a cycle: its value at step t is ``state.output`` of step t - 1."""

    state: StateSpec


@dataclass(frozen=True)
class Region:
    """Nodes that depend on their own past, in the order of one step, with the states between them."""

    nodes: tuple[onnx.NodeProto, ...]
    states: tuple[StateSpec, ...]


Part = Stateless | Shift | Region


def parts(graph: onnx.GraphProto, spec: GraphSpec) -> list[Part]:
    """Cut a step graph into parts, each after everything that it reads."""
    nodes = list(graph.node)
    edges = _edges(nodes, spec.states)
    return [_part(sorted(component), nodes, spec.states) for component in components(edges)]


def _edges(nodes: Sequence[onnx.NodeProto], states: Sequence[StateSpec]) -> list[list[int]]:
    """Who reads whom: vertex k < len(nodes) is a node, the others are states (each reads its update)."""
    maker = {output: k for k, node in enumerate(nodes) for output in node.output}
    maker |= {state.input: len(nodes) + k for k, state in enumerate(states)}
    reads: list[Sequence[str]] = [list(node.input) for node in nodes]
    reads += [[state.output] for state in states]
    return [[maker[name] for name in names if name in maker] for names in reads]


def _part(component: list[int], nodes: Sequence[onnx.NodeProto], states: Sequence[StateSpec]) -> Part:
    own_nodes = [nodes[k] for k in component if k < len(nodes)]
    own_states = [states[k - len(nodes)] for k in component if k >= len(nodes)]
    if not own_states:
        return Stateless(own_nodes[0])
    if not own_nodes:
        return Shift(own_states[0])
    return Region(tuple(own_nodes), tuple(own_states))


def components(reads: Sequence[Sequence[int]]) -> list[list[int]]:
    """Strongly connected components of a graph, each after those that it reads (Tarjan 1972, without recursion)."""
    index: list[int] = [-1] * len(reads)
    low = [0] * len(reads)
    on_stack = [False] * len(reads)
    stack: list[int] = []
    found: list[list[int]] = []
    counter = 0
    for root in range(len(reads)):
        work = [(root, 0)] if index[root] < 0 else []
        while work:
            vertex, edge = work.pop()
            if edge == 0:
                index[vertex] = low[vertex] = counter
                counter += 1
                stack.append(vertex)
                on_stack[vertex] = True
            elif on_stack[reads[vertex][edge - 1]]:
                low[vertex] = min(low[vertex], low[reads[vertex][edge - 1]])
            if edge < len(reads[vertex]):
                work.append((vertex, edge + 1))
                if index[reads[vertex][edge]] < 0:
                    work.append((reads[vertex][edge], 0))
            elif low[vertex] == index[vertex]:
                found.append(_pop_until(stack, on_stack, vertex))
    return found


def _pop_until(stack: list[int], on_stack: list[bool], vertex: int) -> list[int]:
    component: list[int] = []
    while not component or component[-1] != vertex:
        component.append(stack.pop())
        on_stack[component[-1]] = False
    return component

"""Makes one flat graph of nested ones, and finds its cycles. Names of inner nodes are ``outer.inner``.

Inputs and outputs of inner graphs become ``Through``: they hand on what comes in. Several edges into a node are a sum.
A cycle needs a step of time somewhere. Nodes that are *late* give it by themselves: what they send is seen one step
after it was made. Any other cycle is closed by an edge that is read from the step before: in a walk from the input, by
natural order of names ("9" before "10"), the edge that leads back to a node on the way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.nir.file import Graph, Node
from edged.bundle.graph.analysis import components

THROUGH = "Through"
MAX_NODES = 5_000  # deep networks have hundreds

Edge = tuple[str, str]


@dataclass(frozen=True)
class Flat:
    """Nodes by name with what each reads, in an order that follows every edge but ``back``: shapes run along it.

    ``order`` is the order of computation; it follows every edge that neither leaves a ``late`` node nor is in
    ``closing``. ``cycles`` are the strongly connected parts.
    """

    nodes: Mapping[str, Node]
    reads: Mapping[str, tuple[str, ...]]
    back: frozenset[Edge]
    order: tuple[str, ...]
    closing: frozenset[Edge]
    late: frozenset[str]
    cycles: tuple[frozenset[str], ...]

    def readers(self, name: str) -> list[str]:
        """Who reads a node."""
        return [other for other, reads in self.reads.items() if name in reads]


def flatten(graph: Graph, late_kinds: AbstractSet[str] = frozenset()) -> Flat:
    """The flat graph; late are nodes of ``late_kinds``, and every Delay in a cycle.

    Raises ConversionError where an inner graph has not one input and one output.
    """
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    _collect(graph, nodes, edges, outermost=True)
    if len(nodes) > MAX_NODES:
        raise ConversionError(f"the graph has {len(nodes)} nodes", f"at most {MAX_NODES}")
    reads: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        reads[target].append(source)
    found = cycles(reads)
    looped = {name for cycle in found for name in cycle}
    late = frozenset(
        name for name, node in nodes.items() if node.kind in late_kinds or (node.kind == "Delay" and name in looped)
    )
    roots = [name for name, node in nodes.items() if node.kind == "Input"]
    walk, back = _order(list(nodes), edges, roots)
    order, closing = _order(list(nodes), [edge for edge in edges if edge[0] not in late], roots)
    return Flat(
        {name: nodes[name] for name in walk},
        {name: tuple(reads[name]) for name in walk},
        back,
        tuple(order),
        closing,
        late,
        tuple(found),
    )


def cycles(reads: Mapping[str, list[str]]) -> list[frozenset[str]]:
    """The strongly connected parts of a graph in which something leads back; edges to unknown names are left out."""
    names = list(reads)
    index = {name: k for k, name in enumerate(names)}
    found = components([[index[source] for source in reads[name] if source in index] for name in names])
    return [frozenset(names[k] for k in one) for one in found if len(one) > 1 or names[one[0]] in reads[names[one[0]]]]


def _collect(graph: Graph, nodes: dict[str, Node], edges: list[Edge], *, outermost: bool) -> None:
    enters, leaves = {}, {}
    for name, node in graph.nodes.items():
        if node.kind == "NIRGraph":
            inner = graph.graphs[name]
            _collect(inner, nodes, edges, outermost=False)
            enters[name], leaves[name] = _port(inner, node.name, "Input"), _port(inner, node.name, "Output")
        else:
            if node.name in nodes:
                raise ConversionError(f"two nodes are called {node.name!r}")
            virtual = node.kind in ("Input", "Output") and not outermost
            nodes[node.name] = Node(node.name, THROUGH, node.fields) if virtual else node
    for source, target in graph.edges:
        begin = leaves.get(source, graph.nodes[source].name)
        edges.append((begin, enters.get(target, graph.nodes[target].name)))


def _port(graph: Graph, name: str, kind: str) -> str:
    found = [node.name for node in graph.nodes.values() if node.kind == kind]
    if len(found) != 1:
        raise ConversionError(f"the inner graph {name!r} has {len(found)} {kind} nodes", "one can be connected")
    return found[0]


def _order(nodes: list[str], edges: list[Edge], roots: list[str]) -> tuple[list[str], frozenset[Edge]]:
    """Every node after what it reads, but for edges that lead back; a walk in depth from the inputs finds those."""
    targets: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        targets[source].append(target)
    for name in targets:
        targets[name].sort(key=_natural)
    back: set[Edge] = set()
    done: list[str] = []
    state = dict.fromkeys(nodes, 0)  # 0 not seen, 1 on the way, 2 done
    for root in (*roots, *sorted(nodes, key=_natural)):
        work = [(root, 0)] if state[root] == 0 else []
        while work:
            name, at = work.pop()
            state[name] = 1
            if at == len(targets[name]):
                state[name] = 2
                done.append(name)
                continue
            work.append((name, at + 1))
            target = targets[name][at]
            if state[target] == 1:
                back.add((name, target))
            elif state[target] == 0:
                work.append((target, 0))
    return done[::-1], frozenset(back)


def _natural(name: str) -> list[str | int]:
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+)", name))]

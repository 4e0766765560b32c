"""Makes one flat graph of nested ones, and finds its cycles. Names of inner nodes are ``outer.inner``.

Inputs and outputs of inner graphs become ``Through``: they hand on what comes in. Several edges into a node are a sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.nir.file import Graph, Node
from edged.bundle.graph.analysis import components

THROUGH = "Through"
MAX_NODES = 5_000  # deep networks have hundreds


@dataclass(frozen=True)
class Flat:
    """Nodes in an order of computation, with what each reads: ``back`` are edges that close a cycle."""

    nodes: Mapping[str, Node]
    reads: Mapping[str, tuple[str, ...]]
    back: frozenset[tuple[str, str]]
    cycles: tuple[frozenset[str], ...]

    def readers(self, name: str) -> list[str]:
        """Who reads a node."""
        return [other for other, reads in self.reads.items() if name in reads]


def flatten(graph: Graph) -> Flat:
    """The flat graph. Raises ConversionError where an inner graph has not one input and one output."""
    nodes: dict[str, Node] = {}
    edges: list[tuple[str, str]] = []
    _collect(graph, nodes, edges, outermost=True)
    if len(nodes) > MAX_NODES:
        raise ConversionError(f"the graph has {len(nodes)} nodes", f"at most {MAX_NODES}")
    reads: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        reads[target].append(source)
    order, back = _order(list(nodes), edges, [name for name, node in nodes.items() if node.kind == "Input"])
    index = {name: k for k, name in enumerate(nodes)}
    found = components([[index[source] for source in reads[name]] for name in nodes])
    names = list(nodes)
    cycles = [
        frozenset(names[k] for k in one) for one in found if len(one) > 1 or names[one[0]] in reads[names[one[0]]]
    ]
    return Flat(
        {name: nodes[name] for name in order}, {name: tuple(reads[name]) for name in order}, back, tuple(cycles)
    )


def _collect(graph: Graph, nodes: dict[str, Node], edges: list[tuple[str, str]], *, outermost: bool) -> None:
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


def _order(
    nodes: list[str], edges: list[tuple[str, str]], roots: list[str]
) -> tuple[list[str], frozenset[tuple[str, str]]]:
    """Every node after what it reads, but for edges that lead back; a walk in depth from the inputs finds those."""
    targets: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        targets[source].append(target)
    back: set[tuple[str, str]] = set()
    done: list[str] = []
    state = dict.fromkeys(nodes, 0)  # 0 not seen, 1 on the way, 2 done
    for root in (*roots, *nodes):
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

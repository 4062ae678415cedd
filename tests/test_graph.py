"""Graphs: what they accept, how they are coloured, what they say when something is wrong."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bm_fast import Coupling, Graph, Kind, Layer, chain_graph
from bm_fast.graph import MAX_FAN_IN
from enumeration import GRAPHS, semi_restricted, two_pathways


def test_chain_graph_names_its_layers() -> None:
    rbm, deep = chain_graph((784, 500)), chain_graph((784, 500, 1000), visible=Kind.GAUSSIAN)
    assert [layer.name for layer in rbm.layers] == ["visible", "hidden"]
    assert rbm.couplings == (Coupling(0, 1),)
    assert [layer.name for layer in deep.layers] == ["visible", "hidden1", "hidden2"]
    assert [layer.kind for layer in deep.layers] == [Kind.GAUSSIAN, Kind.BERNOULLI, Kind.BERNOULLI]
    assert deep.couplings == (Coupling(0, 1), Coupling(1, 2))


def test_index_and_neighbours() -> None:
    tree = two_pathways()
    assert tree.index("text_hidden") == 3
    with pytest.raises(KeyError, match=r"no layer 'sound'; the layers are \['image', 'image_hidden', "):
        tree.index("sound")
    assert tree.neighbours(4) == ((2, 1), (3, 3))
    assert tree.neighbours(0) == ((0, 1),)


@pytest.mark.parametrize("name", GRAPHS)
def test_colours_separate_coupled_layers(name: str) -> None:
    graph = GRAPHS[name]
    colours = graph.colours()
    assert sorted(layer for colour in colours for layer in colour) == list(range(len(graph.layers)))
    for coupling in graph.couplings:
        assert not any({coupling.lower, coupling.upper} <= set(colour) for colour in colours)


def test_colours_of_known_graphs() -> None:
    assert chain_graph((2, 2, 2, 2)).colours() == ((0, 2), (1, 3))
    assert two_pathways().colours() == ((0, 2, 4), (1, 3))
    assert len(semi_restricted().colours()) == 3
    assert Graph((Layer("a", 1), Layer("b", 1)), ()).colours() == ((0, 1),)


@settings(deadline=None)
@given(st.integers(2, 9).flatmap(lambda n: st.tuples(*(st.integers(0, i) for i in range(n - 1)))), st.randoms())
def test_any_tree_has_two_colours(parents: tuple[int, ...], random: object) -> None:
    """Layer i + 1 hangs from layer parents[i]; couplings come in any order and either direction."""
    couplings = [Coupling(i + 1, p) if random.random() < 0.5 else Coupling(p, i + 1) for i, p in enumerate(parents)]  # type: ignore[attr-defined]
    random.shuffle(couplings)  # type: ignore[attr-defined]
    graph = Graph(tuple(Layer(f"layer{i}", 1) for i in range(len(parents) + 1)), tuple(couplings))
    assert len(graph.colours()) == 2


LAYERS = (Layer("a", 2), Layer("b", 3))


@pytest.mark.parametrize("units", [0, -1, 2.0, "3", None])
def test_layers_need_units(units: object) -> None:
    with pytest.raises(ValueError, match=r"units of layer 'a': expected a whole number of at least 1, got"):
        Layer("a", units)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["gaussian", 7, None, [0]])
def test_layers_need_a_known_kind(kind: object) -> None:
    expected = "kind of layer 'a': expected one of Kind.BERNOULLI, Kind.GAUSSIAN, Kind.SOFTMAX, got "
    with pytest.raises(ValueError, match="^" + re.escape(expected + repr(kind))):
        Layer("a", 3, kind)  # type: ignore[arg-type]


def test_names_are_distinct() -> None:
    with pytest.raises(ValueError, match=r"layers: expected distinct names, got \['a', 'a'\]"):
        Graph((Layer("a", 1), Layer("a", 2)), ())


@pytest.mark.parametrize("ends", [(0, 2), (-1, 0), (1, 1)])
def test_couplings_join_two_layers(ends: tuple[int, int]) -> None:
    message = rf"coupling 0: expected two different layers in 0\.\.1, got {ends[0]} and {ends[1]}"
    with pytest.raises(ValueError, match=message):
        Graph(LAYERS, (Coupling(*ends),))


@pytest.mark.parametrize("second", [Coupling(0, 1), Coupling(1, 0)])
def test_layers_are_coupled_once(second: Coupling) -> None:
    with pytest.raises(ValueError, match=r"coupling 1: layers . and . are coupled already"):
        Graph(LAYERS, (Coupling(0, 1), second))


def test_gaussian_layers_are_not_coupled_to_each_other() -> None:
    layers = (Layer("a", 2, Kind.GAUSSIAN), Layer("b", 3, Kind.GAUSSIAN))
    with pytest.raises(ValueError, match="coupling 0: two Gaussian layers cannot be coupled"):
        Graph(layers, (Coupling(0, 1),))


def test_fan_in_is_limited_where_sums_would_overflow() -> None:
    wide = Layer("wide", MAX_FAN_IN + 1)
    with pytest.raises(ValueError, match="layer 'wide': 65537 units exceed the 65536 inputs over which integer sums"):
        Graph((wide, Layer("b", 1)), (Coupling(0, 1),))
    Graph((Layer("wide", MAX_FAN_IN), Layer("b", 1)), (Coupling(0, 1),))

"""Programs: the order of updates, clamping, and what is refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from bm_fast import Graph, chain_graph
from bm_fast.program import Input, Program, Update, check_program, full_update, gibbs_program
from enumeration import GRAPHS, machine, semi_restricted, two_pathways


def layers_of(program: Program) -> list[list[int]]:
    return [[update.layer for update in block] for block in program]


def test_full_update_reads_every_coupling() -> None:
    deep, tree = chain_graph((2, 3, 4)), two_pathways()
    assert full_update(deep, 1) == Update(1, (Input(0, transposed=False), Input(1, transposed=True)))
    assert full_update(deep, 0) == Update(0, (Input(0, transposed=True),))
    assert full_update(tree, 4) == Update(4, (Input(2, transposed=False), Input(3, transposed=False)))


def test_gibbs_updates_the_colour_of_layer_0_last() -> None:
    assert layers_of(gibbs_program(chain_graph((2, 3)))) == [[1], [0]]
    assert layers_of(gibbs_program(chain_graph((2, 3, 4, 5)))) == [[1, 3], [0, 2]]
    assert layers_of(gibbs_program(two_pathways())) == [[1, 3], [0, 2, 4]]
    assert layers_of(gibbs_program(semi_restricted())) == [[2], [1], [0]]


def test_gibbs_can_end_on_another_layer() -> None:
    assert layers_of(gibbs_program(chain_graph((2, 3)), last=1)) == [[0], [1]]
    assert layers_of(gibbs_program(semi_restricted(), last=2)) == [[1], [0], [2]]


def test_gibbs_leaves_out_clamped_layers() -> None:
    assert layers_of(gibbs_program(two_pathways(), clamped=[0])) == [[1, 3], [2, 4]]
    assert layers_of(gibbs_program(chain_graph((2, 3)), clamped=[1])) == [[0]]
    assert gibbs_program(chain_graph((2, 3)), clamped=[0, 1]) == ()


@pytest.mark.parametrize("layer", [2, -1])
def test_gibbs_refuses_layers_that_do_not_exist(layer: int) -> None:
    with pytest.raises(ValueError, match=f"clamped: no layer {layer} in a graph of 2"):
        gibbs_program(chain_graph((2, 3)), clamped=[0, layer])
    with pytest.raises(ValueError, match=f"last: no layer {layer} in a graph of 2"):
        gibbs_program(chain_graph((2, 3)), last=layer)


@pytest.mark.parametrize("name", GRAPHS)
def test_gibbs_programs_are_accepted(name: str) -> None:
    graph = GRAPHS[name]
    for last in (None, *range(len(graph.layers))):
        program = gibbs_program(graph, last=last)
        check_program(graph, program)
        assert sorted(layer for block in layers_of(program) for layer in block) == list(range(len(graph.layers)))


RBM = chain_graph((2, 3))
UP, DOWN = full_update(RBM, 1), full_update(RBM, 0)


@pytest.mark.parametrize(
    ("graph", "program", "message"),
    [
        (RBM, ((UP,), (DOWN,), (UP,)), r"expected each layer at most once in a sweep, got \[1, 0, 1\]"),
        (RBM, ((UP, DOWN),), "block 0: layers 1 and 0 are coupled and cannot be updated together"),
        (RBM, ((UP,), (Update(2, ()),)), "block 1: no layer 2 in a graph of 2"),
        (RBM, ((Update(-1, ()),),), "block 0: no layer -1 in a graph of 2"),
        (RBM, ((Update(0, (Input(1, transposed=True),)),),), "block 0: no coupling 1"),
        (RBM, ((Update(0, (Input(-1, transposed=True),)),),), "block 0: no coupling -1"),
        (RBM, ((Update(0, (Input(0, transposed=False),)),),), "block 0: coupling 0 leads to layer 1, not 0"),
        (RBM, ((Update(1, (Input(0, transposed=True),)),),), "block 0: coupling 0 transposed leads to layer 0, not 1"),
    ],
)
def test_refused_programs(graph: Graph, program: Program, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_program(graph, program)
    built = machine(graph)
    chains = built.chains(4, seed=0)
    before = chains.clone()
    with pytest.raises(ValueError, match=message):
        built.sweep(program, chains, 1)
    assert all(torch.equal(a, b) for a, b in zip(chains.layers, before.layers, strict=True))
    assert chains.sweep == before.sweep


def test_layers_without_a_coupling_between_them_may_move_together() -> None:
    """The synchronous update of a deep machine is refused wherever it would be wrong, and only there."""
    deep = chain_graph((2, 3, 4))
    check_program(deep, ((full_update(deep, 0), full_update(deep, 2)),))
    with pytest.raises(ValueError, match="are coupled and cannot be updated together"):
        check_program(deep, (tuple(full_update(deep, i) for i in range(3)),))


def test_an_update_that_has_run_is_the_same_as_before() -> None:
    update = full_update(RBM, 1)
    built = machine(RBM)
    built.sweep(((update,),), built.chains(4, seed=0), 1)
    for other in (full_update(RBM, 1), pickle.loads(pickle.dumps(update)), copy.deepcopy(update)):
        assert (other, hash(other), repr(other)) == (update, hash(update), repr(update))
    halved = replace(update, inputs=(Input(0, transposed=False, scale=0.5),))
    assert halved.plain == (1, [(0, False, 0.5)])


@pytest.mark.usefixtures("backend")
def test_scaled_inputs_scale_the_field() -> None:
    """Doubled inputs, as in greedy pretraining, give the means of a machine with doubled weights."""
    graph = chain_graph((4, 3))
    built = machine(graph)
    weight, c = built.parameters.weight(0), built.parameters.biases[1]
    v = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]], dtype=torch.uint8)
    states = [v, torch.zeros(2, 3, dtype=torch.uint8)]
    update = Update(1, (Input(0, transposed=False, scale=2.0),))
    expected = torch.sigmoid(c + 2 * v.float() @ weight)
    assert torch.allclose(built.layer_means(update, states), expected, atol=1e-5)


@pytest.mark.usefixtures("backend")
def test_left_out_inputs_do_not_count() -> None:
    """A directed net is a program with fewer inputs."""
    graph = chain_graph((2, 3, 4))
    built = machine(graph)
    states = [torch.ones(1, layer.units, dtype=torch.uint8) for layer in graph.layers]
    found = built.layer_means(Update(1, (Input(0, transposed=False),)), states)
    expected = torch.sigmoid(built.parameters.biases[1] + built.parameters.weight(0).sum(0))
    assert torch.allclose(found[0], expected, atol=1e-5)
    bias_only = built.layer_means(Update(1, ()), states)
    assert torch.allclose(bias_only[0], torch.sigmoid(built.parameters.biases[1]), atol=1e-5)

"""Checks of the form on a grid, whose length is rows * columns."""

import dataclasses

from keras_linattn.testing._backends import compiled
from keras_linattn.testing._gradient_checks import compare_gradients
from keras_linattn.testing._graph_checks import arrays_of
from keras_linattn.testing._graph_checks import function_of
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import compare_with_reference
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import run


def _on(subject, grid):
    return dataclasses.replace(subject, config={**subject.config, "grid": grid})


def check_grid_matches_reference(subject):
    for grid, visible in (((3, 4), None), ((3, 4), 0.7), ((1, 5), 0.7)):
        length = grid[0] * grid[1]
        inputs = subject.inputs(queries=length, keys=length, visible=visible)
        compare_with_reference(_on(subject, grid), inputs)


def check_grid_gradients_match_reference(subject):
    inputs = subject.inputs(
        batch=1, queries=6, keys=6, key_dim=2, value_dim=2, visible=0.8
    )
    compare_gradients(_on(subject, (2, 3)), inputs)


def check_grid_compiles(subject):
    inputs = subject.inputs(queries=12, keys=12, visible=0.7)
    mechanism = _on(subject, (3, 4)).build(inputs)
    output = compiled(function_of(mechanism, causal=False), arrays_of(inputs))
    assert_close(output, run(mechanism, inputs), subject.traits.tolerance)


def check_grid_refuses_another_length(subject):
    inputs = subject.inputs(queries=12, keys=12)
    mechanism = _on(subject, (3, 4)).build(inputs)
    other = subject.inputs(queries=11, keys=11)
    try:
        run(mechanism, other)
    except ValueError as error:
        require("grid=(3, 4)" in str(error), f"unclear: {error}")
    else:
        raise AssertionError("a grid of 3 x 4 accepts a length of 11")


def _takes_grid(traits):
    return traits.grid


CHECKS = {
    check_grid_matches_reference: _takes_grid,
    check_grid_gradients_match_reference: _takes_grid,
    check_grid_compiles: _takes_grid,
    check_grid_refuses_another_length: _takes_grid,
}

"""JAX: fast forms, recomputation, and compiling for tests and benchmarks."""

import functools
import inspect
import itertools

import jax
import keras
from jax import export
from keras import ops

from keras_linattn.core import chunks
from keras_linattn.core import decay
from keras_linattn.core import delta
from keras_linattn.core import vector_delta
from keras_linattn.core.backends.thresholds import SEGMENT
from keras_linattn.core.backends.thresholds import UNROLLED
from keras_linattn.core.backends.thresholds import segment_size
from keras_linattn.core.devices import no_distribution

# --- Fast forms -----------------------------------------------------------


def convolve_channels(value, kernel, grid):
    """The sum of shifted copies, one for each entry of the kernel.

    XLA's grouped convolution is several times as slow on a CPU. The kernels of
    TensorFlow and torch are faster than this sum.
    """
    kernel = ops.expand_dims(kernel, -2)  # [K, H, 1, V]
    batch, heads, length, dim = ops.shape(value)
    sizes = (length,) if grid is None else grid
    if grid is not None:
        value = ops.reshape(value, (batch, heads, *grid, dim))
    half = kernel.shape[0] // 2
    outer = [(0, 0)]
    padding = outer * 2 + [(half, half)] * len(sizes) + outer
    value = ops.pad(value, padding)
    output = 0
    for shifts in itertools.product(range(kernel.shape[0]), repeat=len(sizes)):
        window = tuple(slice(i, i + n) for i, n in zip(shifts, sizes))
        weight = kernel[shifts]  # [H, 1, V]
        weight = weight if grid is None else ops.expand_dims(weight, -2)
        output = output + value[(slice(None), slice(None), *window)] * weight
    return ops.reshape(output, (batch, heads, length, dim))


def cumulative_sums(x, start):
    """Within groups by additions, which XLA fuses."""
    return chunks.grouped_sums(x, start, chunks.cumulative_sums.portable)


def scans_in_parallel(x):
    """On a GPU, where a small array takes no longer than the call itself."""
    # A length that JAX exports is a symbol.
    return jax.default_backend() == "gpu" and isinstance(x.shape[2], int)


def run_in_segments(function, state, tensors):
    """One segment after the other, computed again in the backward pass.

    Memory-bound on CPUs; a segment fits in cache.
    """
    shape = tensors[0].shape
    known = all(isinstance(size, int) for size in shape)
    known = known and not inspect.ismethod(function)
    if not known or jax.default_backend() != "cpu":
        return NotImplemented
    size = segment_size(shape, SEGMENT)
    if size is None:
        return NotImplemented
    segments = [
        ops.moveaxis(chunks.split_chunks(x, size), 2, 0) for x in tensors
    ]
    state, output = jax.lax.scan(_segment_of(function), state, segments)
    return chunks.join_chunks(ops.moveaxis(output, 0, 2), shape[2]), state


@functools.cache  # JAX compiles anew for each function that is new to it
def _segment_of(function):
    def advance(state, segment):
        output, state = function(state, *segment)
        return state, output

    return jax.checkpoint(advance)


def _products_in_segments(product):
    """The fast form of a recurrence over chunks, see `run_in_segments`."""

    signature = inspect.signature(product)

    def fast_form(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        *tensors, state, loop, chunk_size, starts = given.args
        packed = starts is not None
        function = _segment_function(product, loop, chunk_size, packed)
        tensors = (*tensors, starts) if packed else tensors
        return run_in_segments(function, state, tensors)

    return fast_form


@functools.cache  # few: constants of mechanisms
def _segment_function(product, loop, chunk_size, packed):
    def function(state, *tensors):
        *tensors, starts = tensors if packed else (*tensors, None)
        return product.portable(*tensors, state, loop, chunk_size, starts)

    return function


delta_product = _products_in_segments(delta.delta_product)
vector_delta_product = _products_in_segments(vector_delta.vector_delta_product)
scalar_decay_product = _products_in_segments(decay.scalar_decay_product)
vector_decay_product = _products_in_segments(decay.vector_decay_product)


def loop_over_chunks(advance, inputs, start, output_shape):
    """Unrolled, if the chunks are few, as within a segment."""
    count = inputs[0].shape[2]
    if not (isinstance(count, int) and count <= UNROLLED):
        return NotImplemented
    state, outputs = start, []
    for n in range(count):
        output, state = advance(tuple(x[:, :, n] for x in inputs), state)
        outputs.append(output)
    return ops.stack(outputs, 2), state


def sum_over_positions(weights, x):
    """By `einsum`: XLA is slow at a product of a transposed array."""
    return ops.einsum("bsr,bsf->brf", weights, x)


# --- Several devices, see core/devices.py ----------------------------------


def on_each_device(function, arrays, axes, output_axes, mesh):
    """By `shard_map`: only `function` itself communicates."""

    def alone(*parts):
        with no_distribution():
            return function(*parts)

    specs = tuple(jax.sharding.PartitionSpec(*names) for names in axes)
    return _shard_map()(
        alone,
        mesh=mesh.backend_mesh,
        in_specs=specs,
        out_specs=jax.sharding.PartitionSpec(*output_axes),
    )(*arrays)


def _shard_map():
    if hasattr(jax, "shard_map"):
        return functools.partial(jax.shard_map, check_vma=False)
    # Before JAX 0.6, with another name for the argument.
    from jax.experimental.shard_map import shard_map

    return functools.partial(shard_map, check_rep=False)


def whole_features(x):
    """Leaves the layout of the other axes to the compiler."""
    distribution = keras.distribution.distribution()
    if distribution is None or isinstance(x, keras.KerasTensor):
        return x
    free = (jax.sharding.PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    spec = jax.sharding.PartitionSpec(*free, None)
    mesh = distribution.device_mesh.backend_mesh
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return jax.lax.with_sharding_constraint(x, sharding)


def piece_place(name):
    return jax.lax.axis_index(name)


def gather_pieces(x, name):
    return jax.lax.all_gather(x, name)


def sum_pieces(x, name):
    return jax.lax.psum(x, name)


def max_pieces(x, name):
    return jax.lax.pmax(x, name)


def shift_pieces(x, name, count, by):
    pairs = [(i, i + by) for i in range(count) if 0 <= i + by < count]
    return jax.lax.ppermute(x, name, pairs)


# --- What only JAX needs ---------------------------------------------------


def looped_sums(x, start, breaks):
    """By a loop over the chunks."""

    def advance(state, chunk):
        update, cut = chunk
        return chunks.keep(state, cut) + update, state

    inputs = [ops.moveaxis(a, 2, 0) for a in (x, breaks)]
    after, before = jax.lax.scan(advance, start, inputs)
    return ops.moveaxis(before, 0, 2), after


def run_again(run, tensors, states, remat):
    """JAX traces `run` once, for both passes: it must return the new states."""

    def with_states(*tensors):
        return run(*tensors), [ops.copy(state) for state in states]

    y, values = remat(with_states)(*tensors)
    for state, value in zip(states, values, strict=True):
        state.assign(value)
    return y


# --- Compiling, for the conformance suite and the benchmarks ---------------


def compile_function(function):
    """`function` of tensors, compiled by XLA."""
    return jax.jit(function)


def compile_where_slow(function):
    """`function` compiled as a whole: JAX compiles each operation alone."""
    return jax.jit(function)


@functools.lru_cache(maxsize=16)
def _compiled_mechanism(mechanism):
    names = ("causal", "training")
    return jax.jit(mechanism.stateless_call, static_argnames=names)


def call_mechanism(mechanism, heads, causal, options):
    """The mechanism's output, compiled as a whole, once for each shape."""
    if options.get("training"):
        # A compiled call would not write back the state of a generator.
        return mechanism(*heads, causal=causal, **options)
    if not mechanism.built:
        mechanism.build(*(x.shape for x in heads))
        mechanism.built = True
    function = _compiled_mechanism(mechanism)
    return function(*_values(mechanism), *heads, causal=causal, **options)[0]


def trace_free_sizes(function, shapes, dtypes):
    """`function` traced once for all sizes that are given as a letter."""
    scope = export.SymbolicScope()
    structs = [
        jax.ShapeDtypeStruct(
            export.symbolic_shape(", ".join(map(str, shape)), scope=scope),
            dtype,
        )
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    return export.export(jax.jit(function))(*structs).call


def gradients(function, tensors, variables, others=()):
    """Gradients of the scalar `function(*tensors, *others)`.

    By tensors and variables.
    """
    both = _compiled_gradients(function, _Variables(variables))
    values = [v.value for v in variables]
    by_tensor, by_variable = both(tensors, values, others)
    return [*by_tensor, *by_variable]


class _Variables(tuple):
    """Equal if they are the same objects: Keras' own have no hash."""

    def __hash__(self):
        return hash(tuple(map(id, self)))

    def __eq__(self, other):
        return list(map(id, self)) == list(map(id, other))


@functools.lru_cache(maxsize=8)
def _compiled_gradients(function, variables):
    def total(tensors, values, others):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*tensors, *others)

    return jax.jit(jax.grad(total, argnums=(0, 1)))


def array_sizes(function, tensors):
    """Yields the number of entries of each array that `function` forms."""
    from jax.extend.core import jaxprs_in_params

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield from (output.aval.size for output in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from walk(inner)

    yield from walk(jax.make_jaxpr(function)(*tensors).jaxpr)


def forward(layer):
    """Callable of a tensor: the layer compiled, without gradients."""

    def function(trainable, other, x):
        return layer.stateless_call(trainable, other, x)[0]

    compiled, values = jax.jit(function), _values(layer)
    return lambda x: compiled(*values, x)


def training_step(layer, loss):
    """Callable of a tensor: gradients of `loss` by it and by all weights."""

    def function(trainable, x, other):
        return loss(layer.stateless_call(trainable, other, x)[0])

    compiled = jax.jit(jax.grad(function, argnums=(0, 1)))
    trainable, other = _values(layer)
    return lambda x: compiled(trainable, x, other)


def wait(result):
    """Returns once the tensors in `result` have been computed."""
    keras.tree.flatten(result)[0].block_until_ready()


def _values(layer):
    """Values of the trainable and of the other variables."""
    kinds = (layer.trainable_variables, layer.non_trainable_variables)
    return [[v.value for v in variables] for variables in kinds]

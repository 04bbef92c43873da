"""What each device sends in a training step, for splits of many devices.

    python -m tools.scaling_plan
    python -m tools.scaling_plan --check

The first prints tables for a causal language model: bytes that one device
sends for a step of `--tokens` tokens in one sequence, or in as many rows as
there are devices where the batch is split. Exchanges run in rings: a sum over
P devices sends 2 (P - 1) / P of its size, a gather (P - 1) / P of its result.
The second table splits the length, for stacks of each kind of mechanism.

`--check` compiles a small model for 4 virtual CPU devices under JAX, counts
the exchanges in the program, and prints them beside these formulas.
"""

import argparse
import os

FLOAT = 4  # bytes: gradients and states are in float32


def weights(sizes):
    """Number of weights of a `CausalLM` of `gated_delta` blocks."""
    f, hidden, heads = sizes.features, 4 * sizes.features, sizes.heads
    gates = 2 * (f * heads + heads) + heads
    attention = 4 * (f * f + f) + gates * (sizes.mechanism == "gated_delta")
    block = attention + f * hidden + hidden + hidden * f + f + 4 * f
    ends = sizes.vocabulary * f + f * sizes.vocabulary + sizes.vocabulary
    return sizes.layers * block + ends + 2 * f + 5 * f  # norm, convolution


# What a device tells the others of its piece, numbers for each head of size D.
STATES = {
    "linear_transformer": lambda d: d * (d + 1),
    "modified_linformer": lambda d: d * (d + 2),
    "retention": lambda d: d * (d + 1),
    "gated_delta": lambda d: d * 2 * d,  # with a D x D matrix
}
WINDOW = 256  # of `local`


def summed(count, devices):
    """Bytes that a sum of so many numbers over all devices sends."""
    return 2 * (devices - 1) / devices * count * FLOAT


def data_split(sizes, devices):
    """Gradients."""
    return summed(weights(sizes), devices)


def tensor_split(sizes, devices):
    """Activations: two sums forwards, five backwards for each block.

    Backwards XLA sums the gradients of each product from a block's input: of
    query, key, value, gates, and of the feedforward network. The embedding,
    split by features, is gathered once.
    """
    activations = sizes.tokens * sizes.features
    gathered = (devices - 1) / devices * activations * FLOAT
    return sizes.layers * 7 * summed(activations, devices) + gathered


def sequence_split(sizes, devices):
    """States or windows, the ends of pieces for convolutions, and gradients."""
    halo = 2 * 3 * sizes.features * sizes.batch * FLOAT  # the convolution's
    sent = states_sent(sizes, devices) + halo
    return sent + summed(weights(sizes), devices)


def states_sent(sizes, devices):
    """Each device's state goes to all others, a window to one of them.

    Once forwards and, as gradients, once backwards.
    """
    dim = sizes.features // sizes.heads
    if sizes.mechanism == "local":  # keys, values, and which are visible
        numbers = (sizes.window - 1) * (2 * dim + 1)
    else:
        numbers = (devices - 1) * STATES[sizes.mechanism](dim)
    numbers *= sizes.heads * sizes.batch
    return 2 * sizes.layers * numbers * FLOAT


def ring_attention(sizes, devices):
    """Keys and values forwards, they and their gradients backwards.

    Every device's piece goes round the ring; gradients of weights as above.
    Source: Liu et al., 2023, arXiv 2310.01889.
    """
    heads = sizes.tokens / devices * sizes.features
    sent = 6 * sizes.layers * (devices - 1) * heads * FLOAT
    return sent + summed(weights(sizes), devices)


SPLITS = {
    "batch": data_split,
    "heads": tensor_split,
    "length": sequence_split,
    "ring attention": ring_attention,
}


def table(sizes):
    """Yields the lines of a Markdown table, in millions of bytes."""
    yield f"| devices | {' | '.join(SPLITS)} |"
    yield "| ---: |" + " ---: |" * len(SPLITS)
    for devices in (8, 64, 1024):
        cells = []
        for name, split in SPLITS.items():
            fits = name != "heads" or sizes.heads % devices == 0
            millions = split(sizes, devices) / 1e6
            cells.append(f"{millions:,.0f}" if fits else "-")
        yield f"| {devices:,} | {' | '.join(cells)} |"


def table_of_states(sizes):
    """Yields the lines of a table: a length split, by the mechanism."""
    counts = (8, 64, 1024)
    yield f"| stack of | {' | '.join(f'{n:,} devices' for n in counts)} |"
    yield "| --- |" + " ---: |" * len(counts)
    for mechanism in (*STATES, "local"):
        own = argparse.Namespace(**{**vars(sizes), "mechanism": mechanism})
        cells = [f"{states_sent(own, n) / 1e6:,.0f}" for n in counts]
        yield f"| `{mechanism}` | {' | '.join(cells)} |"
    millions = [
        (ring_attention(sizes, n) - summed(weights(sizes), n)) / 1e6
        for n in counts
    ]
    yield f"| ring attention | {' | '.join(f'{x:,.0f}' for x in millions)} |"


def check(sizes):
    """Yields a line for each split: bytes of the program and the formula."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    import keras

    from keras_linattn import distribution
    from tools import _collectives

    def with_axis(name):
        return keras.distribution.DeviceMesh((1, 4), ("batch", name))

    splits = {
        "batch": lambda: keras.distribution.DataParallel(),
        "heads": lambda: keras.distribution.ModelParallel(
            layout_map=distribution.layout_map(with_axis("model"))
        ),
        "length": lambda: distribution.SequenceParallel(with_axis("sequence")),
    }
    stacks = [(name, sizes.mechanism) for name in splits]
    stacks += [("length", x) for x in (*STATES, "local")]
    for name, sizes.mechanism in dict.fromkeys(stacks):
        keras.distribution.set_distribution(splits[name]())
        found = _collectives.collectives(_compiled(sizes), 4)
        sent = sum(one.sent for one in found)
        wanted = SPLITS[name](sizes, 4)
        yield (
            f"{name}, {sizes.mechanism}: {len(found)} exchanges, {sent:,.0f} "
            f"bytes; the formula says {wanted:,.0f}, {wanted / sent:.3f} of it"
        )


def _compiled(sizes):
    """The text of a training step, compiled for the current distribution."""
    import jax
    import keras
    import numpy as np

    import keras_linattn

    mechanism = {"name": sizes.mechanism}
    if sizes.mechanism == "local":
        mechanism["window"] = sizes.window
    model = keras_linattn.models.CausalLM(
        sizes.vocabulary,
        hidden_dim=sizes.features,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        mechanism=mechanism,
    )
    shape = sizes.batch, sizes.tokens // sizes.batch
    layout = keras.distribution.distribution().get_data_layout(shape)
    tokens = jax.device_put(np.ones(shape, "int32"), layout.backend_layout)

    def loss(weights, tokens):
        logits, _ = model.stateless_call(weights, [], tokens)
        losses = keras.losses.sparse_categorical_crossentropy(
            tokens, logits, from_logits=True
        )
        return keras.ops.mean(losses)

    values = [v.value for v in model.trainable_variables]
    layouts = [value.sharding for value in values]
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layouts))
    return step.lower(values, tokens).compile().as_text()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--mechanism", default="gated_delta", choices=STATES)
    parser.add_argument("--check", action="store_true")
    sizes = parser.parse_args()
    sizes.window = WINDOW
    if sizes.check:
        small = {"tokens": 2048, "batch": 4, "features": 32, "heads": 4}
        vars(sizes).update(small, layers=2, vocabulary=256, window=16)
        print("\n".join(check(sizes)))
    else:
        print("\n".join([*table(sizes), "", *table_of_states(sizes)]))


if __name__ == "__main__":
    main()

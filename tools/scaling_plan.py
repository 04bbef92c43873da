"""What each device sends in a training step, for splits of many devices.

    python -m tools.scaling_plan
    python -m tools.scaling_plan --check

The first prints a table for a causal language model: bytes that one device
sends for a step of `--tokens` tokens in one sequence, or in as many rows as
there are devices where the batch is split. Exchanges run in rings: a sum over
P devices sends 2 (P - 1) / P of its size, a gather (P - 1) / P of its result.

The second compiles a small model for 4 virtual CPU devices under JAX, counts
the exchanges in the program, and prints them beside these formulas.
"""

import argparse
import os

FLOAT = 4  # bytes: gradients and states are in float32


def weights(sizes):
    """Number of weights of a `CausalLM` of `gated_delta` blocks."""
    f, hidden, heads = sizes.features, 4 * sizes.features, sizes.heads
    attention = 4 * (f * f + f) + 2 * (f * heads + heads) + heads
    block = attention + f * hidden + hidden + hidden * f + f + 4 * f
    ends = sizes.vocabulary * f + f * sizes.vocabulary + sizes.vocabulary
    return sizes.layers * block + ends + 2 * f + 5 * f  # norm, convolution


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
    """States, a state and a D x D matrix for each head, and gradients.

    Each once forwards and once backwards.
    """
    dim = sizes.features // sizes.heads
    state = sizes.heads * dim * 2 * dim * sizes.batch
    states = 2 * sizes.layers * (devices - 1) * state * FLOAT
    halo = 2 * 3 * sizes.features * sizes.batch * FLOAT  # the convolution's
    return states + halo + summed(weights(sizes), devices)


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
    for name, make in splits.items():
        keras.distribution.set_distribution(make())
        found = _collectives.collectives(_compiled(sizes), 4)
        sent = sum(one.sent for one in found)
        wanted = SPLITS[name](sizes, 4)
        yield (
            f"{name}: {len(found)} exchanges, {sent:,.0f} bytes; the formula "
            f"says {wanted:,.0f}, {wanted / sent:.3f} of them"
        )


def _compiled(sizes):
    """The text of a training step, compiled for the current distribution."""
    import jax
    import keras
    import numpy as np

    import keras_linattn

    model = keras_linattn.models.CausalLM(
        sizes.vocabulary,
        hidden_dim=sizes.features,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
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
    parser.add_argument("--check", action="store_true")
    sizes = parser.parse_args()
    if sizes.check:
        small = {"tokens": 2048, "batch": 4, "features": 32, "heads": 4}
        vars(sizes).update(small, layers=2, vocabulary=256)
        print("\n".join(check(sizes)))
    else:
        print("\n".join(table(sizes)))


if __name__ == "__main__":
    main()

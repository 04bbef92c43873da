"""What generation needs around a model: prompts, texts, stops, steps."""

import numpy as np
from keras import ops
from keras import tree

NEW_TOKENS = 256  # generated where no `max_length` is given
SHORTEST_BUCKET = 64  # positions; below, a call takes no longer
NEVER = -1e9  # a logit: probability 0


def bucket_length(length: int, shortest: int = SHORTEST_BUCKET) -> int:
    """Returns the next power of two, so that few lengths are compiled.

    TensorFlow and JAX compile a function anew for each shape. Pad a batch to
    this length at the end, where `CausalLM` and `TextClassifier` ignore it.

    Args:
        length: int >= 0, the longest sequence of a batch.
        shortest: int > 0, the least length to return. Defaults to 64.

    Returns:
        int, `shortest` times a power of two that is at least `length`.

    Raises:
        ValueError: if `length` is below 0 or `shortest` below 1.

    Example:

    >>> import keras_linattn
    >>> lengths = (3, 64, 65, 1000)
    >>> [keras_linattn.models.bucket_length(length) for length in lengths]
    [64, 64, 128, 1024]
    """
    if length < 0 or shortest < 1:
        raise ValueError(
            "`length` must be at least 0, and `shortest` at least 1. "
            f"Received: length={length}, shortest={shortest}."
        )
    bucket = shortest
    while bucket < length:
        bucket *= 2
    return bucket


def import_keras_hub():
    """The module `keras_hub`, or an `ImportError` that says how to get it."""
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            "`generate` samples with KerasHub's samplers. Received: no module "
            "named 'keras_hub'. Run `pip install keras-linattn[nlp]`."
        ) from error
    return keras_hub


def encode(texts, tokenizer=None):
    """Texts to lists of ids: bytes plus one without a tokenizer.

    Args:
        texts: list of str.
        tokenizer: KerasHub tokenizer or `None`.

    Returns:
        List of lists of int. A start token comes first where there is one.
    """
    if tokenizer is None:
        return [[byte + 1 for byte in text.encode("utf-8")] for text in texts]
    rows = [list(map(int, row)) for row in tokenizer(list(texts))]
    start = getattr(tokenizer, "start_token_id", None)
    return [row if start is None else [start, *row] for row in rows]


def decode(rows, tokenizer=None):
    """Lists of ids to texts, without special tokens."""
    if tokenizer is None:
        texts = (bytes(i - 1 for i in row if 0 < i < 257) for row in rows)
        # A sequence may end, or a model may err, inside a character.
        return [text.decode("utf-8", errors="replace") for text in texts]
    special = set(getattr(tokenizer, "special_token_ids", ()))
    rows = [[i for i in row if i not in special] for row in rows]
    return [str(text) for text in tokenizer.detokenize(rows)]


def padding_id(tokenizer):
    """The id that fills up rows: 0 unless the tokenizer has its own."""
    own = getattr(tokenizer, "pad_token_id", None)
    return 0 if own is None else own


def hides_padding(tokenizer):
    """Whether the padding id has no other meaning."""
    return tokenizer is None or getattr(tokenizer, "pad_token_id", None) == 0


def stop_tokens(stop_token_ids, tokenizer):
    """Tuple of ids that end a row, or `None`, from `generate`'s argument."""
    if stop_token_ids == "auto":
        names = ("end_token_id", "end_token2_id")
        ends = (getattr(tokenizer, name, None) for name in names)
        stop_token_ids = [end for end in ends if end is not None]
    return tuple(int(i) for i in stop_token_ids or ()) or None


def pack(rows, max_length, pad_id):
    """Lists of ids to the dense inputs of a generation step.

    Args:
        rows: list of lists of int, the prompts.
        max_length: int > 0, length of the result, or `None`.
        pad_id: int.

    Returns:
        Dict of int32 `token_ids` `(B, L)` and bool `padding_mask` `(B, L)`.
    """
    lengths = np.array([len(row) for row in rows])
    if max_length is None:
        max_length = lengths.max(initial=0) + NEW_TOKENS
    mask = np.arange(max_length) < lengths[:, None]
    tokens = np.full(mask.shape, pad_id, "int32")
    for row, ids in zip(tokens, rows):
        row[: len(ids)] = ids[:max_length]
    return {"token_ids": tokens, "padding_mask": mask}


def unpack(tokens, mask):
    """Array of ids to one list of visible ids for each row."""
    return [row[visible].tolist() for row, visible in zip(tokens, mask)]


def check_prompts(mask):
    """Raises a `ValueError` if there is a row to start from nothing."""
    lengths = mask.sum(axis=-1)
    if mask.ndim != 2 or not lengths.size or lengths.min() < 1:
        raise ValueError(
            "Each prompt must hold at least one token, from which to go on. "
            f"Received: prompts of lengths {lengths.tolist()}. Start them "
            "with something, such as a line break."
        )


def as_arrays(inputs, max_length, pad_id):
    """Token ids, or a dict of them and their mask, as KerasHub takes them."""
    if not isinstance(inputs, dict):
        tokens = np.asarray(ops.convert_to_numpy(inputs), "int32")
        inputs = {"token_ids": tokens, "padding_mask": tokens != pad_id}
    if set(inputs) != {"token_ids", "padding_mask"}:
        raise ValueError(
            "A dict of prompts has the keys 'token_ids' and 'padding_mask'. "
            f"Received: {sorted(inputs)}. Give each prompt a row of its own: "
            "text is not generated for packed rows."
        )
    inputs = {k: ops.convert_to_numpy(v) for k, v in inputs.items()}
    tokens = inputs["token_ids"].astype("int32")
    mask = inputs["padding_mask"].astype("bool")
    if max_length is None:
        return {"token_ids": tokens, "padding_mask": mask}
    return pack(unpack(tokens, mask), max_length, pad_id)


def without_prompt(outputs, prompt, pad_id):
    """What was added to each prompt, moved to the front of its row."""
    tokens, mask = outputs["token_ids"], outputs["padding_mask"]
    added = mask & ~prompt["padding_mask"]
    return pack(unpack(tokens, added), tokens.shape[1], pad_id)


def longest_input(model):
    """The most positions that all mechanisms of a model take, or `None`."""
    sizes = [
        getattr(layer.mechanism, name, None)
        for layer in model.layers
        if hasattr(layer, "mechanism")
        for name in ("sequence_length", "cache_length")
    ]
    return min((size for size in sizes if size is not None), default=None)


def in_bucket(prompts, pad_id, longest=None):
    """Prompts moved to the end of a longer row, of one of a few lengths.

    In front, where the sampler's loop does not begin yet, the added columns
    cost no steps. A row that is not longer than `longest` remains so.
    """
    length = prompts["token_ids"].shape[1]
    bucket = bucket_length(length)
    if longest is not None:
        bucket = max(length, min(bucket, longest))
    added = [(0, 0), (bucket - length, 0)]
    return {
        "token_ids": np.pad(
            prompts["token_ids"], added, constant_values=pad_id
        ),
        "padding_mask": np.pad(prompts["padding_mask"], added),
    }


def sample(model, inputs, stop_token_ids):
    """Continues each row, with constant cost for each token.

    Args:
        model: a `CausalLM`.
        inputs: dict of `token_ids` and `padding_mask`, both `(B, L)`. All rows
            begin at the first column that the mask of one of them shows.
        stop_token_ids: tuple of int or `None`.

    Returns:
        A dict like `inputs`; the mask ends with a row's first new stop token.
    """
    tokens = ops.cast(inputs["token_ids"], "int32")
    prompt = ops.cast(inputs["padding_mask"], "bool")
    positions = ops.arange(ops.shape(tokens)[1], dtype="int32")
    start = _first_column(prompt)
    counts = ops.sum(ops.cast(prompt, "int32"), axis=-1)
    index = start + ops.min(counts)
    # Columns in front are kept, and hold no new stop token.
    front = ops.expand_dims(positions < start, 0)
    kept = ops.logical_or(prompt, front)
    # The sampler feeds position index - 1 itself; a state must not see it
    # twice. Longer prompts catch up in the sampler's loop.
    earlier = ops.expand_dims(positions < index - 1 - start, 0)
    earlier = ops.logical_and(earlier, ops.ones_like(prompt))
    state = model.get_initial_state(ops.shape(tokens)[0])
    moved = ops.minimum(positions + start, positions[-1])
    hidden, state = model.encode_with_state(
        ops.take(tokens, moved, axis=1), state, earlier
    )
    # Copies of the first one in front: contrastive search compares with all.
    hidden = ops.take(hidden, ops.maximum(positions - start, 0), axis=1)

    def step(tokens, state, index):
        last = ops.slice(tokens, [0, index - 1], [ops.shape(tokens)[0], 1])
        logits, hidden, after = model.call_with_state(last, state)
        # Shapes that a backend lost would end its loop.
        after = tree.map_structure(
            lambda x, like: ops.reshape(x, ops.shape(like)), after, state
        )
        logits = _without_padding(logits[:, 0], model.tokenizer)
        return logits, hidden[:, 0], after

    _, last, _ = step(tokens, state, index)
    hidden = ops.slice_update(
        hidden, [0, index - 1, 0], ops.expand_dims(last, 1)
    )
    tokens = model.sampler(
        next=step,
        prompt=tokens,
        cache=state,
        index=index,
        mask=kept,
        stop_token_ids=stop_token_ids,
        hidden_states=hidden,
        model=model,
    )
    mask = _until_stop(tokens, kept, stop_token_ids)
    mask = ops.logical_and(mask, ops.logical_not(front))
    return {"token_ids": tokens, "padding_mask": mask}


def _first_column(mask):
    """The first column with a True entry, an int32 scalar."""
    used = ops.cast(ops.any(mask, axis=0), "int32")
    return ops.cast(ops.argmax(used), "int32")


def _without_padding(logits, tokenizer):
    """Padding is no token that could follow."""
    if not hides_padding(tokenizer):
        return logits
    never = ops.full_like(logits[:, :1], NEVER)
    return ops.concatenate([never, logits[:, 1:]], axis=-1)


def _until_stop(tokens, prompt, stop_token_ids):
    ended = ops.zeros_like(tokens)
    for stop in stop_token_ids or ():
        ended = ops.logical_or(ended, ops.equal(tokens, stop))
    ended = ops.logical_and(ended, ops.logical_not(prompt))
    ended = ops.cast(ended, "int32")
    before = ops.cumsum(ended, axis=-1) - ended
    return ops.equal(before, 0)

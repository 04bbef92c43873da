"""Stacks of blocks that differ in their mechanism: patterns of entries."""

from keras_linattn import mechanisms
from keras_linattn.layers._sublayers import restore_mechanism

SAME_AS = "same_object_as_entry"  # in the config of a list


def is_pattern(mechanism):
    """Is it a list of entries, rather than one mechanism?"""
    return isinstance(mechanism, (list, tuple))


def mechanisms_of_blocks(mechanism, num_layers):
    """The mechanism of each block.

    Args:
        mechanism: one, see `mechanisms.get`, or a list of them. A shorter list
            repeats; the last repetition may be cut.
        num_layers: int, blocks.

    Returns:
        List of `num_layers` names, dicts, classes or objects.
    """
    pattern = mechanism if is_pattern(mechanism) else [mechanism]
    if not pattern:
        raise ValueError(
            "A list of mechanisms must have an entry. "
            f"Received: mechanism={mechanism!r}. Name one mechanism, or one "
            'for each block: `["gated_delta", "softmax"]`.'
        )
    if len(pattern) > max(num_layers, 1):
        raise ValueError(
            "A list of mechanisms has one entry for each block, or fewer, "
            f"which repeat. Received: {len(pattern)} entries for {num_layers} "
            f"blocks, mechanism={mechanism!r}. Leave out what has no block, or "
            "raise `num_layers`."
        )
    return [pattern[i % len(pattern)] for i in range(num_layers)]


def mechanism_of_group(entries):
    """The one mechanism of blocks that share a state.

    Args:
        entries: list with the mechanism of each block, see `mechanisms.get`.
    """
    first, *others = entries
    if any(other != first for other in others):
        raise ValueError(
            "Blocks that share keys, values and a state share their mechanism. "
            f"Received: mechanism={entries!r} for one group of blocks. Give "
            "all blocks of a group the same entry, or each mechanism a group "
            "of its own (`layers_per_state=1` in `CausalLM`)."
        )
    return first


def serialize_pattern(entries, serialize):
    """Entries as JSON; a repeated object refers to the entry that holds it.

    Args:
        entries: tuple of names, dicts, classes or objects.
        serialize: callable, makes JSON of one entry.
    """
    first = {}  # index of the entry that first holds an object
    for index, entry in enumerate(entries):
        if isinstance(entry, mechanisms.Mechanism):
            first.setdefault(id(entry), index)
    return tuple(
        {SAME_AS: first[id(entry)]}
        if first.get(id(entry), index) != index
        else serialize(entry)
        for index, entry in enumerate(entries)
    )


def restore_pattern(configs):
    """The entries of `serialize_pattern`, ready for a constructor."""
    entries = []
    for config in configs:
        if isinstance(config, dict) and SAME_AS in config:
            config = entries[config[SAME_AS]]
        elif isinstance(config, dict) and "class_name" in config:
            config = restore_mechanism(config)
        entries.append(config)
    return entries

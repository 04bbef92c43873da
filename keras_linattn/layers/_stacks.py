"""Stacks of blocks that differ: an entry of an argument for each block."""

from keras_linattn import mechanisms
from keras_linattn.layers._sublayers import restore_mechanism

SAME_AS = "same_object_as_entry"  # in the config of a list


def is_pattern(value):
    """Is it a list of entries, rather than one for all blocks?"""
    return isinstance(value, (list, tuple))


def entries_of_blocks(name, value, num_layers):
    """The entry of each block, from one for all or a pattern.

    Args:
        name: str, the argument's, for errors.
        value: one entry, or a list of them. A shorter list repeats; the last
            repetition may be cut.
        num_layers: int, blocks.

    Returns:
        List of `num_layers` entries.
    """
    pattern = value if is_pattern(value) else [value]
    if not 0 < len(pattern) <= max(num_layers, 1):
        raise ValueError(
            f"A list for `{name}` must have one entry for each block, or "
            f"fewer, which are repeated. Received: {len(pattern)} entries for "
            f"{num_layers} blocks, {name}={value!r}. "
            "Pass one entry without a list, or a list with one entry for each "
            "block."
        )
    return [pattern[i % len(pattern)] for i in range(num_layers)]


def entry_of_group(name, entries):
    """The one entry of blocks that share keys, values and a state.

    Args:
        name: str, the argument's, for errors.
        entries: list, from `entries_of_blocks`.
    """
    first, *others = entries
    if any(other != first for other in others):
        raise ValueError(
            "Blocks that share keys, values and a state must also share their "
            f"`{name}`. Received: {name}={entries!r} for one group of blocks. "
            "Pass the same entry for all blocks of a group, or make groups of "
            "one block (`layers_per_state=1` in `CausalLM`)."
        )
    return first


def serialize_pattern(entries, serialize):
    """Mechanisms as JSON; a repeated object refers to its first entry.

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

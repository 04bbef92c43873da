"""The page of `saving_matrix.py`."""

from _saving_formats import BACKENDS
from _saving_formats import KEPT
from _saving_models import TOLERANCES
from _saving_models import VARIANTS
from _saving_reasons import GREEN
from _saving_reasons import REASONS

from keras_linattn import mechanisms

TITLES = {
    "keras": "`.keras`",
    "weights": "`.weights.h5`, loaded into a model built anew",
    "config": "Config to JSON and back, then `set_weights`",
    "clone": "`keras.models.clone_model`, then `set_weights`",
    "tf_saved_model": "SavedModel: `keras_linattn.export.export_saved_model`",
    "onnx": "ONNX: `keras_linattn.export.export_onnx`, run by ONNX Runtime",
    "openvino": '`model.export(path, format="openvino")`, run by OpenVINO',
    "litert": '`model.export(path, format="litert")`, run by `tf.lite`',
}
HEAD = """\
# What can be saved, under which backend, in which format

Written by `python tools/saving_matrix.py`; the cells are in
`saving_matrix.json`. `tests/matrix/test_saving_matrix.py` compares this page
with them and computes a sample of them again; `--check` computes all.

The model: an embedding, a `LinearSelfAttention`, a block and a dense layer,
all with the mechanism, batch and length free, weights moved off their initial
values. The block is `LinearTransformerEncoder`, or `LinearTransformerDecoder`
for mechanisms that attend causally only. *yes* means that what came back gives
the outputs of the model that was saved, for a padded batch of a size that no
export has seen, within {tolerances} of the largest output
(float32, mixed_float16, mixed_bfloat16, int8, LoRA). int8:
`model.quantize("int8")`. LoRA: adapters of rank 2, not 0, on query and value of
the attention layer and on the dense layer. Any other word is a reason;
[they are below](#why-not).

Made with {versions}.
"""


def page(content, expanded):
    """The whole page.

    Args:
        content: dict, that of saving_matrix.json.
        expanded: function (format, outcome) -> {(saved, loaded): outcome}.

    Returns:
        str, Markdown.
    """
    versions = content["versions"].items()
    parts = [
        HEAD.format(
            tolerances=", ".join(f"{t:g}" for t in TOLERANCES.values()),
            versions=", ".join(f"{name} {number}" for name, number in versions),
        )
    ]
    for form, rows in content["cells"].items():
        expanded_rows = {
            name: {v: expanded(form, outcome) for v, outcome in row.items()}
            for name, row in rows.items()
        }
        parts += [f"## {TITLES[form]}\n", *table(form, expanded_rows), ""]
    return "\n".join([*parts, *why_not(content, expanded)]) + "\n"


def table(form, rows):
    """Lines; mechanisms and backends with the same outcomes share one."""
    heads = ["mechanisms", "saved under"]
    heads += ["loaded under"] if form in KEPT else []
    yield f"| {' | '.join([*heads, *VARIANTS])} |"
    yield f"|{' --- |' * (len(heads) + len(VARIANTS))}"
    for names, pairs, outcomes in grouped(rows):
        cells = ["yes" if o == GREEN else o for o in outcomes]
        if form not in KEPT:  # there is no column of what loads it
            pairs = [(saved, None) for saved, _ in pairs]
        for saved, loaded in products(pairs):
            backends = [named(saved)]
            backends += [named(loaded)] if form in KEPT else []
            cells_of_row = [described(names), *backends, *cells]
            yield f"| {' | '.join(cells_of_row)} |"


def grouped(rows):
    """(mechanisms, pairs of backends, outcomes by variant), none twice."""
    by_name = {}
    for name, row in rows.items():
        by_outcomes = {}
        for pair in sorted(row[VARIANTS[0]], key=order):
            outcomes = tuple(row[variant][pair] for variant in VARIANTS)
            by_outcomes.setdefault(outcomes, []).append(pair)
        for outcomes, pairs in by_outcomes.items():
            key = (tuple(pairs), outcomes)
            by_name.setdefault(key, []).append(name)
    for pairs, outcomes in sorted(by_name, key=lambda key: order(key[0][0])):
        yield by_name[pairs, outcomes], pairs, outcomes


def order(pair):
    return [BACKENDS.index(name) if name in BACKENDS else -1 for name in pair]


def products(pairs):
    """Pairs as (some saved under, some loaded under), each with each."""
    by_saved = {}
    for saved, loaded in pairs:
        by_saved.setdefault(saved, []).append(loaded)
    by_loaded = {}
    for saved, loaded in by_saved.items():
        by_loaded.setdefault(tuple(loaded), []).append(saved)
    return [(saved, loaded) for loaded, saved in by_loaded.items()]


def named(backends):
    return "each" if len(backends) == len(BACKENDS) else ", ".join(backends)


def described(names):
    others = [n for n in mechanisms.available() if n not in names]
    if not others:
        return "all"
    if len(others) < len(names) / 2:
        return f"all but {', '.join(f'`{name}`' for name in others)}"
    return ", ".join(f"`{name}`" for name in names)


def why_not(content, expanded):
    used = {
        outcome
        for form, rows in content["cells"].items()
        for row in rows.values()
        for cell in row.values()
        for outcome in expanded(form, cell).values()
    }
    yield "## Why not\n"
    yield "| reason | why | the way out |"
    yield "| --- | --- | --- |"
    for reason in REASONS:
        if reason.key in used:
            yield f"| {reason.key} | {reason.why} | {reason.way_out} |"

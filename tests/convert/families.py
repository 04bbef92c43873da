"""KerasHub's families in small, with weights that attention matters for."""

import keras_hub
import numpy as np

ENCODER = {
    "vocabulary_size": 40,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
}
DECODER = {
    "vocabulary_size": 40,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
}
SMALL = {"embedding_dim": 8, "max_sequence_length": 32}
LONGEST = {"max_sequence_length": 32}
VIT = {
    "image_shape": (16, 16, 3),
    "patch_size": 4,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "mlp_dim": 24,
}
ELECTRA = {**ENCODER, **SMALL, "vocab_size": 40}
del ELECTRA["vocabulary_size"]
FAMILIES = {
    "Bert": {**ENCODER, **LONGEST},
    "GPT2": {**ENCODER, **LONGEST},
    "Qwen3": {**DECODER, "head_dim": 8},
    "Albert": {**ENCODER, **SMALL},
    "Bart": {**ENCODER, **LONGEST},
    "DistilBert": {**ENCODER, **LONGEST},
    "Electra": ELECTRA,
    "Llama": DECODER,
    "Llama3": DECODER,
    "OPT": {**ENCODER, **LONGEST},
    "Roberta": {**ENCODER, **LONGEST},
    "ViT": VIT,
    "XLMRoberta": {**ENCODER, **LONGEST},
}
MASK = np.arange(9) < np.array([[9], [6]])


def backbone(family, **options):
    cls = getattr(keras_hub.models, f"{family}Backbone")
    model = cls(**FAMILIES[family], **options)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if len(weight.shape) > 1:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


def inputs_of(family):
    rng = np.random.default_rng(0)
    if family == "ViT":
        return rng.random((2, 16, 16, 3)).astype("float32")
    x = {
        "token_ids": rng.integers(1, 40, MASK.shape) * MASK,
        "padding_mask": MASK.astype("int32"),
    }
    if family == "Bart":
        shorter = {name: array[:, :7] for name, array in x.items()}
        parts = {"encoder": x, "decoder": shorter}
        return {
            f"{part}_{name}": array
            for part, arrays in parts.items()
            for name, array in arrays.items()
        }
    if family in ("Bert", "Albert", "Electra"):
        x["segment_ids"] = np.zeros(MASK.shape, "int32")
    return x


def visible(output, family):
    """The rows of an output that padding does not hide."""
    if family == "Bart":  # which sees all that the encoder says
        return output["decoder_sequence_output"][MASK[:, :7]]
    if isinstance(output, dict):
        output = output["sequence_output"]
    return output if family == "ViT" else output[MASK]

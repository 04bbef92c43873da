"""Score a large corpus on several processes, and go on after a stop.

You learn how to apply a model to more texts than one process can take: Ray
Data reads the corpus, hands batches to processes that each hold the model, and
writes the scores beside the texts' ids. Start a stopped job again: it takes
the texts that are not written yet, so that each is scored once.

    pip install "ray[data]>=2.60"  # 0.4 GB
    python examples/batch_inference.py --processes 2

The scores are bits per byte of a small language model: texts that it finds
hard stand out. The same script runs on a cluster, with paths that all machines
can read; see https://docs.ray.io.
"""

import argparse
import inspect
import itertools
import pathlib
import sys
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import pyarrow
import pyarrow.parquet
import ray

import keras_linattn

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--processes", type=int, default=2)
parser.add_argument("--texts", type=int, help="default: 20,000")
parser.add_argument("--out", default="out/batch_inference")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

length, batch_size, epochs = 256, 32, 2
sizes = {"hidden_dim": 64, "num_layers": 2, "num_heads": 4}
if args.smoke:
    length, epochs = 64, 1
    sizes = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}
num_texts = args.texts or (200 if args.smoke else 20_000)
out = pathlib.Path(args.out).resolve()
out.mkdir(parents=True, exist_ok=True)

# ## Corpus: pieces of Python's own library; byte b becomes id b + 1

folder = pathlib.Path(inspect.__file__).parent
pieces = (
    (f"{path.name}:{start}", text[start : start + length])
    for path in sorted(folder.glob("*.py"))
    for text in [path.read_bytes()]
    for start in range(0, len(text), length)
)
corpus = dict(itertools.islice(pieces, num_texts))
if not (out / "corpus.parquet").exists():
    columns = {"id": list(corpus), "text": list(corpus.values())}
    pyarrow.parquet.write_table(pyarrow.table(columns), out / "corpus.parquet")


def to_ids(texts):
    rows = [list(text.ljust(length + 1, b"\0")) for text in texts]
    ids = np.array(rows, "int32")
    real = np.arange(length + 1) < [[len(text)] for text in texts]
    return (ids + 1) * real


# ## Model: trained once, before the first start

if not (out / "model.keras").exists():
    keras.utils.set_random_seed(0)
    model = keras_linattn.models.CausalLM(mechanism="gated_delta", **sizes)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=0
    )
    model.compile(keras.optimizers.AdamW(3e-3), loss)
    ids = to_ids(list(corpus.values())[: 40 * batch_size])
    history = model.fit(
        ids[:, :-1], ids[:, 1:], batch_size, epochs, verbose="auto"
    )
    model.save(out / "model.keras")


class Scorer:
    """Holds the model in a process of its own."""

    def __init__(self, path):
        import keras_linattn  # noqa: F401  (registers its layers here too)

        self.model = keras.saving.load_model(path)

    def __call__(self, batch):
        ids = to_ids(batch["text"])
        logits = self.model.predict_on_batch(ids[:, :-1])
        targets = ids[:, 1:]
        logits = logits - logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        nats = np.log(np.exp(logits).sum(axis=-1)) - chosen
        mean = np.mean(nats, axis=1, where=targets > 0)
        return {"id": batch["id"], "bits_per_byte": mean / np.log(2)}


# ## Score: what is written once is not read again

# One for each process, one to read and write, one to skip what is written.
ray.init(num_cpus=args.processes + 2, include_dashboard=False)
context = ray.data.DataContext.get_current()
context.checkpoint_config = ray.data.checkpoint.CheckpointConfig(
    id_column="id",
    checkpoint_path=str(out / "done"),
    delete_checkpoint_on_success=False,
)
start = time.perf_counter()
texts = ray.data.read_parquet(str(out / "corpus.parquet"))
# A part is scored and written as one: a stop costs the parts at work.
parts = texts.repartition(target_num_rows_per_block=4 * batch_size)
parts.map_batches(
    Scorer,
    fn_constructor_args=[out / "model.keras"],
    batch_size=batch_size,
    compute=ray.data.ActorPoolStrategy(size=args.processes),
).write_parquet(str(out / "scores"))
seconds = time.perf_counter() - start
ray.shutdown()

# ## Each text has one score

table = pyarrow.parquet.read_table(out / "scores").to_pydict()
np.testing.assert_array_equal(sorted(table["id"]), sorted(corpus))
score = np.array(table["bits_per_byte"])
print(f"{len(score):,} texts, {score.mean():.2f} bits per byte on average")
for i in np.argsort(score)[[0, -1]]:
    print(f"{score[i]:.2f}", table["id"][i], corpus[table["id"][i]][:50])

figure, axis = plt.subplots()
axis.hist(score, bins=50)
axis.set(xlabel="bits per byte", ylabel="texts")
figure.savefig(out / "scores.png", dpi=100)
print(f"{seconds:.0f} s. Files in {out}")

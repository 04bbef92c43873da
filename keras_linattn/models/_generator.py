"""Generation with KerasHub's samplers, as KerasHub's own models do it."""

import functools
from collections.abc import Callable
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.models import decoding
from keras_linattn.models._base import FunctionalModel

# Compiled functions that a model keeps, each for one number of prompts, one
# bucket of lengths and one set of stop tokens.
MOST_COMPILED = 16


class Generator(FunctionalModel):
    """A functional model with a `tokenizer` that generates; for `CausalLM`.

    The class cannot inherit `keras_hub.models.CausalLM`: KerasHub is optional,
    and imported where it is used only.
    """

    _sampler = "top_k"  # as given
    _made_sampler = None  # of a name or a config
    generate_function = None  # compiled at the first use

    def compile(
        self,
        optimizer: str | keras.Optimizer = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        sampler: Any = "top_k",
        **kwargs: Any,
    ) -> None:
        """Configures training and generation, as KerasHub's models do.

        Args:
            optimizer: see `keras.Model.compile`. Defaults to `"auto"`: Adam.
            loss: likewise. Defaults to `"auto"`: crossentropy of the logits.
            weighted_metrics: likewise. Defaults to `"auto"`: accuracy.
            sampler: name or `keras_hub.samplers.Sampler`. Defaults to
                `"top_k"`.
            **kwargs: further arguments of `keras.Model.compile`.
        """
        if optimizer == "auto":
            optimizer = keras.optimizers.Adam()
        if loss == "auto":
            # The mean over what counts, not over all positions of a row.
            loss = keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            )
        if weighted_metrics == "auto":
            weighted_metrics = [keras.metrics.SparseCategoricalAccuracy()]
        super().compile(
            optimizer, loss, weighted_metrics=weighted_metrics, **kwargs
        )
        self._sampler = sampler
        self._made_sampler = None
        self.generate_function = None

    def get_config(self) -> dict:
        # Not in the compile config: `keras.models.clone_model` passes that to
        # a plain model.
        sampler = self._sampler
        if not isinstance(sampler, (str, dict)):
            sampler = keras.saving.serialize_keras_object(sampler)
        return {**super().get_config(), "sampler": sampler}

    @classmethod
    def from_config(cls, config: dict) -> Self:
        config = dict(config)
        sampler = config.pop("sampler", cls._sampler)
        model = super().from_config(config)
        # A sampler is made from its config once KerasHub is imported.
        model._sampler = sampler
        return model

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config, sampler=self._sampler)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def quantize(self, mode, **kwargs):
        super().quantize(mode, **kwargs)
        self.generate_function = None

    @property
    def sampler(self) -> Any:
        """The `keras_hub.samplers.Sampler` that `generate` uses."""
        if not isinstance(self._sampler, (str, dict)):
            return self._sampler
        if self._made_sampler is None:
            hub = decoding.import_keras_hub()
            self._made_sampler = hub.samplers.get(self._sampler)
        return self._made_sampler

    def generate_step(
        self,
        inputs: dict[str, Tensor],
        stop_token_ids: tuple[int, ...] | None = None,
    ) -> dict[str, Tensor]:
        """Continues a batch of prompts; what `generate` compiles.

        Args:
            inputs: dict of int `token_ids` and bool `padding_mask`, both
                `(B, L)`: prompts that begin in one column, the first or a
                later one, and room for new tokens after them.
            stop_token_ids: tuple of int, or `None` to go on until L.

        Returns:
            A dict like `inputs`.
        """
        return decoding.sample(self, inputs, stop_token_ids)

    def make_generate_function(self) -> Callable:
        """`generate_step`, compiled in the way of the backend.

        Returns:
            Callable with the arguments of `generate_step`.
        """
        if self.generate_function is None:
            # Of each shape its own, so that the oldest can be released.
            compiled = functools.lru_cache(MOST_COMPILED)(self._compiled)

            def generate(inputs, stop_token_ids=None):
                shape = tuple(inputs["token_ids"].shape)
                function = compiled(shape, stop_token_ids)
                return function(inputs, stop_token_ids)

            self.generate_function = generate
        return self.generate_function

    def _compiled(self, shape, stop_token_ids):
        # KerasHub's function asks of a model what this one has too. It leaves
        # what it made in `generate_function`, or returns what is there.
        hub = decoding.import_keras_hub()
        before, self.generate_function = self.generate_function, None
        try:
            return hub.models.CausalLM.make_generate_function(self)
        finally:
            self.generate_function = before

    def generate(
        self,
        inputs: str | list[str] | dict | Tensor,
        max_length: int | None = None,
        stop_token_ids: str | tuple[int, ...] | None = "auto",
        strip_prompt: bool = False,
    ) -> Any:
        """Continues prompts, with the sampler given to `compile`.

        TensorFlow and JAX compile for each number of prompts and each power of
        two that `max_length` lies under, from 64 on. The last 16 compiled
        functions are kept.

        Args:
            inputs: str, list of str, int array `(B, L)`, or a dict of
                `token_ids` and `padding_mask`, both `(B, L)`. Prompts may have
                different lengths; arrays are padded at the end, which is the
                room for new tokens.
            max_length: int or `None`, length of prompt and new tokens
                together; longer prompts are cut. Defaults to `None`: for
                texts 256 tokens more than the longest prompt, for arrays L.
            stop_token_ids: tuple of int, `None` or `"auto"`: generation ends
                when each row has a new one of them. Defaults to `"auto"`: the
                tokenizer's end tokens, if it has any.
            strip_prompt: bool, return what is new alone. Defaults to `False`.

        Returns:
            What was passed as `inputs`, continued: str, list of str, NumPy
            array, or dict of NumPy arrays.

        Raises:
            ValueError: if a prompt is empty.
            ImportError: if KerasHub is not installed.
        """
        texts = [inputs] if isinstance(inputs, str) else inputs
        is_text = isinstance(texts, (list, tuple)) and all(
            isinstance(text, str) for text in texts
        )
        pad_id = decoding.padding_id(self.tokenizer)
        if is_text:
            rows = decoding.encode(texts, self.tokenizer)
            prompts = decoding.pack(rows, max_length, pad_id)
        else:
            prompts = decoding.as_arrays(inputs, max_length, pad_id)
        decoding.check_prompts(prompts["padding_mask"])
        outputs = self.make_generate_function()(
            decoding.in_bucket(prompts, pad_id, decoding.longest_input(self)),
            decoding.stop_tokens(stop_token_ids, self.tokenizer),
        )
        length = prompts["token_ids"].shape[1]
        outputs = {
            name: ops.convert_to_numpy(output)[:, -length:]
            for name, output in outputs.items()
        }
        if strip_prompt:
            outputs = decoding.without_prompt(outputs, prompts, pad_id)
        if not is_text:
            is_dict = isinstance(inputs, dict)
            return outputs if is_dict else outputs["token_ids"]
        rows = decoding.unpack(outputs["token_ids"], outputs["padding_mask"])
        texts = decoding.decode(rows, self.tokenizer)
        return texts[0] if isinstance(inputs, str) else texts

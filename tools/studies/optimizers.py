"""How the models of the studies are trained."""

import keras


def adamw(steps, rate, warmup=0.1, **options):
    """AdamW whose learning rate rises, then falls to 0 along a cosine.

    Args:
        steps: int, all training steps.
        rate: float, the largest learning rate.
        warmup: float, the part of the steps that it rises in.
        **options: arguments of `keras.optimizers.AdamW`.
    """
    rising = max(1, round(steps * warmup))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - rising, warmup_target=rate, warmup_steps=rising
    )
    options = {"weight_decay": 0.05, "clipnorm": 1.0, **options}
    optimizer = keras.optimizers.AdamW(schedule, **options)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer

"""How the models of the studies are trained."""

import keras


def adamw(steps, rate, warmup=0.1, **options):
    """AdamW with the learning rate of `schedule`.

    Args:
        steps: int, all training steps.
        rate: float, the largest learning rate.
        warmup: float, the part of the steps that it rises in.
        **options: arguments of `keras.optimizers.AdamW`.
    """
    return adamw_at(schedule(steps, rate, warmup), **options)


def adamw_at(rate, **options):
    """AdamW with a learning rate, or a schedule of it."""
    options = {"weight_decay": 0.05, "clipnorm": 1.0, **options}
    optimizer = keras.optimizers.AdamW(rate, **options)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def schedule(steps, rate, warmup=0.1):
    """A learning rate that rises, then falls to 0 along a cosine."""
    rising = max(1, round(steps * warmup))
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - rising, warmup_target=rate, warmup_steps=rising
    )

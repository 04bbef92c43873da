"""The command `keras-linattn`: parses, calls the public API, prints.

A package of its own: importing `keras_linattn` imports Keras and a backend,
which takes seconds, and help and usage errors need neither.
"""

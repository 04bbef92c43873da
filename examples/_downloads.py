"""What Keras downloads, or how to get it where there is no network."""

import os


def download(load, what, calls):
    """What `load` returns.

    Args:
        load: function that lets Keras download it, unless it is there.
        what: str, which files come from where.
        calls: str, Python calls that download the same elsewhere.

    Raises:
        ConnectionError: if it is neither there nor can be downloaded.
    """
    try:
        return load()
    except Exception as error:  # Keras raises nothing more special
        home = os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))
        folder = os.path.join(home, "datasets")
        raise ConnectionError(
            f"{what} That failed: {error}. Where there is a network, run "
            f"`python -c 'import keras; {calls}'`, and copy what is then in "
            f"~/.keras/datasets there to {folder} here."
        ) from error

"""What the command says to arguments that it refuses."""

from keras_linattn_cli.main import main


def refuses(capsys, *arguments):
    """The one line that the command says to arguments that it refuses."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    *progress, error = said.err.splitlines(keepends=True)
    assert all(line.startswith("[") for line in progress), said.err
    assert error.startswith("keras-linattn: error: ")
    return error

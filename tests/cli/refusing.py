"""What the command says to arguments that it refuses."""

from keras_linattn_cli.main import main


def refuses(capsys, *arguments):
    """The one line that the command says to arguments that it refuses."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith("keras-linattn: error: ")
    return said.err

"""Folders of codes written from small data."""

from mvar_models.tokens.writer import TokenWriter

from tiny_models import tiny_vqvae


def write(source, folder, vqvae=None, *, writer=None, **settings):
    """Write a folder of codes; `writer` are settings of the writer, the others of its `write`."""
    made = TokenWriter(vqvae or tiny_vqvae(), source, folder, **{"shard_size": 10, **(writer or {})})
    return made.write(**{"batch_size": 4, **settings})


def contents(folder):
    """File name -> bytes of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}

"""Sizes at which a fast form begins to pay, with the measurement behind each.

Measured on two CPU cores with `python -m tools.bench`, d_model 512, 8 heads,
float32.

| constant | value | chosen because |
| --- | ---: | --- |
| CHUNK_SIZE | 64 | 64 and 128 were the fastest for D = 64 |
| DOCUMENT_CHUNK | 128 | with two running sums, fewer chunks are faster |
| SHORTEST | 512 | below, separate parts cost more than they save |
| SEGMENT | 2^17 | entries of the queries that XLA keeps in a CPU's cache |
| SEGMENT_OF_TORCH | 2^18 | the same for torch; half and the whole are slower |
| GROUP | 8 | chunks whose running sum is unrolled |
| UNROLLED | 8 | chunks; for more, a scan compiles faster |
| SHORT_FOR_TORCH | 2048 | its softmax kernel is slower on longer sequences |
"""

CHUNK_SIZE = 64
DOCUMENT_CHUNK = 128
SHORTEST = 512
SEGMENT = 2**17
SEGMENT_OF_TORCH = 2**18
GROUP = 8
UNROLLED = 8
SHORT_FOR_TORCH = 2048


def segment_size(shape, entries):
    """Positions of a segment, whole chunks; `None` if one holds them all.

    Args:
        shape: of the queries, `[B, H, T, D]`.
        entries: int, of the queries in a segment.
    """
    batch, heads, length, dim = shape
    entries_of_a_chunk = CHUNK_SIZE * batch * heads * dim
    # A batch may be empty.
    size = CHUNK_SIZE * max(1, entries // max(1, entries_of_a_chunk))
    return size if SHORTEST <= length and size < length else None

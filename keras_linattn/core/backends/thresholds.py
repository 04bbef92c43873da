"""Sizes at which a fast form begins to pay, with the measurement behind each.

Measured on two CPU cores with `python -m tools.bench`, d_model 512, 8 heads,
float32; docs/benchmarks.md has the tables.

| constant | value | chosen because |
| --- | ---: | --- |
| CHUNK_SIZE | 64 | 64 and 128 were the fastest for D = 64 |
| DOCUMENT_CHUNK | 128 | with two running sums, fewer chunks are faster |
| SHORTEST | 512 | below, separate parts cost more than they save |
| SEGMENT | 256 | positions that XLA keeps in a CPU's cache |
| SEGMENT_OF_TORCH | 512 | the same for torch; 256 and the whole are slower |
| GROUP | 8 | chunks whose running sum is unrolled |
| UNROLLED | 8 | chunks; for more, a scan compiles faster |
| SHORT_FOR_TORCH | 2048 | its softmax kernel is slower on longer sequences |
"""

CHUNK_SIZE = 64
DOCUMENT_CHUNK = 128
SHORTEST = 512
SEGMENT = 256
SEGMENT_OF_TORCH = 512
GROUP = 8
UNROLLED = 8
SHORT_FOR_TORCH = 2048

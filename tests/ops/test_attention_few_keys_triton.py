"""The kernel of attention over few keys: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import pytest
import torch
from triton_process import TARGETS, compile_ahead, interpret

from fastdiff.kernels.attention.few_keys import attention_few_keys, parts_of, unfit


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_in_the_interpreter(dtype):
    interpret("attention_few_keys", "numbers", dtype)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("attention_few_keys", target)


def test_programs_share_the_blocks_of_queries_evenly():
    assert parts_of(64, 16, 132) == 32  # two blocks each, as measured
    assert parts_of(4, 8, 132) == 4
    assert parts_of(64, 1024, 132) == 1
    for blocks in range(1, 70):
        for heads in (1, 5, 16, 40):
            parts = parts_of(blocks, heads, 132)
            assert 1 <= parts <= blocks
            assert -(-blocks // parts) == -(-blocks // min(blocks, max(1, 4 * 132 // heads)))


def test_other_numbers_of_keys_are_refused():
    q, k = torch.zeros(1, 1, 4, 8, dtype=torch.float16), torch.zeros(1, 1, 129, 8, dtype=torch.float16)
    assert unfit(128, 128) is None
    assert unfit(160, 77) is None
    assert unfit(160, 128) == "the kernel for few keys takes head dimensions up to 128 with 128 keys, not 160"
    assert unfit(40, 129) == "the kernel for few keys takes 1 to 128, not 129"
    with pytest.raises(ValueError, match="1 to 128, not 129"):
        attention_few_keys(q, k, k)
    with pytest.raises(ValueError, match="1 to 128, not 0"):
        attention_few_keys(q, k[:, :, :0], k[:, :, :0])

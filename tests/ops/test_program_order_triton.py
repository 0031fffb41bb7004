"""The Triton kernels give the same bits twice, whatever the order of their program instances: in the interpreter."""

import pytest
from triton_process import interpret


@pytest.mark.parametrize("program", ["operators", pytest.param("sums_in_parts", marks=pytest.mark.long)])
def test_results_do_not_depend_on_the_order_of_program_instances(program):
    interpret("order", program)

"""The pages say what the code does: their code runs, and their outputs are what it prints. Run by `make pages`."""

import jax
import pytest
from test_docs import ROOT, WITH_CODE, run


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_shows_what_its_code_prints(page):
    # Pages are written for JAX as users have it, not for the strict settings of these tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in run.wrong(run.run_page(page)):
            raise AssertionError(
                f"{page.name}, line {block.line}, prints\n{block.printed}but the page shows\n{block.shown or ''}"
                "(if the new output is right: python docs/run.py --write)"
            )

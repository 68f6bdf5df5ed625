"""Ways of torchrun that start ranks again in vain are refused."""

from __future__ import annotations

import pytest

from ecgfm.errors import ConfigError
from ecgfm.train.world import check_restarts

SOUND = {
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "jepa",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


@pytest.mark.parametrize(
    ("missing", "fix"),
    [
        ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        ("TORCHELASTIC_RUN_ID", "--standalone"),
    ],
)
def test_restarts_that_would_hang_are_refused_with_the_fix(missing: str, fix: str) -> None:
    check_restarts(SOUND)
    environment = {name: value for name, value in SOUND.items() if name != missing}
    with pytest.raises(ConfigError, match=fix):
        check_restarts(environment)
    check_restarts(environment | {"TORCHELASTIC_MAX_RESTARTS": "0"})
    check_restarts({})

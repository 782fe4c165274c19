"""Sub-networks off the grid that ``limbert search`` found: kept by name in the record of a checkpoint."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from limbert.core.subnet import Subnet

FOUND_KEY = "subnets"  # in limbert.json
_PREFIX = "found-"


def found_name(subnet: Subnet) -> str:
    """``found-3fa2c``: made of the sub-network itself, so that a name never changes its meaning."""
    text = json.dumps(subnet.to_dict(), sort_keys=True)
    return _PREFIX + hashlib.sha256(text.encode()).hexdigest()[:5]


def found_subnets(record: Mapping[str, Any]) -> dict[str, Subnet]:
    """The found sub-networks of a checkpoint by name, in the order they were saved.

    Args:
        record: what ``limbert.json`` says.

    Raises:
        SubnetError: if an entry cannot be read.
    """
    return {name: Subnet.from_dict(values) for name, values in record.get(FOUND_KEY, {}).items()}
